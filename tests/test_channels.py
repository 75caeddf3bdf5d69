import pytest

from custom.channels import ChannelLayout


@pytest.mark.parametrize(("num_affinities", "num_lsds"), [(3, 10), (12, 10), (1, 0)])
def test_the_slices_tile_the_channels_in_order(num_affinities, num_lsds):
    layout = ChannelLayout(num_affinities, num_lsds)
    prediction = (layout.affinities, layout.lsds)
    target = (*prediction, layout.valid, layout.lsd_mask, layout.weight)
    for slices, total in ((prediction, layout.num_outputs), (target, layout.num_targets)):
        channels = [i for s in slices for i in range(s.start, s.stop)]
        assert channels == list(range(total))


def test_every_slice_has_its_size():
    layout = ChannelLayout(4, 10)
    slices = (layout.affinities, layout.lsds, layout.valid, layout.lsd_mask, layout.weight)
    assert [s.stop - s.start for s in slices] == [4, 10, 4, 1, 1]


@pytest.mark.parametrize(
    ("counts", "message"),
    [((0, 10), "num_affinities must be at least 1"), ((3, 6), "num_lsds must be 0 or 10")],
    ids=["no affinities", "2D descriptors"],
)
def test_rejects(counts, message):
    with pytest.raises(ValueError, match=message):
        ChannelLayout(*counts)
