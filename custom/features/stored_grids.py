"""Boxes of plane grids that are stored slice by slice, as (C, slices, h, w)."""

from collections.abc import Callable, Sequence

import numpy as np
from funlib.geometry.roi import Roi
from numpy.typing import NDArray
from torch import Tensor

from custom.features.cache_files import Selection
from custom.features.triplane import PlaneGrid, Triple, entries_for, placed_at
from custom.planes import NORMAL_AXIS

Read = Callable[[Selection], Tensor]


def read_entries(read: Read, shape: Sequence[int], plane: str, entries: Roi) -> Tensor:
    """A box of grid entries.

    Args:
        read: gives a selection (C, slices, h, w) of what is stored, each axis indexed for itself.
        shape: of what is stored, (C, slices, h, w).
        plane: "xy", "xz" or "yz".
        entries: box of entries, zyx: slices along the plane's normal, patches along the other
            axes. It may stick out; the grid's border repeats there, as in interpolation.

    Returns:
        (C, d, h, w), zyx.
    """
    normal = NORMAL_AXIS[plane]
    box = list(zip(entries.begin, entries.end, strict=True))
    box.insert(0, box.pop(normal))
    wanted = [_clamped(*span, size) for span, size in zip(box, shape[1:], strict=True)]
    return read((slice(None), *wanted)).movedim(1, 1 + normal)


def _clamped(begin: int, end: int, size: int) -> slice | NDArray[np.int64]:
    """Entries ``begin`` to ``end`` of ``size``; beyond the border it repeats."""
    if begin >= 0 and end <= size:
        return slice(begin, end)
    return np.arange(begin, end).clip(0, size - 1)


def read_grid(
    read: Read, shape: Sequence[int], plane: str, placement: tuple[Triple, Triple], roi: Roi
) -> PlaneGrid:
    """The part of a stored grid that a box of voxels needs, as ``triplane.crop`` gives it.

    Args:
        read: as in ``read_entries``.
        shape: as in ``read_entries``.
        plane: "xy", "xz" or "yz".
        placement: start and step of the whole grid, voxels, zyx.
        roi: the box, voxels.
    """
    start, step = placement
    first, count = entries_for(start, step, roi.offset, roi.shape)
    values = read_entries(read, shape, plane, Roi(first, count))
    return placed_at(values, start, step, first, roi.offset)
