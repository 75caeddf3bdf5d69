import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from custom.error_map import (
    BOTH,
    COLOURS,
    FALSE,
    MERGE,
    MISSING,
    SPLIT,
    WRONG,
    class_errors,
    error_colours,
    object_errors,
    object_errors_by_section,
)


def test_every_kind_of_error_is_where_it_was_planted() -> None:
    truth = np.array([1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 0])
    found = np.array([5, 5, 5, 6, 7, 7, 0, 7, 9, 9, 7, 7, 8])
    # object 1 loses a piece; 4 is joined to 2; 3 loses a piece to 2
    expected = [0, 0, 0, SPLIT, 0, 0, MISSING, BOTH, 0, 0, MERGE, MERGE, 0]
    assert object_errors(truth, found).tolist() == expected


def slow(truth: NDArray[np.int64], found: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The definition, voxel by voxel."""
    codes = np.zeros(truth.shape, np.uint8)
    for voxel in np.ndindex(truth.shape):
        if truth[voxel] == 0:
            continue
        if found[voxel] == 0:
            codes[voxel] = MISSING
            continue
        segments, counts = np.unique(
            found[(truth == truth[voxel]) & (found != 0)], return_counts=True
        )
        objects, others = np.unique(
            truth[(found == found[voxel]) & (truth != 0)], return_counts=True
        )
        split = segments[counts.argmax()] != found[voxel]
        merge = objects[others.argmax()] != truth[voxel]
        codes[voxel] = {(0, 0): 0, (1, 0): SPLIT, (0, 1): MERGE, (1, 1): BOTH}[(split, merge)]
    return codes


@given(st.integers(0, 500))
def test_errors_are_as_defined(seed: int) -> None:
    draw = np.random.default_rng(seed)
    truth, found = draw.integers(0, 4, (2, 3, 4, 5))
    np.testing.assert_array_equal(object_errors(truth, found), slow(truth, found))


def test_renaming_makes_no_error() -> None:
    truth = np.random.default_rng(0).integers(0, 5, (4, 5, 6))
    renamed = np.array([0, 70, 3, 10, 42])[truth]
    assert not object_errors(truth, renamed).any()
    assert not object_errors(np.zeros_like(truth), renamed).any()


def test_sections_may_be_named_each_on_their_own() -> None:
    truth = np.ones((2, 3, 3), np.int64)
    found = truth * np.array([5, 6])[:, None, None]
    assert object_errors(truth, found).any()
    assert not object_errors_by_section(truth, found).any()


def test_classes_are_missing_false_or_wrong() -> None:
    truth = np.array([0, 0, 1, 1, 1, 2, -1, -1])
    found = np.array([0, 1, 0, 1, 2, 1, 0, 2], dtype=np.uint64)
    assert class_errors(truth, found).tolist() == [0, FALSE, MISSING, 0, WRONG, WRONG, 0, 0]


@pytest.mark.parametrize("name", COLOURS)
def test_an_error_has_its_colour_over_darkened_grey(name: str) -> None:
    code, colour = COLOURS[name]
    codes, grey = np.array([[code, 0]], np.uint8), np.full((1, 2, 3), 200, np.uint8)
    assert error_colours(codes, grey).tolist() == [[list(colour), [100] * 3]]
