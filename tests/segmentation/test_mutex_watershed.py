import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from custom.segmentation.fragments import connected_components
from custom.segmentation.mutex_watershed import mutex_watershed
from tests.oracles import affinities_by_loop, mutex_watershed_by_loop, same_partition

OFFSETS = [tuple(d if a == axis else 0 for a in range(3)) for d in (1, 3, 9) for axis in range(3)]
ALL_EDGES = [(1, 1, 1)] * len(OFFSETS)


def chain(*affinities):
    """A row of voxels whose neighbours have these affinities."""
    return np.array([*affinities, 0.0]).reshape(1, 1, 1, -1), [(0, 0, 1)]


@given(
    labels=arrays(
        np.uint8,
        array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6),
        elements=st.integers(0, 3),
    ),
    sign=st.sampled_from([1, -1]),
    strides=st.sampled_from([None, ALL_EDGES]),
    as_uint8=st.booleans(),
)
def test_perfect_affinities_give_back_the_truth(labels, sign, strides, as_uint8):
    truth = connected_components(labels)
    offsets = [tuple(sign * o for o in offset) for offset in OFFSETS]
    affinities, _ = affinities_by_loop(truth, offsets)
    if as_uint8:
        affinities = (255 * affinities).astype(np.uint8)
    segments = mutex_watershed(affinities, offsets, strides=strides, mask=truth != 0)
    assert segments.dtype == np.uint64
    assert same_partition(segments, truth)


@given(data=st.data())
def test_equal_to_the_loop_over_edges(data):
    shape = data.draw(array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=3))
    offsets = [(1, 0, 0), (0, -1, 0), (0, 0, 1), (0, 1, 2), (2, 0, -1)]
    scores = np.arange(1, len(offsets) * np.prod(shape) + 1) / (len(offsets) * np.prod(shape) + 1)
    scores = np.array(data.draw(st.permutations(scores.tolist())))
    scores *= data.draw(arrays(np.int8, scores.shape, elements=st.sampled_from([-1, 1])))
    scores = scores.reshape(len(offsets), *shape) / 2
    segments = mutex_watershed(scores + 0.5, offsets, bias=-0.5, strides=[(1, 1, 1)] * len(offsets))
    assert same_partition(segments, mutex_watershed_by_loop(scores, offsets))


def test_long_offsets_join_pieces_that_do_not_touch():
    truth = np.zeros((1, 2, 7), dtype=int)
    truth[0, 0, [0, 3, 6]] = 5
    affinities, _ = affinities_by_loop(truth, OFFSETS)
    segments = mutex_watershed(affinities, OFFSETS, strides=ALL_EDGES, mask=truth != 0)
    assert same_partition(segments, truth)


def test_strong_repulsion_wins_over_weak_attraction():
    offsets = [(0, 0, 1), (0, 0, 2)]
    affinities = np.array([[0.9, 0.6, 0.0], [0.1, 0.0, 0.0]]).reshape(2, 1, 1, 3)
    segments = mutex_watershed(affinities, offsets, strides=[(1, 1, 1)] * 2)
    np.testing.assert_array_equal(segments.ravel(), [1, 1, 2])
    affinities[1, 0, 0, 0] = 0.45
    segments = mutex_watershed(affinities, offsets, strides=[(1, 1, 1)] * 2)
    np.testing.assert_array_equal(segments.ravel(), [1, 1, 1])


@pytest.mark.parametrize(
    ("bias", "expected"),
    [(-0.5, [1, 1, 1, 2]), (-0.7, [1, 1, 2, 3]), (0.0, [1, 1, 1, 1])],
)
def test_a_lower_bias_splits_more(bias, expected):
    affinities, offsets = chain(0.8, 0.6, 0.1)
    np.testing.assert_array_equal(mutex_watershed(affinities, offsets, bias).ravel(), expected)


