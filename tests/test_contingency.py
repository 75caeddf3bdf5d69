from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from custom.contingency import Table, added, contingency_of, table_of, tally
from custom.metrics import (
    average_precisions,
    instance_scores,
    object_counts,
    precisions_of_table,
    scores_of_table,
)

SHAPES = array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6)
BIG = np.array([0, 1, 2**32, 2**32 + 1, 2**63, 2**63 + 1], np.uint64)  # some equal in float64
NAMES = ("pairs", "splits", "merges")


@st.composite
def volumes(draw: Any) -> Any:
    """Truth, segmentation, where they count, the size of a block and whether sections are apart."""
    shape = draw(SHAPES)
    ids = [draw(arrays(np.int64, shape, elements=st.integers(0, 5))) for _ in range(2)]
    known = draw(arrays(np.bool_, shape)) & (ids[0] != 0)
    block = draw(st.tuples(*(st.integers(1, 7) for _ in range(3))))
    return BIG[ids[0]], BIG[ids[1]], known, block, draw(st.booleans())


def blocks(shape: tuple[int, ...], size: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    ranges = (range(0, length, step) for length, step in zip(shape, size, strict=True))
    for corner in product(*ranges):
        ends = (min(c + s, n) for c, s, n in zip(corner, size, shape, strict=True))
        yield tuple(slice(c, e) for c, e in zip(corner, ends, strict=True))


def tables(volume: Any) -> list[Table]:
    """A table per block."""
    truth, segmentation, known, size, per_section = volume
    found = []
    for block in blocks(truth.shape, size):
        wider = tuple(slice(part.start, part.stop + 1) for part in block)
        arrays = (values[wider] for values in (truth, segmentation, known))
        shape = [part.stop - part.start for part in block]
        found.append(table_of(*arrays, shape, [part.start for part in block], per_section))
    return found


def merged(parts: list[Table]) -> Table:
    columns = {"pairs": 3, "splits": 4, "merges": 4}
    return Table(**{n: added((getattr(p, n) for p in parts), k) for n, k in columns.items()})


@given(volumes())
def test_scores_of_blocks_are_those_of_the_whole_arrays(volume: Any) -> None:
    truth, segmentation, known, _, per_section = volume
    counted = contingency_of(merged(tables(volume)).pairs, per_section)
    whole = (np.where(known, truth, 0), segmentation, per_section)
    assert scores_of_table(counted) == pytest.approx(instance_scores(*whole), abs=1e-9)
    assert precisions_of_table(counted) == pytest.approx(average_precisions(*whole), abs=1e-9)
    assert counted.objects == object_counts(*whole)


@given(volumes())
def test_counts_and_faces_do_not_depend_on_the_blocks(volume: Any) -> None:
    truth, segmentation, known, _, per_section = volume
    in_blocks = merged(tables(volume))
    at_once = table_of(truth, segmentation, known, truth.shape, (0, 0, 0), per_section)
    for name in NAMES:
        one, other = getattr(in_blocks, name), getattr(at_once, name)
        np.testing.assert_array_equal(one.keys, other.keys)
        np.testing.assert_array_equal(one.counts, other.counts)


@given(volumes(), st.randoms(use_true_random=False))
def test_the_order_of_the_blocks_does_not_matter(volume: Any, random: Any) -> None:
    parts = tables(volume)
    expected = merged(parts)
    random.shuffle(parts)
    for name in NAMES:
        one, other = getattr(merged(parts), name), getattr(expected, name)
        for values in ("keys", "counts", "positions", "extents"):
            np.testing.assert_array_equal(getattr(one, values), getattr(other, values))


@given(volumes())
def test_a_position_is_a_voxel_of_its_pair(volume: Any) -> None:
    truth, segmentation, known, _, per_section = volume
    pairs = merged(tables(volume)).pairs
    at = tuple(pairs.positions.T)
    np.testing.assert_array_equal(pairs.keys[:, 1], truth[at])
    np.testing.assert_array_equal(pairs.keys[:, 2], segmentation[at])
    assert known[at].all()
    if per_section:
        np.testing.assert_array_equal(pairs.keys[:, 0], at[0])


@given(volumes())
def test_faces_lie_between_two_parts_of_one_object(volume: Any) -> None:
    truth, segmentation, known, _, per_section = volume
    table = merged(tables(volume))
    for found, objects, parts in (
        (table.splits, truth, segmentation),
        (table.merges, segmentation, truth),
    ):
        expected = faces(objects, parts, known, 1 if per_section else 0)
        keys = [(w, o, b) for _, w, o, b in found.keys.tolist()]
        counted: dict[tuple[int, int, int], int] = {}
        for key, count in zip(keys, found.counts.tolist(), strict=True):
            counted[key] = counted.get(key, 0) + count
        assert counted == {key: len(places) for key, places in expected.items()}
        for key, place in zip(keys, found.positions.tolist(), strict=True):
            assert tuple(place) in expected[key]


def faces(objects: Any, parts: Any, known: Any, first: int) -> dict[Any, list[Any]]:
    """Voxels at faces by object, own part and the part beyond, voxel by voxel."""
    found: dict[Any, list[Any]] = {}
    for here in product(*map(range, objects.shape)):
        for axis, step in product(range(first, 3), (-1, 1)):
            there = tuple(h + step * (axis == a) for a, h in enumerate(here))
            if min(there) < 0 or any(t >= n for t, n in zip(there, objects.shape, strict=True)):
                continue
            whole, own, other = int(objects[here]), int(parts[here]), int(parts[there])
            cut = known[here] and known[there] and whole == objects[there] and own != other
            if cut and whole and own and other:
                found.setdefault((whole, own, other), []).append(here)
    return found


def test_a_position_lies_in_the_middle_of_the_longest_row() -> None:
    truth = np.ones((2, 2, 9), np.uint64)
    segmentation = np.full(truth.shape, 7, np.uint64)
    segmentation[:, :, 4:] = 5
    segmentation[1, 1] = 5
    pairs = table_of(truth, segmentation, truth > 0, truth.shape, (10, 20, 30)).pairs
    assert pairs.keys[:, 2].tolist() == [5, 7]
    assert pairs.positions.tolist() == [[11, 21, 34], [10, 20, 31]]


def test_the_place_of_a_face_is_near_the_middle_of_all() -> None:
    truth = np.ones((5, 7, 4), np.uint64)
    segmentation = np.full(truth.shape, 7, np.uint64)
    segmentation[:, :, 2:] = 5
    splits = table_of(truth, segmentation, truth > 0, truth.shape).splits
    assert splits.keys.tolist() == [[0, 1, 5, 7], [0, 1, 7, 5]]
    assert splits.positions.tolist() == [[2, 3, 2], [2, 3, 1]]
    assert splits.counts.tolist() == [35, 35]


def test_the_larger_extent_keeps_its_position() -> None:
    keys = np.array([[4], [3], [4]], np.uint64)
    places = np.arange(9).reshape(3, 3)
    found = tally(keys, np.array([1, 2, 3]), places, np.array([5, 1, 6]))
    assert found.keys.tolist() == [[3], [4]]
    assert found.counts.tolist() == [2, 4]
    assert found.positions.tolist() == [[3, 4, 5], [6, 7, 8]]
    assert found.extents.tolist() == [1, 6]
