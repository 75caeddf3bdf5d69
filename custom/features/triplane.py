"""The three plane grids of a volume: place, crop, flip, transpose, upsample, average.

A volume's slices along xy, xz and yz each give one grid of patch features. Whatever the plane, a
grid is kept in z, y, x order: one entry per slice along the plane's normal, one entry per patch
along the two other axes. So a flip or a transposition is the same operation for the volume and for
its grids.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from custom.planes import NORMAL_AXIS, PLANES, upsample_batch

Triple = tuple[float, float, float]

SAME_PLACE = 1e-5  # entries: placements in float32 and float64 have to take the same ones


@dataclass(frozen=True)
class PlaneGrid:
    """Patch features of one plane, and where they lie in their box.

    Entry ``i`` along an axis covers the voxels ``[start + i * step, start + (i + 1) * step)``,
    measured from the corner of the box::

              0   1   2   3   4   5   6   7      voxels of the box
        |...0...|...1...|...2...|...3...|        entries: start = -1.5, step = 2.25

    Args:
        values: (C, d, h, w), z y x order, float.
        start: corner of the first entry, voxels, zyx.
        step: size of an entry, voxels, zyx; along the plane's normal the distance of its slices.

    Raises:
        ValueError: ``values`` is not 4D, or a step is not positive.
    """

    values: Tensor
    start: Triple
    step: Triple

    def __post_init__(self) -> None:
        if self.values.ndim != 4:
            raise ValueError(f"values must be (C, d, h, w), got shape {tuple(self.values.shape)}")
        if min(self.step) <= 0:
            raise ValueError(f"step must be positive, got {self.step}")

    @property
    def placement(self) -> Tensor:
        """``start`` and ``step`` as one (2, 3) float32 tensor, the form that networks take."""
        return torch.tensor([self.start, self.step], dtype=torch.float32)

    @classmethod
    def placed(cls, values: Tensor, placement: Tensor) -> "PlaneGrid":
        """The grid of these values at this ``placement``."""
        (z, y, x), (dz, dy, dx) = placement.tolist()
        return cls(values, (z, y, x), (dz, dy, dx))


def upsample(grid: PlaneGrid, shape: Sequence[int], plane: str) -> Tensor:
    """Linear upsampling of one plane grid to voxels: (C, d, h, w) to (C, D, H, W) float32."""
    return upsample_batch(grid.values.float()[None], grid.placement[None], shape, plane)[0]


def average(grids: Mapping[str, PlaneGrid], shape: Sequence[int]) -> Tensor:
    """Mean over the planes of the upsampled grids, (C, D, H, W) float32."""
    planes = [upsample(grid, shape, plane) for plane, grid in grids.items()]
    return torch.stack(planes).mean(0)


def entries_for(
    start: Triple, step: Triple, offset: Sequence[int], shape: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Entries of a grid that interpolation inside a box needs, neighbours included.

    The number of entries depends on ``shape`` and ``step`` alone, so that samples of one size can
    be stacked; the entries may therefore stick out of the grid, where its border repeats
    (``take``).

    Args:
        start: corner of the grid's first entry, voxels, zyx.
        step: voxels per entry, zyx.
        offset: corner of the box, voxels, zyx.
        shape: size of the box, voxels, zyx.

    Returns:
        First entry and number of entries, zyx.
    """
    first, count = [], []
    for axis in range(3):
        position = (offset[axis] + 0.5 - start[axis]) / step[axis] - 0.5
        on_voxels = step[axis] == 1 and start[axis] == int(start[axis])
        first.append(round(position) if on_voxels else math.floor(position + SAME_PLACE))
        count.append(shape[axis] if on_voxels else math.ceil((shape[axis] - 1) / step[axis]) + 2)
    return tuple(first), tuple(count)


def take(values: Tensor, first: Sequence[int], count: Sequence[int]) -> Tensor:
    """Entries ``first`` to ``first + count`` of (C, d, h, w); beyond the border it repeats.

    A view, where no entry lies beyond the border.
    """
    for axis, (start, number) in enumerate(zip(first, count, strict=True)):
        available = values.shape[1 + axis]
        if 0 <= start <= available - number:
            values = values.narrow(1 + axis, start, number)
        else:
            wanted = torch.arange(start, start + number).clamp(0, available - 1)
            values = values.index_select(1 + axis, wanted.to(values.device))
    return values


def placed_at(
    values: Tensor, start: Triple, step: Triple, first: Sequence[int], offset: Sequence[int]
) -> PlaneGrid:
    """Grid of entries from ``first`` on, seen from a box whose corner is at ``offset``."""
    moved = [s + f * t - o for s, f, t, o in zip(start, first, step, offset, strict=True)]
    return PlaneGrid(values, (moved[0], moved[1], moved[2]), step)


def crop(grid: PlaneGrid, offset: Sequence[int], shape: Sequence[int]) -> PlaneGrid:
    """The part of a grid that a box inside its box needs.

    Upsampling the result gives the same values as cropping the upsampled grid.

    Args:
        grid: grid of the whole box.
        offset: corner of the crop in the box, voxels, zyx.
        shape: size of the crop, voxels, zyx.
    """
    return GridPart(grid.values, grid.start, grid.step).crop(offset, shape)


@dataclass(frozen=True)
class GridPart:
    """Some entries of a grid, which gives the same crops as the whole grid does.

    Args:
        values: (C, d, h, w), entries of the grid; where they are cut off, its border repeats.
        start: corner of the whole grid's first entry, voxels, zyx.
        step: size of an entry, voxels, zyx.
        first: of ``values`` among the grid's entries, zyx.
    """

    values: Tensor
    start: Triple
    step: Triple
    first: tuple[int, ...] = (0, 0, 0)

    def crop(self, offset: Sequence[int], shape: Sequence[int]) -> PlaneGrid:
        """As the function ``crop``; the part must hold what the box needs."""
        first, count = entries_for(self.start, self.step, offset, shape)
        inside = [f - own for f, own in zip(first, self.first, strict=True)]
        values = take(self.values, inside, count)
        return placed_at(values, self.start, self.step, first, offset)


def flip(grid: PlaneGrid, axes: Sequence[int], shape: Sequence[int]) -> PlaneGrid:
    """Mirror a grid with its box of ``shape`` (D, H, W) along spatial ``axes`` (0 is z)."""
    start = list(grid.start)
    for axis in axes:
        start[axis] = shape[axis] - (start[axis] + grid.values.shape[1 + axis] * grid.step[axis])
    values = grid.values.flip([1 + axis for axis in axes])
    return PlaneGrid(values, (start[0], start[1], start[2]), grid.step)


def permute(grids: Mapping[str, PlaneGrid], axes: Sequence[int]) -> dict[str, PlaneGrid]:
    """Transpose all grids with their box; the planes change places with their normals.

    Args:
        grids: grids by plane.
        axes: new order of the spatial axes as in ``numpy.transpose``, a permutation of (0, 1, 2).
    """
    a, b, c = axes
    result = {}
    for plane, grid in grids.items():
        normal = list(axes).index(NORMAL_AXIS[plane])
        result[PLANES[normal]] = PlaneGrid(
            grid.values.permute(0, 1 + a, 1 + b, 1 + c),
            (grid.start[a], grid.start[b], grid.start[c]),
            (grid.step[a], grid.step[b], grid.step[c]),
        )
    return result
