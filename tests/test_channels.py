import pytest

from custom.channels import ChannelLayout, channel_layout
from custom.errors import InputError


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


def test_the_slices_of_classes_tile_the_channels_in_order():
    layout = ChannelLayout(0, 0, 4)
    assert (layout.num_outputs, layout.classes) == (4, slice(0, 4))
    channels = (layout.class_id, layout.valid, layout.weight)
    assert [i for s in channels for i in range(s.start, s.stop)] == [0, 1, 2]
    assert layout.num_targets == 3


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((0, 10), "num_affinities must be at least 1"),
        ((3, 7), "num_lsds must be 0, 6"),
        ((0, 0, 1), "at least 2"),
        ((3, 0, 2), "without affinities"),
    ],
    ids=["no affinities", "7 descriptors", "one class", "classes and affinities"],
)
def test_rejects(counts, message):
    with pytest.raises(ValueError, match=message):
        ChannelLayout(*counts)


OFFSETS = [[1, 0, 0], [0, 2, 0]]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (("affinities_lsds", OFFSETS, 80.0), ChannelLayout(2, 10)),
        (("affinities_lsds", OFFSETS, 80.0, 2, 2), ChannelLayout(2, 6)),
        (("affinities", OFFSETS, 80.0), ChannelLayout(2, 0)),
        (("labels", [], None, 5), ChannelLayout(0, 0, 5)),
    ],
)
def test_the_layout_follows_from_the_configuration(settings, expected):
    assert channel_layout(*settings) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("affinites", OFFSETS, 80.0), "did you mean 'affinities'"),
        (("affinities_lsds", OFFSETS, None), "needs lsd_sigma_nm"),
        (("affinities_lsds", OFFSETS, 0), "needs lsd_sigma_nm, a number above 0, got 0"),
        (("affinities_lsds", OFFSETS, -80.0), "lsd_sigma_nm must be a number from 0 on"),
        (("affinities_lsds", OFFSETS, float("nan")), "lsd_sigma_nm must be a number from 0 on"),
        (("affinities", [], None), "at least one offset"),
        (("labels", [], None, 1), "num_classes must be a whole number from 2 on"),
        (("affinities", OFFSETS, None, 2, 4), "dimensions must be 2 or 3"),
    ],
)
def test_mistakes_in_the_configuration_are_said(settings, message):
    with pytest.raises(InputError, match=message):
        channel_layout(*settings)
