"""Boxes of plane grids that are stored slice by slice, as (C, slices, h, w)."""

from collections.abc import Callable, Sequence

from funlib.geometry.roi import Roi
from torch import Tensor

from custom.features.triplane import PlaneGrid, Triple, entries_for, placed_at, take
from custom.planes import NORMAL_AXIS

Read = Callable[[tuple[slice, ...]], Tensor]


def read_entries(read: Read, shape: Sequence[int], plane: str, entries: Roi) -> Tensor:
    """A box of grid entries.

    Args:
        read: gives a box (C, slices, h, w) of what is stored.
        shape: of what is stored, (C, slices, h, w).
        plane: "xy", "xz" or "yz".
        entries: box of entries, zyx: slices along the plane's normal, patches along the other
            axes. It may stick out; the grid's border repeats there, as in interpolation.

    Returns:
        (C, d, h, w), zyx.
    """
    normal = NORMAL_AXIS[plane]
    sizes = list(shape[1:])
    sizes.insert(normal, sizes.pop(0))
    first = [min(max(b, 0), n - 1) for b, n in zip(entries.begin, sizes, strict=True)]
    end = [min(max(e, 1), n) for e, n in zip(entries.end, sizes, strict=True)]
    box = [slice(a, max(a + 1, b)) for a, b in zip(first, end, strict=True)]
    box.insert(0, box.pop(normal))
    values = read((slice(None), *box)).movedim(1, 1 + normal)
    return take(values, [b - f for b, f in zip(entries.begin, first, strict=True)], entries.shape)


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
