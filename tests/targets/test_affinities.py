import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from custom.targets.affinities import affinities
from tests.oracles import affinities_by_loop

SHAPES = array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5)
OFFSETS = st.lists(
    st.tuples(*[st.sampled_from([0, 1, -1, 2, -3, 7])] * 3).filter(any),  # 7: beyond every shape
    min_size=1,
    max_size=4,
)
IDS = st.sampled_from([0, 1, 2, 2**32 + 1, 2**63 + 1])


@given(
    data=st.data(),
    shape=SHAPES,
    offsets=OFFSETS,
    background=st.sampled_from(["apart", "joined"]),
)
def test_equal_to_the_loop_over_voxels(data, shape, offsets, background):
    labels = data.draw(arrays(np.uint64, shape, elements=IDS))
    mask = data.draw(st.none() | arrays(np.bool_, shape))
    affinity, valid = affinities(labels, offsets, mask, background)
    expected_affinity, expected_valid = affinities_by_loop(labels, offsets, mask, background)
    np.testing.assert_array_equal(affinity, expected_affinity)
    np.testing.assert_array_equal(valid, expected_valid)
    assert (affinity.dtype, valid.dtype) == (np.float32, np.bool_)


def test_a_grid_typed_by_hand():
    labels = np.array([[[1, 1, 2], [0, 1, 2]]])
    affinity, valid = affinities(labels, [(0, 0, 1), (0, -1, 0)])
    np.testing.assert_array_equal(affinity[0], [[[1, 0, 0], [0, 0, 0]]])
    np.testing.assert_array_equal(affinity[1], [[[0, 0, 0], [0, 1, 1]]])
    np.testing.assert_array_equal(valid[0], [[[1, 1, 0], [1, 1, 0]]])
    np.testing.assert_array_equal(valid[1], [[[0, 0, 0], [1, 1, 1]]])


def test_joined_background_is_one_more_object():
    labels = np.array([[[0, 0, 1, 1, 2]]])
    apart, joined = (affinities(labels, [(0, 0, 1)], None, b)[0][0] for b in ("apart", "joined"))
    np.testing.assert_array_equal(apart, [[[0, 0, 1, 0, 0]]])
    np.testing.assert_array_equal(joined, [[[1, 0, 1, 0, 0]]])


def test_both_ends_must_lie_in_the_mask():
    labels = np.ones((1, 1, 4), dtype=int)
    mask = np.array([[[True, True, False, True]]])
    _, valid = affinities(labels, [(0, 0, 1), (0, 0, -1)], mask=mask)
    np.testing.assert_array_equal(valid[:, 0, 0], [[1, 0, 0, 0], [0, 1, 0, 0]])


@given(data=st.data(), shape=SHAPES, offset=st.tuples(*[st.integers(-3, 3)] * 3).filter(any))
def test_the_opposite_offset_sees_the_same_pairs(data, shape, offset):
    labels = data.draw(arrays(np.uint8, shape, elements=st.integers(0, 3)))
    affinity, valid = affinities(labels, [offset, tuple(-o for o in offset)])
    assert affinity[0].sum() == affinity[1].sum()
    assert valid[0].sum() == valid[1].sum()


@pytest.mark.parametrize(
    ("labels", "offsets", "mask", "message"),
    [
        (np.ones((2, 3)), [(0, 0, 1)], None, "labels must be 3D"),
        (np.ones((2, 3, 4)), [(0, 0, 1), (0, 0, 0)], None, "offset 1 is zero"),
        (np.ones((2, 3, 4)), [(0, 1)], None, "offset 0 must have three numbers"),
        (np.ones((2, 3, 4)), [(0, 0, 1)], np.ones((2, 3, 5), bool), "mask must have the shape"),
    ],
    ids=["2D labels", "zero offset", "2D offset", "mask of another shape"],
)
def test_rejects(labels, offsets, mask, message):
    with pytest.raises(ValueError, match=message):
        affinities(labels.astype(int), offsets, mask=mask)


def test_rejects_an_unknown_background():
    with pytest.raises(ValueError, match="background must be 'apart' or 'joined', got 'together'"):
        affinities(np.ones((2, 3, 4), int), [(0, 0, 1)], background="together")
