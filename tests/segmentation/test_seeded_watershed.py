import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from custom.segmentation.fragments import connected_components
from custom.segmentation.seeded_watershed import seeded_watershed
from custom.segmentation.waterz_agglomeration import waterz_agglomerate
from tests.oracles import same_partition
from tests.segmentation.laws import IN_PLANE, OFFSETS, cells, flipped, perfect, without_ties

SHAPES = array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6)


def refines(fragments, labels):
    """Whether no fragment has voxels of two labels, and every labelled voxel is in one."""
    pairs = {*zip(fragments.ravel().tolist(), labels.ravel().tolist(), strict=True)}
    return len(pairs) == len({f for f, _ in pairs}) and not ((fragments == 0) & (labels != 0)).any()


@given(
    labels=arrays(np.uint8, SHAPES, elements=st.integers(0, 3)),
    boundary=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    reach=st.integers(0, 4),
    sign=st.sampled_from([1, -1]),
)
def test_of_perfect_affinities_no_fragment_crosses_the_truth(labels, boundary, reach, sign):
    truth = connected_components(labels)
    offsets = [[sign * o for o in offset] for offset in OFFSETS]
    affinities = perfect(truth, offsets)
    fragments = seeded_watershed(affinities, offsets, boundary, reach, mask=truth != 0)
    assert fragments.dtype == np.uint64
    assert refines(fragments, truth)
    assert same_partition(waterz_agglomerate(fragments, affinities, offsets, 0.5), truth)


def two_balls(neck):
    """Two round objects of radius 5 that touch, or one with a neck; affinities of voxels' pairs."""
    z, y, x = np.indices((13, 13, 23)) - np.array([6, 6, 0]).reshape(3, 1, 1, 1)
    balls = ((z**2 + y**2 + (x - 6) ** 2) < 30) | ((z**2 + y**2 + (x - 16) ** 2) < 30)
    return perfect(balls | ((z**2 + y**2 < neck**2) & (x > 4) & (x < 18)))


def test_a_seed_in_the_middle_of_every_ball():
    affinities = two_balls(neck=2)
    fragments = seeded_watershed(affinities, OFFSETS, 0.9, seed_distance=4)
    left, right = fragments[6, 6, 6], fragments[6, 6, 16]
    assert left != right
    assert (fragments == left).sum() > 300 and (fragments == right).sum() > 300
    assert fragments[6, 6, 9] == left and fragments[6, 6, 13] == right


def test_farther_seeds_make_larger_fragments():
    affinities = perfect(np.ones((15, 16, 31), int))
    affinities[:, 5, 5, 5] = affinities[:, 5, 5, 20] = 0
    found = [seeded_watershed(affinities, OFFSETS, 0.5, reach).max() for reach in (1, 4, 40)]
    assert found[0] > found[1] > found[2]


def test_the_reach_is_in_the_unit_of_the_voxel_size():
    """A rod along z of thick sections: a seed is the farthest within as many nanometres."""
    affinities = perfect(np.ones((12, 5, 5), int))
    distance = [{"seed_distance": 40 * u, "voxel_size": (30 * u, 4 * u, 4 * u)} for u in (1, 2.5)]
    one, other = (seeded_watershed(affinities, OFFSETS, 0.9, **given) for given in distance)
    np.testing.assert_array_equal(one, other)
    cubes = seeded_watershed(affinities, OFFSETS, 0.9, seed_distance=40, voxel_size=(4, 4, 4))
    assert cubes.max() <= one.max()


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("seed", range(4))
def test_seen_in_a_mirror_it_is_the_same(axis, seed):
    affinities = without_ties(seed=seed)
    found = seeded_watershed(affinities, OFFSETS[:3], 0.5, 1)
    mirrored = seeded_watershed(*flipped(affinities, OFFSETS[:3], axis), 0.5, 1)
    assert found.max() > 3
    assert same_partition(np.flip(mirrored, axis), found)


def test_sections_on_their_own_are_as_if_alone():
    affinities = perfect(cells())
    stack = seeded_watershed(affinities, OFFSETS, 0.7, 2, per_section=True)
    for z, section in enumerate(stack):
        assert not np.isin(section, np.delete(stack, z, axis=0)).any()


def test_without_an_offset_along_z_sections_are_on_their_own():
    random = np.random.default_rng(0)
    affinities = random.integers(0, 256, (4, 5, 7, 9)).astype(np.uint8)
    stack = seeded_watershed(affinities, IN_PLANE, 0.5, 2)
    for z, section in enumerate(stack):
        assert same_partition(
            section[None], seeded_watershed(affinities[:, z : z + 1], IN_PLANE, 0.5, 2)
        )
        assert not np.isin(section, np.delete(stack, z, axis=0)).any()


def row(*links):
    """A row of voxels with these affinities to the next."""
    return np.array([*links, 0], np.uint8).reshape(1, 1, 1, -1), [(0, 0, 1)]


def test_the_outside_joins_the_neighbour_across_the_stronger_face():
    affinities, offsets = row(255, 255, 100, 50, 255, 255)
    found = seeded_watershed(affinities, offsets, 0.5, 1)
    np.testing.assert_array_equal(found.ravel(), [1, 1, 1, 1, 2, 2, 2])


def test_the_outside_stays_where_no_face_is_above_the_limit():
    affinities, offsets = row(255, 255, 100, 50, 255, 255)
    found = seeded_watershed(affinities, offsets, 0.5, 1, grow_above=100 / 255)
    np.testing.assert_array_equal(found.ravel(), [1, 1, 1, 2, 3, 3, 3])


def test_thin_objects_that_are_boundary_all_over_are_fragments():
    """A rod of one voxel has a mean affinity of a third."""
    truth = np.ones((4, 5, 6), np.uint64)
    truth[2, 2, :] = 2
    affinities = perfect(truth)
    found = seeded_watershed(affinities, OFFSETS, 0.5, 9)
    assert refines(found, truth)
    assert len(np.unique(found[2, 2])) == 1


def test_nothing_is_joined_through_masked_voxels():
    affinities, offsets = row(255, 255, 255, 255)
    mask = np.array([1, 1, 0, 1, 1], bool).reshape(1, 1, 5)
    found = seeded_watershed(affinities, offsets, 0.5, 9, mask=mask)
    assert same_partition(found, np.array([1, 1, 0, 2, 2]).reshape(1, 1, 5))


def test_nothing_in_nothing_out():
    mask = np.zeros((2, 3, 4), bool)
    affinities = np.full((6, *mask.shape), 255, np.uint8)
    found = seeded_watershed(affinities, OFFSETS, mask=mask)
    assert found.shape == mask.shape and not found.any()


def test_closed_everywhere_every_voxel_is_a_fragment():
    found = seeded_watershed(np.zeros((6, 2, 3, 4), np.uint8), OFFSETS)
    np.testing.assert_array_equal(found.ravel(), np.arange(1, 25))
