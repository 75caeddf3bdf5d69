from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from custom.segmentation.agglomeration import agglomerate
from custom.segmentation.fragments import connected_components
from tests.oracles import affinities_by_loop, same_partition

OFFSETS = [(1, 0, 0), (0, -1, 0), (0, 0, 1), (0, 3, 0), (-2, 0, 1)]
NEAREST = [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
SHAPES = array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6)


def perfect(labels, offsets):
    return (255 * affinities_by_loop(labels, offsets)[0]).astype(np.uint8)


def agglomerate_by_loop(fragments, affinities, offsets, threshold, quantile):
    """Join the best pair, gather all links anew, until no pair is above the threshold."""
    labels = fragments.astype(object)
    while True:
        links = {}
        for k, offset in enumerate(offsets):
            for p in np.ndindex(labels.shape):
                q = tuple(a + o for a, o in zip(p, offset, strict=True))
                if not all(0 <= a < n for a, n in zip(q, labels.shape, strict=True)):
                    continue
                a, b = labels[p], labels[q]
                if a and b and a != b:
                    links.setdefault(frozenset((a, b)), []).append(int(affinities[k][p]))
        scores = {
            pair: np.quantile(values, quantile, method="inverted_cdf") / 255
            for pair, values in links.items()
        }
        best = max(scores, key=scores.get, default=None)
        if best is None or scores[best] <= threshold:
            return labels
        one, other = best
        labels[labels == other] = one


@given(
    truth=arrays(np.uint8, SHAPES, elements=st.integers(0, 3)),
    cut=st.integers(1, 4),
    threshold=st.sampled_from([0.0, 0.5, 0.99]),
    quantile=st.sampled_from([0.01, 0.5, 1.0]),
)
def test_perfect_affinities_join_the_pieces_of_every_object(truth, cut, threshold, quantile):
    truth = connected_components(truth)
    blocks = sum(np.indices(truth.shape)[a] // cut * (10 if a else 100) ** a for a in range(3))
    pieces = connected_components(np.where(truth == 0, 0, truth.astype(int) * 5000 + blocks))
    found = agglomerate(pieces, perfect(truth, OFFSETS), OFFSETS, threshold, quantile)
    assert found.dtype == np.uint64
    assert same_partition(found, truth)


@given(st.data())
def test_equal_to_the_loop_over_pairs(data):
    fragments = data.draw(arrays(np.uint8, (2, 3, 4), elements=st.integers(0, 5)))
    seed = data.draw(st.integers(0, 999))
    affinities = np.random.default_rng(seed).permutation(24 * len(OFFSETS)) * 2  # no ties
    affinities = affinities.reshape(len(OFFSETS), 2, 3, 4).astype(np.uint8)
    threshold = data.draw(st.sampled_from([0.0, 0.3, 0.5, 0.8]))
    quantile = data.draw(st.sampled_from([0.25, 0.5, 0.75, 1.0]))
    found = agglomerate(fragments, affinities, OFFSETS, threshold, quantile)
    expected = agglomerate_by_loop(fragments, affinities, OFFSETS, threshold, quantile)
    assert same_partition(found, expected)


def neck():
    """Two halves, and the affinities across their border: a fifth is open."""
    fragments = np.ones((5, 5, 8), np.uint64)
    fragments[..., 4:] = 2
    affinities = perfect(fragments, NEAREST)
    affinities[2, 2, :, 3] = 230
    return fragments, affinities


@pytest.mark.parametrize(("quantile", "objects"), [(0.9, 1), (0.81, 1), (0.79, 2), (0.5, 2)])
def test_a_thin_neck_is_joined_by_a_high_quantile_and_not_by_the_median(quantile, objects):
    fragments, affinities = neck()
    assert agglomerate(fragments, affinities, NEAREST, 0.85, quantile).max() == objects


@pytest.mark.parametrize(("threshold", "objects"), [(229 / 255, 1), (230 / 255, 2), (0.95, 2)])
def test_pairs_are_joined_above_the_threshold_and_not_at_it(threshold, objects):
    fragments, affinities = neck()
    assert agglomerate(fragments, affinities, NEAREST, threshold, 1.0).max() == objects


@given(seed=st.integers(0, 999), quantile=st.sampled_from([0.3, 0.5, 0.9]))
def test_a_lower_threshold_only_joins_more(seed, quantile):
    random = np.random.default_rng(seed)
    fragments = random.integers(0, 12, (4, 5, 6))
    affinities = random.integers(0, 256, (len(OFFSETS), 4, 5, 6)).astype(np.uint8)
    segments = [
        agglomerate(fragments, affinities, OFFSETS, threshold, quantile)
        for threshold in (1.0, 0.9, 0.7, 0.5, 0.3, 0.0)
    ]
    assert same_partition(segments[0], fragments), "nothing is above 1"
    for finer, coarser in pairwise(segments):
        assert len({*zip(finer.ravel(), coarser.ravel(), strict=True)}) == len(np.unique(finer))
        assert not coarser[finer == 0].any()


def test_background_joins_nothing():
    fragments = np.zeros((2, 3, 7), np.int32)
    fragments[..., :3], fragments[..., 4:] = 3, 8
    found = agglomerate(fragments, np.full((3, 2, 3, 7), 255, np.uint8), NEAREST, 0.1)
    assert same_partition(found, fragments)
    empty = np.zeros((2, 3, 4), np.uint64)
    assert not agglomerate(empty, np.full((3, 2, 3, 4), 255, np.uint8), NEAREST, 0.0).any()


def test_fragments_that_no_link_reaches_stay_apart():
    fragments = np.array([1, 0, 0, 2]).reshape(1, 1, 4)
    full = np.full((1, 1, 1, 4), 255, np.uint8)
    assert agglomerate(fragments, full, [(0, 0, 1)], 0.1).max() == 2
    assert agglomerate(fragments, full, [(0, 0, -3)], 0.1).max() == 1
    assert agglomerate(fragments, full, [(0, 0, 9)], 0.1).max() == 2, "leaves the array"


def test_ids_beyond_32_bits_are_kept_apart():
    ids = np.array([0, 1, 2**32, 2**32 + 1, 2**63 + 1, 2**63 + 2], np.uint64)
    fragments = ids[np.random.default_rng(0).integers(0, 6, (3, 4, 5))]
    closed = np.zeros((3, 3, 4, 5), np.uint8)
    found = agglomerate(fragments, closed, NEAREST, 0.0)
    assert same_partition(found, fragments)
    assert sorted(np.unique(found)) == [0, 1, 2, 3, 4, 5]


def test_the_arguments_are_left_alone():
    fragments, affinities = neck()
    kept = fragments.copy(), affinities.copy()
    agglomerate(fragments, affinities, NEAREST, 0.1)
    np.testing.assert_array_equal(fragments, kept[0])
    np.testing.assert_array_equal(affinities, kept[1])


@pytest.mark.parametrize(
    ("offsets", "threshold", "quantile", "message"),
    [
        (NEAREST[:2], 0.5, 0.5, "affinities must be .* with K = 2"),
        (NEAREST, 1.1, 0.5, "must be 0 to 1, got 1.1"),
        (NEAREST, 0.5, 0.0, "must be 0 to 1, got 0.5 and 0.0"),
    ],
    ids=["offsets", "threshold", "quantile"],
)
def test_rejects(offsets, threshold, quantile, message):
    fragments, affinities = neck()
    with pytest.raises(ValueError, match=message):
        agglomerate(fragments, affinities, offsets, threshold, quantile)
