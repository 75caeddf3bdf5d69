import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from custom.segmentation.components import affinity_components
from custom.segmentation.fragments import connected_components
from tests.oracles import same_partition
from tests.segmentation.laws import IN_PLANE, OFFSETS, flipped, perfect

SHAPES = array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6)


@given(
    labels=arrays(np.uint8, SHAPES, elements=st.integers(0, 3)),
    threshold=st.sampled_from([0.0, 0.5, 0.99]),
)
def test_perfect_affinities_give_back_the_pieces_of_the_truth(labels, threshold):
    truth = connected_components(labels)
    found = affinity_components(perfect(truth), OFFSETS, threshold, truth != 0)
    assert same_partition(found, truth)


@given(st.data())
def test_joined_by_a_path_of_links_above_the_threshold(data):
    """Of a row: cut exactly where a link is not above it."""
    links = data.draw(arrays(np.uint8, 9))
    threshold = data.draw(st.sampled_from([0.0, 127 / 255, 128 / 255, 0.5, 1.0]))
    found = affinity_components(
        links.reshape(1, 1, 1, 9), [(0, 0, 1)], threshold, np.ones((1, 1, 9), bool)
    )
    expected = 1 + np.cumsum([0, *(links[:-1] / 255 <= threshold)])
    np.testing.assert_array_equal(found.ravel(), expected)


@given(affinities=arrays(np.uint8, (6, 3, 4, 5)), axis=st.integers(0, 2))
def test_seen_in_a_mirror_it_is_the_same(affinities, axis):
    mirrored = affinity_components(*flipped(affinities, OFFSETS, axis), 0.5)
    assert same_partition(np.flip(mirrored, axis), affinity_components(affinities, OFFSETS, 0.5))


def test_long_offsets_link_nothing():
    affinities = np.zeros((6, 3, 4, 5), np.uint8)
    affinities[3:] = 255
    assert affinity_components(affinities, OFFSETS).max() == 60


def test_without_an_offset_along_z_sections_are_apart():
    found = affinity_components(np.full((4, 3, 4, 5), 255, np.uint8), IN_PLANE)
    np.testing.assert_array_equal(
        found, np.broadcast_to(np.arange(1, 4).reshape(3, 1, 1), (3, 4, 5))
    )


def test_nothing_is_linked_through_masked_voxels():
    mask = np.array([1, 1, 0, 1, 1], bool).reshape(1, 1, 5)
    found = affinity_components(np.full((1, 1, 1, 5), 255, np.uint8), [(0, 0, 1)], 0.5, mask)
    np.testing.assert_array_equal(found.ravel(), [1, 1, 0, 2, 2])


def test_nothing_in_nothing_out():
    mask = np.zeros((2, 3, 4), bool)
    affinities = np.full((6, *mask.shape), 255, np.uint8)
    assert not affinity_components(affinities, OFFSETS, 0.5, mask).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"affinities": np.ones((2, 3, 4, 5), np.uint8)}, "one channel for each of the 1 offsets"),
        ({"affinities": np.ones((1, 3, 4, 5))}, "uint8"),
        ({"mask": np.ones((3, 4, 6), bool)}, "mask must have the shape"),
        ({"threshold": 1.5}, "threshold must be 0 to 1, got 1.5"),
    ],
    ids=["channels", "dtype", "mask", "threshold"],
)
def test_rejects(options, message):
    arguments = {"affinities": np.ones((1, 3, 4, 5), np.uint8), "offsets": [(0, 0, 1)]} | options
    with pytest.raises(ValueError, match=message):
        affinity_components(**arguments)
