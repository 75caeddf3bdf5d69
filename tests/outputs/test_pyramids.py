from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from custom.outputs.pyramids import levels_of, shrunk

STEPS = st.tuples(*[st.sampled_from([1, 2])] * 3)
SHAPES = st.tuples(*[st.integers(1, 5)] * 3)


def windows(values: NDArray[Any], steps: tuple[int, int, int]) -> dict[tuple[int, ...], Any]:
    """What every voxel of the next level stands for, by its index."""
    found: dict[tuple[int, ...], Any] = {}
    for index, value in np.ndenumerate(values):
        coarse = tuple(i // s for i, s in zip(index, steps, strict=True))
        found.setdefault(coarse, []).append(int(value))
    return found


@given(SHAPES.flatmap(lambda s: arrays(np.uint8, s)), STEPS)
def test_uint8_is_averaged_over_what_is_there(values: Any, steps: tuple[int, int, int]) -> None:
    coarse = shrunk(values, steps)
    expected = windows(values, steps)
    assert coarse.dtype == np.uint8
    assert coarse.size == len(expected)
    for index, window in expected.items():
        assert coarse[index] == int(np.floor(np.mean(window) + 0.5))


IDS = st.sampled_from([0, 1, 2, 1 << 40, (1 << 40) + 1])


@given(SHAPES.flatmap(lambda s: arrays(np.uint64, s, elements=IDS)), STEPS)
def test_ids_are_the_most_frequent_ones(values: Any, steps: tuple[int, int, int]) -> None:
    coarse = shrunk(values, steps)
    expected = windows(values, steps)
    assert (coarse.dtype, coarse.size) == (values.dtype, len(expected))
    for index, window in expected.items():
        counts = Counter(window)
        best = [value for value, count in counts.items() if count == max(counts.values())]
        assert coarse[index] == min(best, key=lambda value: (value == 0, value))


@pytest.mark.parametrize(("thickness", "stays"), [(1, True), (2, True)])
def test_thin_sheets_stay(thickness: int, stays: bool) -> None:
    values = np.zeros((8, 8, 8), dtype=np.uint64)
    values[:, 3 : 3 + thickness] = 5
    assert shrunk(values, (2, 2, 2)).any() == stays


@pytest.mark.parametrize(
    ("size", "factors"),
    [
        ((8, 8, 8), [(1, 1, 1), (2, 2, 2), (4, 4, 4)]),
        ((40, 8, 8), [(1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 8, 8)]),
        ((40, 8.25, 12.5), [(1, 1, 1), (1, 2, 2), (1, 4, 2), (2, 8, 4)]),
        ((4, 8, 16), [(1, 1, 1), (2, 2, 1), (4, 2, 1), (8, 4, 2)]),
        ((10, 10, 10.001), [(1, 1, 1), (2, 2, 2), (4, 4, 4)]),
    ],
)
def test_voxels_become_cubes_and_then_coarser(
    size: tuple[float, float, float], factors: list[tuple[int, int, int]]
) -> None:
    levels = levels_of((1000, 1000, 1000), size, 1)
    assert [level.factor for level in levels[: len(factors)]] == factors
    for level in levels:
        assert level.voxel_size_nm == tuple(f * s for f, s in zip(level.factor, size, strict=True))


@given(
    st.tuples(*[st.integers(1, 3000)] * 3),
    st.tuples(*[st.floats(0.5, 100)] * 3),
    st.integers(1, 128),
)
def test_levels_end_with_the_first_that_is_one_chunk(shape: Any, size: Any, chunk: int) -> None:
    levels = levels_of(shape, size, chunk)
    assert levels[0].factor == (1, 1, 1)
    assert max(levels[-1].shape) <= chunk
    assert all(max(level.shape) > chunk for level in levels[:-1])
    for level in levels:
        covered = np.multiply(level.shape, level.factor)
        assert (covered >= shape).all()
        assert (covered - shape < level.factor).all()


def test_a_voxel_lies_in_the_middle_of_those_it_stands_for() -> None:
    offset, size = (80.5, -16.0, 25.0), (40.0, 8.25, 12.5)
    for level in levels_of((300, 400, 500), size, 64):
        for axis in range(3):
            centres = offset[axis] + size[axis] * np.arange(level.factor[axis])
            assert level.offset_nm(offset)[axis] == pytest.approx(centres.mean())
