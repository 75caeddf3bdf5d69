from dataclasses import fields

import numpy as np
import pytest
from scipy import ndimage

from custom.errors import InputError
from custom.segmentation import segmenter as module
from custom.segmentation.fragments import connected_components
from custom.segmentation.segmenter import MutexWatershedSegmenter
from tests.oracles import affinities_by_loop, same_partition

OFFSETS = [[d if a == axis else 0 for a in range(3)] for d in (1, 3) for axis in range(3)]
CHANGED = {
    "offsets": OFFSETS[:5],
    "bias": -0.4,
    "long_range_stride": 2,
    "min_affinity": 0.3,
    "min_size": 7,
    "threshold": 0.6,
    "quantile": 0.9,
    "max_link": 1,
}
OF_THE_JOIN = {"threshold", "quantile", "max_link"}


def cells(shape=(10, 12, 14), number=7, seed=0):
    """Tightly packed cells."""
    random = np.random.default_rng(seed)
    seeds = random.random((number, 3)) * shape
    place = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    nearest = np.linalg.norm(place[..., None, :] - seeds, axis=-1).argmin(-1)
    return connected_components(nearest + 1)


def perfect(labels):
    return (255 * affinities_by_loop(labels, OFFSETS)[0]).astype(np.uint8)


@pytest.mark.parametrize("threshold", [None, 0.5])
@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("seed", range(3))
def test_perfect_affinities_give_back_the_truth(threshold, stride, seed):
    truth = cells(seed=seed)
    segment = MutexWatershedSegmenter(OFFSETS, threshold=threshold, long_range_stride=stride)
    found = segment(perfect(truth))
    assert found.dtype == np.uint64
    assert same_partition(found, truth)


def test_agglomeration_mends_what_the_bias_tore():
    truth = cells()
    affinities = np.where(perfect(truth) > 0, 179, 0).astype(np.uint8)  # 0.7
    affinities[:, :, 5, :] = np.where(affinities[:, :, 5, :] > 0, 128, 0)  # 0.5
    torn = MutexWatershedSegmenter(OFFSETS[:3], bias=-0.6)
    assert torn(affinities).max() > truth.max()
    mended = torn.with_settings(threshold=0.45, quantile=0.9, max_link=1)
    assert same_partition(mended(affinities), truth)


def test_small_fragments_are_grown_over_by_their_neighbours():
    truth = cells()
    speck = truth.copy()
    speck[4:6, 4:6, 4:6] = truth.max() + 1
    affinities = perfect(speck)
    keep, grow = (MutexWatershedSegmenter(OFFSETS, min_size=n) for n in (8, 9))
    assert same_partition(keep(affinities), connected_components(speck))
    grown = grow(affinities)
    assert grown.max() == truth.max()
    assert grown.all()
    elsewhere = ~ndimage.binary_dilation(speck == speck.max())
    assert same_partition(grown[elsewhere], truth[elsewhere])


def test_weak_fragments_become_background():
    truth = np.ones((6, 6, 12), np.uint64)
    truth[..., 6:] = 2
    affinities = perfect(truth)
    affinities[..., 6:] //= 2
    found = MutexWatershedSegmenter(OFFSETS, bias=-0.3, min_affinity=0.6)(affinities)
    assert same_partition(found, np.where(truth == 2, 0, truth))


def test_channels_beyond_the_offsets_are_ignored():
    affinities = perfect(cells())
    more = np.concatenate([affinities, np.full_like(affinities, 200)])
    segment = MutexWatershedSegmenter(OFFSETS, threshold=0.5)
    np.testing.assert_array_equal(segment(more), segment(affinities))


@pytest.mark.parametrize("field", CHANGED)
def test_only_settings_of_the_join_leave_fragments_as_they_are(field):
    segment = MutexWatershedSegmenter(OFFSETS)
    other = segment.with_settings(**{field: CHANGED[field]})
    assert segment.same_fragments(other) is (field in OF_THE_JOIN)
    assert other.same_fragments(segment) is (field in OF_THE_JOIN)


