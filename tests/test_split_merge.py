import csv
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from custom.contingency import Table, table_of
from custom.metrics import variation_of_information
from custom.split_merge import WORST, Pieces, merges, splits

SIZE, OFFSET = (40.0, 8.0, 10.0), (400.0, 0.0, 80.0)


def of(truth: Any, segmentation: Any) -> Table:
    known = truth != 0
    return table_of(truth.astype(np.uint64), segmentation.astype(np.uint64), known, truth.shape)


def row(*runs: tuple[int, int]) -> Any:
    """A volume (1, 1, W) of runs of ids."""
    return np.repeat([id_ for id_, _ in runs], [length for _, length in runs]).reshape(1, 1, -1)


def table(pieces: Pieces) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(pieces.as_csv(SIZE, OFFSET).decode())))


def test_an_object_in_three_pieces_by_hand() -> None:
    """Piece 7 has half of object 1, the others a quarter each; object 2 is whole."""
    truth, found = row((1, 8), (2, 8)), row((7, 4), (8, 2), (9, 2), (5, 8))
    one, two, three, whole = table(splits(of(truth, found)))
    assert [r["segment_id"] for r in (one, two, three)] == ["7", "8", "9"]
    assert {r["truth_id"] for r in (one, two, three)} == {"1"}
    assert [float(r["share"]) for r in (one, two, three)] == [0.5, 0.25, 0.25]
    assert {float(r["voi_split"]) for r in (one, two, three)} == {0.75}
    assert [float(r["voi_split_part"]) for r in (one, two, three)] == [0.25, 0.25, 0.25]
    assert (one["segments"], one["truth_voxels"], one["voxels"]) == ("3", "8", "4")
    assert (two["x"], two["beside_segment_id"]) == ("4", "7"), "at the border to the largest"
    assert (three["x"], three["beside_segment_id"]) == ("6", "8"), "it does not touch the largest"
    assert (whole["truth_id"], whole["segments"], float(whole["voi_split"])) == ("2", "1", 0)
    assert (whole["x"], whole["beside_segment_id"]) == ("11", "")
    assert (float(two["z_nm"]), float(two["y_nm"]), float(two["x_nm"])) == (400, 0, 120)


def test_a_segment_over_two_objects_by_hand() -> None:
    truth, found = row((3, 2), (1, 6), (2, 8)), row((9, 2), (5, 14))
    one, two, alone = table(merges(of(truth, found)))
    assert (one["segment_id"], one["truth_id"], one["truths"]) == ("5", "2", "2")
    assert (two["truth_id"], two["x"], two["beside_truth_id"]) == ("1", "7", "2")
    assert float(one["voi_merge"]) == pytest.approx(variation_of_information(truth, found)[1])
    assert (alone["segment_id"], float(alone["voi_merge"])) == ("9", 0)


def test_pieces_that_do_not_touch_have_a_voxel_inside() -> None:
    truth, found = row((1, 12)), row((7, 6), (0, 1), (8, 5))
    rows = table(splits(of(truth, found)))
    assert [(r["segment_id"], r["x"], r["beside_segment_id"]) for r in rows] == [
        ("7", "2", ""),
        ("8", "9", ""),
        ("0", "6", ""),
    ]


def test_the_border_to_the_largest_piece_wins_over_a_longer_one() -> None:
    found = np.array([[[7, 7, 7, 7, 7, 8], [7, 7, 7, 9, 9, 8], [7, 7, 7, 9, 9, 8]]])
    pieces = {r["segment_id"]: r for r in table(splits(of(np.ones_like(found), found)))}
    piece = pieces["8"]
    assert (piece["y"], piece["x"], piece["beside_segment_id"]) == ("0", "5", "7")


def test_the_worst_are_named_first_with_their_second_piece() -> None:
    truth = row((1, 20), (2, 40), (3, 20))
    found = row((4, 10), (5, 10), (6, 39), (7, 1), (8, 20))
    worst = splits(of(truth, found)).worst(SIZE, OFFSET)
    assert [(w["truth_id"], w["segment_id"]) for w in worst] == [(1, 5), (2, 7)]
    assert worst[1]["x"] == 59
    halves = of(np.arange(40).reshape(1, 1, -1) // 2 + 1, np.arange(1, 41).reshape(1, 1, -1))
    assert len(splits(halves).worst(SIZE, OFFSET)) == WORST


SHAPES = array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5)


@given(SHAPES.flatmap(lambda s: st.tuples(*[arrays(np.int64, s, elements=st.integers(0, 4))] * 2)))
def test_contributions_add_up_to_the_scores_and_positions_lie_in_their_pairs(pair: Any) -> None:
    truth, found = pair
    scores = variation_of_information(truth, found)
    both = of(truth, found)
    for pieces, score, wholes, parts in (
        (splits(both), scores[0], truth, found),
        (merges(both), scores[1], found, truth),
    ):
        assert pieces.bits.sum() == pytest.approx(score, abs=1e-9)
        once = pieces.rank == 0
        assert pieces.whole_bits[once].sum() == pytest.approx(score, abs=1e-9)
        assert (np.diff(pieces.whole_bits) <= 1e-12).all(), "the worst first"
        at = tuple(pieces.positions.T)
        np.testing.assert_array_equal(wholes[at], pieces.whole)
        np.testing.assert_array_equal(parts[at], pieces.part)


def test_ids_beyond_a_float_are_written_exactly() -> None:
    big = np.full((1, 2, 3), 2**63 + 1, np.uint64)
    (found,) = table(splits(table_of(big, big, big > 0, big.shape)))
    assert (found["truth_id"], found["segment_id"]) == (str(2**63 + 1),) * 2


def test_nothing_has_no_rows() -> None:
    nothing = of(np.zeros((2, 3, 4), int), np.ones((2, 3, 4), int))
    for pieces in (splits(nothing), merges(nothing)):
        assert table(pieces) == []
        assert pieces.worst(SIZE, OFFSET) == []
