"""What every segmentation method keeps to, as a whole and in blocks."""

import json
from itertools import product

import numpy as np
import pytest

from custom.errors import InputError
from custom.segmentation.component_segmenter import ComponentSegmenter
from custom.segmentation.fragments import connected_components
from custom.segmentation.method import same_fragments
from custom.segmentation.region_graph import region_graph
from custom.segmentation.segmenter import MutexWatershedSegmenter
from custom.segmentation.watershed_segmenter import SeededWatershedSegmenter
from tests.oracles import same_partition
from tests.segmentation.laws import IN_PLANE, OFFSETS, cells, flipped, perfect

METHODS = [MutexWatershedSegmenter, SeededWatershedSegmenter, ComponentSegmenter]
SETTINGS = {
    MutexWatershedSegmenter: [{}, {"threshold": 0.5}],
    SeededWatershedSegmenter: [{}, {"seed_distance": 2, "boundary": 0.9, "scoring": "mean"}],
    ComponentSegmenter: [{}, {"threshold": 0.0}],
}
CHANGED = {
    SeededWatershedSegmenter: {
        "offsets": OFFSETS[:5],
        "boundary": 0.4,
        "seed_distance": 3.0,
        "voxel_size": [40, 4, 4],
        "grow_above": 0.1,
        "per_section": True,
        "min_affinity": 0.3,
        "min_size": 7,
        "small": "background",
        "threshold": 0.6,
        "scoring": "mean",
    },
    ComponentSegmenter: {
        "offsets": OFFSETS[:5],
        "threshold": 0.6,
        "min_affinity": 0.3,
        "min_size": 7,
        "small": "neighbours",
    },
}
OF_THE_JOIN = {
    SeededWatershedSegmenter: {"min_size", "small", "threshold", "scoring"},
    ComponentSegmenter: set(),
}
FIELDS = [(method, field) for method, changed in CHANGED.items() for field in changed]


def tried():
    return [(method, settings) for method in METHODS for settings in SETTINGS[method]]


@pytest.mark.parametrize(("method", "settings"), tried())
@pytest.mark.parametrize("seed", range(2))
def test_perfect_affinities_give_back_the_truth(method, settings, seed):
    truth = cells(seed=seed)
    found = method(OFFSETS, **settings)(perfect(truth))
    assert found.dtype == np.uint64
    assert same_partition(found, truth)


@pytest.mark.parametrize(("method", "settings"), tried())
def test_objects_of_one_voxel_and_background_come_back_within_the_mask(method, settings):
    truth = cells()
    truth[truth == 2] = 0
    truth[4, 5, 6] = truth[0, 0, 0] = 99
    truth = connected_components(truth)
    found = method(OFFSETS, **settings)(perfect(truth), truth != 0)
    assert same_partition(found, truth)


@pytest.mark.parametrize(("method", "settings"), tried())
@pytest.mark.parametrize("axis", range(3))
def test_in_a_mirror_the_truth_comes_back_as_well(method, settings, axis):
    truth = cells()
    affinities, offsets = flipped(perfect(truth), OFFSETS, axis)
    assert same_partition(np.flip(method(offsets, **settings)(affinities), axis), truth)


@pytest.mark.parametrize("method", METHODS)
def test_low_mean_affinity_is_background(method):
    truth = np.ones((6, 6, 12), np.uint64)
    truth[..., 6:] = 2
    affinities = perfect(truth)
    affinities[..., 6:] = affinities[..., 6:] // 255 * 140
    found = method(OFFSETS, min_affinity=0.6)(affinities)
    assert same_partition(found, np.where(truth == 2, 0, truth))


@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("small", ["neighbours", "background"])
def test_small_ones_go_to_neighbours_or_away(method, small):
    truth = cells()
    speck = truth.copy()
    speck[4:6, 4:6, 4:6] = truth.max() + 1
    affinities = perfect(speck)
    kept = method(OFFSETS, min_size=8, small=small, threshold=0.5)(affinities)
    assert same_partition(kept, connected_components(speck))
    found = method(OFFSETS, min_size=9, small=small, threshold=0.5)(affinities)
    gone = speck == speck.max()
    assert found[gone].all() if small == "neighbours" else not found[gone].any()
    assert same_partition(found[~gone], truth[~gone])