def test_equal_fragments_are_equal():
    random = np.random.default_rng(0)
    affinities = random.integers(0, 256, (6, 5, 6, 7)).astype(np.uint8)
    segment = MutexWatershedSegmenter(OFFSETS)
    other = segment.with_settings(**{name: CHANGED[name] for name in OF_THE_JOIN})
    np.testing.assert_array_equal(segment.fragments(affinities), other.fragments(affinities))
    joined = other.join(segment.fragments(affinities), affinities)
    np.testing.assert_array_equal(joined, other(affinities))


def test_every_setting_is_tried_above():
    assert set(CHANGED) == {field.name for field in fields(MutexWatershedSegmenter)}


def test_links_are_those_within_max_link(monkeypatch):
    seen = []
    monkeypatch.setattr(module, "agglomerate", lambda _, a, links, *rest: seen.append((a, links)))
    affinities = perfect(cells())
    for max_link in (1, 2, 3):
        segment = MutexWatershedSegmenter(OFFSETS, threshold=0.5, max_link=max_link)
        segment.join(cells(), affinities)
    assert [links for _, links in seen] == [OFFSETS[:3], OFFSETS[:3], OFFSETS]
    np.testing.assert_array_equal(seen[0][0], affinities[:3])


def test_only_long_range_edges_are_strided(monkeypatch):
    seen = []

    def spy(affinities, offsets, bias, strides, mask):
        seen.append(strides)
        return np.ones(affinities.shape[1:], np.uint64)

    monkeypatch.setattr(module, "mutex_watershed", spy)
    MutexWatershedSegmenter(OFFSETS, long_range_stride=5).fragments(perfect(cells()))
    assert seen == [[[1] * 3] * 3 + [[5] * 3] * 3]


# --- sections ---

IN_PLANE = [(0, 1, 0), (0, 0, 1), (0, 3, 0), (0, 0, 3)]


@pytest.mark.parametrize("settings", [{}, {"min_size": 5}, {"threshold": 0.6, "max_link": 1}])
def test_sections_are_segmented_each_on_its_own(settings):
    """In-plane offsets: the stack's segments are those of its sections, whatever lies beside."""
    random = np.random.default_rng(0)
    sections = [random.permutation(4 * 7 * 9).reshape(4, 7, 9) for _ in range(6)]  # no ties
    affinities = np.stack(sections, axis=1).astype(np.uint8)
    segment = MutexWatershedSegmenter(IN_PLANE, bias=-0.6, **settings)
    found = segment(affinities)
    assert len(np.unique(found)) > 6
    ids = [set(np.unique(section[section > 0])) for section in found]
    assert sum(map(len, ids)) == len(set.union(*ids)), "an id lies in two sections"
    for z, section in enumerate(found):
        assert same_partition(section[None], segment(affinities[:, z : z + 1]))


def test_small_pieces_of_sections_are_not_grown_over_from_other_sections():
    """A section of specks between two whole ones becomes background."""
    labels = np.ones((3, 6, 7), np.int64)
    labels[1] = 1 + np.arange(42).reshape(6, 7)
    affinities = (255 * affinities_by_loop(labels, IN_PLANE)[0]).astype(np.uint8)
    found = MutexWatershedSegmenter(IN_PLANE, min_size=2)(affinities)
    assert not found[1].any()
    assert found[0].all() and found[2].all()


def test_long_range_edges_are_strided_along_linked_axes_only(monkeypatch):
    seen = []
    monkeypatch.setattr(
        module,
        "mutex_watershed",
        lambda affinities, offsets, bias, strides, mask: seen.append(strides) or affinities[0],
    )
    MutexWatershedSegmenter(IN_PLANE, long_range_stride=5).fragments(
        np.ones((4, 2, 5, 6), np.uint8)
    )
    assert seen == [[[1, 1, 1]] * 2 + [[1, 5, 5]] * 2]


def test_a_description_builds_the_same_segmenter():
    segment = MutexWatershedSegmenter(**CHANGED)
    assert segment.describe() == CHANGED
    assert MutexWatershedSegmenter(**segment.describe()) == segment


def test_an_unknown_setting_is_refused_with_a_suggestion():
    with pytest.raises(InputError, match="unknown key 'treshold'; did you mean 'threshold'"):
        MutexWatershedSegmenter(OFFSETS).with_settings(treshold=0.5)


def test_links_there_must_be():
    with pytest.raises(InputError, match="max_link 2 leaves no offset to link fragments"):
        MutexWatershedSegmenter(OFFSETS[3:], max_link=2)
