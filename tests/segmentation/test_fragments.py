import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from custom.segmentation.fragments import (
    connected_components,
    consecutive,
    is_short_range,
    remove_small_fragments,
    remove_weak_fragments,
    short_range_mean,
)
from tests.oracles import same_partition

SHAPES = array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6)
LABELS = arrays(np.uint64, SHAPES, elements=st.sampled_from([0, 1, 3, 2**40, 2**63 + 1]))


@given(LABELS)
def test_consecutive_renames_in_scan_order(labels):
    numbered = consecutive(labels)
    assert numbered.dtype == np.uint64
    assert same_partition(numbered, labels)
    first_seen = list(dict.fromkeys(int(i) for i in numbered.ravel() if i))
    assert first_seen == list(range(1, len(first_seen) + 1))


@given(LABELS)
def test_connected_components_are_connected_by_faces(labels):
    pieces = connected_components(labels)
    count = 0
    for label in np.unique(labels[labels != 0]):
        expected, number = ndimage.label(labels == label)
        count += number
        assert same_partition(np.where(labels == label, pieces, 0), expected)
    assert pieces.max(initial=0) == count


@pytest.mark.parametrize(
    ("offset", "short"), [((0, 0, 1), True), ((-1, 1, 0), True), ((0, 0, -2), False)]
)
def test_short_range_means_touching(offset, short):
    assert is_short_range(offset) is short


@pytest.mark.parametrize(("dtype", "scale"), [(np.float32, 1), (np.uint8, 255)])
def test_short_range_mean_leaves_long_offsets_out(dtype, scale):
    affinities = np.zeros((3, 2, 3, 4), dtype=dtype)
    affinities[0], affinities[1] = scale, scale
    offsets = [(1, 0, 0), (0, 3, 0), (0, 0, -1)]
    mean = short_range_mean(affinities, offsets)
    np.testing.assert_array_equal(mean, np.full((2, 3, 4), 0.5, dtype=np.float32))


def test_short_range_mean_needs_a_short_range_offset():
    with pytest.raises(ValueError, match="is short-range"):
        short_range_mean(np.ones((1, 2, 3, 4)), [(3, 0, 0)])


@given(labels=LABELS, min_size=st.integers(0, 20))
def test_without_affinity_exactly_the_small_become_background(labels, min_size):
    expected = labels.copy()
    for label, size in zip(*np.unique(labels, return_counts=True), strict=True):
        if size < min_size:
            expected[labels == label] = 0
    assert same_partition(remove_small_fragments(labels, min_size), expected)


@given(labels=LABELS, min_size=st.integers(2, 20), seed=st.integers(0, 9))
def test_regrowing_keeps_the_large_and_the_background(labels, min_size, seed):
    affinity = np.random.default_rng(seed).random(labels.shape)
    grown = remove_small_fragments(labels, min_size, affinity)
    kept = remove_small_fragments(labels, min_size)
    assert same_partition(np.where(kept != 0, grown, 0), kept)
    assert not grown[labels == 0].any()
    assert set(np.unique(grown[grown != 0])) == set(np.unique(grown[kept != 0]))


def test_the_neighbour_across_the_stronger_affinity_takes_over():
    labels = np.array([[[1, 1, 7, 8, 9, 2, 2]]])
    affinity = np.array([[[1, 1, 0.9, 0.8, 0.1, 1, 1]]])
    grown = remove_small_fragments(labels, 2, affinity)
    np.testing.assert_array_equal(grown, [[[1, 1, 1, 1, 2, 2, 2]]])


def test_nothing_grows_where_all_are_small():
    labels = np.arange(12).reshape(1, 3, 4) + 1
    assert not remove_small_fragments(labels, 2, np.ones(labels.shape)).any()


def test_a_small_fragment_without_neighbours_goes():
    labels = np.array([[[1, 1, 1, 0, 2]]])
    grown = remove_small_fragments(labels, 2, np.ones(labels.shape))
    np.testing.assert_array_equal(grown, [[[1, 1, 1, 0, 0]]])


def test_weak_fragments_become_background():
    labels = np.array([[[7, 7, 0, 5, 5]]], dtype=np.uint64)
    affinity = np.array([[[0.2, 0.5, 0.0, 0.4, 0.4]]])
    weak_gone = remove_weak_fragments(labels, affinity, 0.38)
    np.testing.assert_array_equal(weak_gone, [[[0, 0, 0, 1, 1]]])
    assert same_partition(remove_weak_fragments(labels, affinity, 0.3), labels)


@pytest.mark.parametrize("operation", [remove_small_fragments, remove_weak_fragments])
def test_rejects_an_affinity_of_another_shape(operation):
    labels, affinity = np.ones((2, 3, 4), dtype=int), np.ones((2, 3, 5))
    arguments = {"min_size": 2} if operation is remove_small_fragments else {"min_affinity": 0.5}
    with pytest.raises(ValueError, match="affinity must have the shape"):
        operation(labels, affinity=affinity, **arguments)
