import numpy as np
import pytest

from custom.run_length import Traced, expected_run_length


def chain(segments: list[int], lengths: list[float] | None = None) -> Traced:
    """Nodes in a row."""
    count = len(segments) - 1
    edges = np.stack([np.arange(count), np.arange(count) + 1], axis=1)
    return Traced(
        edges, np.array(lengths or [1.0] * count, np.float64), np.array(segments, np.uint64)
    )


@pytest.mark.parametrize(
    ("skeletons", "expected", "correct", "split", "merged", "omitted"),
    [
        ([chain([7, 7, 7, 7])], 3, 3, 0, 0, 0),
        ([chain([7, 7, 8, 8])], 2 / 3, 2, 1, 0, 0),
        ([chain([7, 7, 8, 8], [3, 1, 5])], (9 + 25) / 9, 8, 1, 0, 0),
        ([chain([7, 7]), chain([8, 8, 8, 8])], (1 + 9) / 4, 4, 0, 0, 0),
        ([chain([7, 7, 7]), chain([7, 7])], 0, 0, 0, 3, 0),
        ([chain([7, 7, 9, 9, 9]), chain([9, 8, 8])], (1 + 1) / 6, 2, 0, 4, 0),
        ([chain([7, 0, 7, 7]), chain([0, 8])], 1 / 4, 1, 0, 0, 3),
        ([chain([7, 7, 8, 7, 7])], 4 / 4, 2, 2, 0, 0),
        ([chain([2**63, 2**63, 2**63 + 1])], 1 / 2, 1, 1, 0, 0),
        ([], 0, 0, 0, 0, 0),
        ([chain([5])], 0, 0, 0, 0, 0),
    ],
    ids=[
        "whole",
        "cut in the middle",
        "longer runs count by their square",
        "longer skeletons count more",
        "two joined",
        "a part of each joined",
        "left out",
        "the same segment again is one run",
        "ids beyond a float",
        "none",
        "a single node",
    ],
)
def test_run_length_by_hand(
    skeletons: list[Traced],
    expected: float,
    correct: float,
    split: float,
    merged: float,
    omitted: float,
) -> None:
    found = expected_run_length(skeletons)
    assert found.expected == pytest.approx(expected)
    kinds = {"correct": correct, "split": split, "merged": merged, "omitted": omitted}
    assert found.lengths == pytest.approx(kinds)
    assert found.total == pytest.approx(sum(kinds.values()))
