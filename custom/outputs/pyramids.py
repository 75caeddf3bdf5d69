"""Coarser levels of an image: which there are, where they lie, and their voxels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from custom.voxel_grid import Triple

Shape = tuple[int, int, int]

ROUNDING = 1e-6  # relative: voxel sizes that are written as decimal fractions


@dataclass(frozen=True)
class Level:
    """One level of an image; the finest has the factor 1 along all axes.

    Args:
        factor: voxels of the finest level along an edge of one voxel, zyx.
        shape: (D, H, W); a voxel at the end may stand for fewer than ``factor``.
        voxel_size_nm: zyx.
    """

    factor: Shape
    shape: Shape
    voxel_size_nm: Triple

    def offset_nm(self, finest_nm: Triple) -> Triple:
        """Position of the centre of voxel (0, 0, 0), zyx, given that of the finest level.

        It lies in the middle of the voxels that it stands for::

            |  0  |  1  |  2  |  3  |   factor 1
            |     0     |     1     |   factor 2: half a voxel further on
        """
        z, y, x = (
            position + (factor - 1) / 2 * (size / factor)
            for position, factor, size in zip(
                finest_nm, self.factor, self.voxel_size_nm, strict=True
            )
        )
        return z, y, x


def levels_of(shape: Shape, voxel_size_nm: Triple, chunk: int) -> list[Level]:
    """The levels of an image, finest first, down to one that is a chunk at most.

    From one level to the next the number of voxels is halved along some axes: along those whose
    doubled voxel is no longer than the longest edge of the voxel; where there is none, voxels are
    nearly cubes (no edge is twice another), and all axes are halved. An axis of one voxel stays.

    Args:
        shape: (D, H, W) of the finest.
        voxel_size_nm: of the finest, zyx.
        chunk: the last level has at most so many voxels along every axis.
    """
    found = [Level((1, 1, 1), shape, voxel_size_nm)]
    while max(found[-1].shape) > chunk:
        found.append(_next_level(found[-1]))
    return found


def _next_level(level: Level) -> Level:
    many = [length > 1 for length in level.shape]
    longest = max(level.voxel_size_nm) * (1 + ROUNDING)
    fine = [2 * size <= longest for size in level.voxel_size_nm]
    halved = [f and m for f, m in zip(fine, many, strict=True)]
    steps = [2 if half else 1 for half in (halved if any(halved) else many)]
    z, y, x = zip(level.factor, level.shape, level.voxel_size_nm, steps, strict=True)
    return Level(
        (z[0] * z[3], y[0] * y[3], x[0] * x[3]),
        (math.ceil(z[1] / z[3]), math.ceil(y[1] / y[3]), math.ceil(x[1] / x[3])),
        (z[2] * z[3], y[2] * y[3], x[2] * x[3]),
    )


def shrunk(values: NDArray[Any], steps: Sequence[int]) -> NDArray[Any]:
    """A box of an image at the next level.

    uint8 is averaged, half up. All else are ids, of which the most frequent one is taken; 0 is an
    id as any other, but loses a draw, so that an object of which half is left stays: thin sheets
    do, threads of a single voxel do not. Of other ids in a draw the smallest wins.

    At its end a box may lack voxels of a window; those that are there decide.

    Args:
        values: (D, H, W), integers.
        steps: 1 or 2, zyx.

    Returns:
        (ceil(D / step), ...) of the same type.
    """
    padding = [(0, -length % step) for length, step in zip(values.shape, steps, strict=True)]
    # repeating the last voxel doubles the weight of all that are there, and so changes nothing
    padded = np.pad(values, padding, mode="edge") if np.any(padding) else values
    d, h, w = (length // step for length, step in zip(padded.shape, steps, strict=True))
    split = padded.reshape(d, steps[0], h, steps[1], w, steps[2])
    windows = split.transpose(0, 2, 4, 1, 3, 5).reshape(d * h * w, math.prod(steps))
    reduced = _means(windows) if values.dtype == np.uint8 else _modes(windows)
    return reduced.reshape(d, h, w)


def _means(windows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rounded mean of every row."""
    count = windows.shape[1]
    sums = windows.sum(axis=1, dtype=np.uint16)
    means: NDArray[np.uint8] = ((sums + count // 2) // count).astype(np.uint8)
    return means


def _modes(windows: NDArray[Any]) -> NDArray[Any]:
    """Most frequent value of every row; most rows have one alone."""
    modes = windows[:, 0].copy()
    mixed = np.flatnonzero((windows[:, 1:] != windows[:, :1]).any(axis=1))
    rows = np.sort(windows[mixed], axis=1)  # then the first of the best is the smallest
    ranks = np.empty(rows.shape, dtype=np.uint8)
    for k in range(rows.shape[1]):
        ranks[:, k] = 2 * (rows == rows[:, k : k + 1]).sum(axis=1) + (rows[:, k] != 0)
    modes[mixed] = rows[np.arange(len(rows)), ranks.argmax(axis=1)]
    return modes