@pytest.mark.parametrize("method", METHODS)
def test_of_nothing_nothing(method):
    affinities = np.full((6, 3, 4, 5), 255, np.uint8)
    nowhere = np.zeros((3, 4, 5), bool)
    found = method(OFFSETS, threshold=0.5, min_size=2)(affinities, nowhere)
    assert found.shape == nowhere.shape and not found.any()
    closed = method(OFFSETS, min_affinity=0.1, threshold=0.5)(np.zeros_like(affinities))
    assert not closed.any()


@pytest.mark.parametrize("method", METHODS)
def test_channels_beyond_the_offsets_are_ignored(method):
    affinities = perfect(cells())
    more = np.concatenate([affinities, np.full_like(affinities, 200)])
    segment = method(OFFSETS, threshold=0.5)
    np.testing.assert_array_equal(segment(more), segment(affinities))


@pytest.mark.parametrize("method", METHODS[1:])
def test_sections_of_in_plane_offsets_are_as_if_alone(method):
    affinities = np.random.default_rng(0).integers(0, 256, (4, 4, 7, 9)).astype(np.uint8)
    segment = method(IN_PLANE, threshold=0.5, min_size=3)
    stack = segment(affinities)
    for z, section in enumerate(stack):
        assert same_partition(section[None], segment(affinities[:, z : z + 1]))
        assert not np.isin(section[section > 0], np.delete(stack, z, axis=0)).any()


@pytest.mark.parametrize("method", METHODS)
def test_of_one_block_the_graph_gives_what_the_array_gives(method):
    affinities = np.random.default_rng(1).integers(0, 256, (6, 6, 7, 8)).astype(np.uint8)
    segment = method(OFFSETS, threshold=0.6, min_size=3)
    fragments = segment.fragments(affinities)
    links = segment.links
    graph = region_graph(fragments, affinities[links], [OFFSETS[k] for k in links])
    found = np.append(0, segment.solve(graph))[fragments]
    assert same_partition(found, segment(affinities))


@pytest.mark.parametrize(("method", "field"), FIELDS)
def test_only_settings_of_the_join_leave_fragments_as_they_are(method, field):
    segment = method(OFFSETS)
    other = segment.with_settings(**{field: CHANGED[method][field]})
    assert other != segment
    assert same_fragments(segment, other) is (field in OF_THE_JOIN[method])


@pytest.mark.parametrize("method", CHANGED)
def test_a_description_builds_the_same_method_through_json(method):
    segment = method(**CHANGED[method])
    assert method(**json.loads(json.dumps(segment.describe()))) == segment
    assert set(segment.describe()) == set(CHANGED[method])


@pytest.mark.parametrize(("one", "other"), [p for p in product(METHODS, METHODS) if p[0] != p[1]])
def test_fragments_of_other_methods_are_others(one, other):
    assert not same_fragments(one(OFFSETS), other(OFFSETS))


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (ComponentSegmenter, {"offsets": OFFSETS[3:]}, "needs an affinity offset of one voxel"),
        (ComponentSegmenter, {"threshold": 2}, "threshold of connected components must be from 0"),
        (ComponentSegmenter, {"min_affinity": -1}, "min_affinity of connected components must"),
        (ComponentSegmenter, {"small": "gone"}, "small must be one of 'neighbours', 'background'"),
        (SeededWatershedSegmenter, {"offsets": OFFSETS[1:]}, "one voxel along z"),
        (SeededWatershedSegmenter, {"boundary": 1.5}, "boundary of seeded watershed must be"),
        (SeededWatershedSegmenter, {"threshold": -0.1}, "threshold of seeded watershed must be"),
        (SeededWatershedSegmenter, {"grow_above": 7}, "grow_above of seeded watershed must be"),
        (SeededWatershedSegmenter, {"scoring": "median"}, "scoring must be 'mean'"),
        (SeededWatershedSegmenter, {"voxel_size": [4, 0, 4]}, "three positive numbers"),
        (SeededWatershedSegmenter, {"seed_distance": -1}, "seed_distance from 0 on"),
        (SeededWatershedSegmenter, {"small": "gone"}, "small must be one of"),
    ],
)
def test_settings_that_cannot_be_are_refused(method, settings, message):
    with pytest.raises(InputError, match=message):
        method(**{"offsets": OFFSETS, **settings})


@pytest.mark.parametrize("method", METHODS)
def test_an_unknown_setting_is_refused_with_a_suggestion(method):
    with pytest.raises(InputError, match="unknown key 'treshold'; did you mean 'threshold'"):
        method(OFFSETS).with_settings(treshold=0.5)