@given(arrays(np.uint8, (1, 2, 3, 4)))
def test_uint8_stands_for_zero_to_one(affinities):
    offsets = [(0, 0, 1)]
    np.testing.assert_array_equal(
        mutex_watershed(affinities, offsets), mutex_watershed(affinities / 255, offsets)
    )


@given(data=st.data())
def test_two_biases_stand_for_short_and_long_offsets(data):
    affinities = data.draw(arrays(np.uint8, (4, 3, 4, 5)))
    offsets = [(0, 0, 1), (2, 0, 0), (0, -1, 1), (0, 1, 3)]
    np.testing.assert_array_equal(
        mutex_watershed(affinities, offsets, (-0.3, -0.8)),
        mutex_watershed(affinities, offsets, (-0.3, -0.8, -0.3, -0.8)),
    )


def test_by_default_long_offsets_are_taken_in_strides_of_four():
    rng = np.random.default_rng(0)
    affinities = rng.random((len(OFFSETS), 10, 11, 12))
    explicit = [(1, 1, 1)] * 3 + [(4, 4, 4)] * 6
    default = mutex_watershed(affinities, OFFSETS)
    np.testing.assert_array_equal(default, mutex_watershed(affinities, OFFSETS, strides=explicit))
    every_edge = mutex_watershed(affinities, OFFSETS, strides=ALL_EDGES)
    assert not same_partition(default, every_edge)


def test_nothing_is_joined_through_masked_voxels():
    affinities, offsets = chain(0.9, 0.9, 0.9, 0.9)
    mask = np.array([[[1, 1, 0, 1, 1]]], dtype=bool)
    segments = mutex_watershed(affinities, offsets, mask=mask)
    np.testing.assert_array_equal(segments.ravel(), [1, 1, 0, 2, 2])


def test_values_outside_the_mask_do_not_matter():
    affinities, offsets = chain(0.9, np.nan, np.nan, 0.9)
    mask = np.array([[[1, 1, 0, 1, 1]]], dtype=bool)
    segments = mutex_watershed(affinities, offsets, mask=mask)
    np.testing.assert_array_equal(segments.ravel(), [1, 1, 0, 2, 2])


def test_a_voxel_that_nothing_joins_is_a_fragment():
    affinities, offsets = chain(0.0, 0.5, 0.9)  # 0.5 has the score 0: no edge at all
    segments = mutex_watershed(affinities, offsets)
    np.testing.assert_array_equal(segments.ravel(), [1, 2, 3, 3])


def test_noise_is_seeded():
    affinities = np.full((3, 6, 7, 8), 0.5)
    first, again, other = (
        mutex_watershed(affinities, OFFSETS[:3], noise=0.1, seed=seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not same_partition(first, other)


def test_the_input_stays_as_it_was():
    affinities = np.full((1, 2, 3, 4), 0.7)
    before = affinities.copy()
    mutex_watershed(affinities, [(0, 0, 1)], noise=0.1)
    np.testing.assert_array_equal(affinities, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"affinities": np.ones((2, 3, 4, 5))}, "one channel for each of the 1 offsets"),
        ({"affinities": np.ones((1, 3, 4))}, r"affinities must be \(K, D, H, W\)"),
        ({"affinities": np.full((1, 3, 4, 5), np.nan)}, "affinities must be finite"),
        ({"bias": (-0.1, -0.2, -0.3)}, "bias must be one number, two"),
        ({"strides": [(1, 1, 1)] * 2}, "strides must be 1 triples"),
        ({"strides": [(1, 0, 1)]}, "strides must be 1 triples"),
        ({"mask": np.ones((3, 4, 6), bool)}, "mask must have the shape"),
    ],
    ids=["channels", "3D", "nan", "three biases", "too many strides", "stride 0", "mask"],
)
def test_rejects(options, message):
    with pytest.raises(ValueError, match=message):
        mutex_watershed(**{"affinities": np.ones((1, 3, 4, 5)), "offsets": [(0, 0, 1)]} | options)
