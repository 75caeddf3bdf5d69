"""The grid that labels, crops and features share, and raw that is finer brought onto it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from funlib.geometry import Coordinate, Roi
from numpy.typing import NDArray
from torch import Tensor

from custom.errors import InputError
from custom.file_arrays import Box
from custom.volumes import Volume, VolumeMetadata
from custom.voxel_grid import Triple

SAME_SIZE = 1e-4  # relative: voxel sizes that differ by less are one, typed or computed differently
ON_GRID = 0.01  # of a voxel: what rounding in files' metadata may amount to
FINE_VOXELS = 2**24  # of raw that are resampled at once, where that is possible
_ROUNDING = 1e-6  # voxels of raw


@dataclass(frozen=True)
class RawAxis:
    """Raw along one axis, seen from the working grid.

    Working voxel ``w`` is centred at raw voxel ``origin + w * ratio``. With ratio 2::

        |.|.|.|.|.|.|.|      voxels of raw
        | . | . | . |        working voxels: origin = 0.5

    Args:
        size: voxels of raw.
        ratio: voxels of raw per working voxel, from 1 on; may be fractional.
        origin: place of the centre of working voxel 0, in voxels of raw from the centre of voxel 0.
    """

    size: int
    ratio: float = 1.0
    origin: float = 0.0

    @property
    def is_raw(self) -> bool:
        """Whether working voxels are voxels of raw."""
        return self.ratio == 1 and self.origin == 0

    def places(self, voxels: Tensor) -> Tensor:
        """Where places of the working grid lie in raw, both counted from the centre of voxel 0."""
        places = self.origin + self.ratio * voxels
        whole = places.round()
        return torch.where((places - whole).abs() < _ROUNDING, whole, places)

    def edge(self, voxel: int) -> float:
        """Where a working voxel begins, in voxels of raw from raw's corner."""
        return self.origin + 0.5 + self.ratio * (voxel - 0.5)

    def taps(self, voxels: range) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Voxels of raw that working voxels are resampled from, and their weights, both (n, t)."""
        if self.is_raw:
            return np.array(voxels)[:, None], np.ones((len(voxels), 1))
        places = self.places(torch.tensor(list(voxels), dtype=torch.float64))
        index, weights = triangle(places, max(1.0, self.ratio), self.size)
        return index.numpy(), weights.numpy()


RawAxes = tuple[RawAxis, RawAxis, RawAxis]


def same_axes(shape: tuple[int, int, int]) -> RawAxes:
    """Axes of raw that is on the working grid itself."""
    depth, height, width = shape
    return RawAxis(depth), RawAxis(height), RawAxis(width)


def triangle(places: Tensor, reach: float, size: int) -> tuple[Tensor, Tensor]:
    """Antialiased linear interpolation: a triangle around every place, reflected at both ends.

    Args:
        places: (n,) float64, voxels from the centre of voxel 0; may lie outside.
        reach: half of the triangle's base in voxels, from 1 (linear interpolation) on.
        size: voxels there are.

    Returns:
        voxels: (n, t) int64, those around every place, all inside.
        weights: (n, t) float64, rows sum to 1; 0 for what the triangle does not reach.
    """
    taps = torch.floor(places - reach)[:, None] + torch.arange(math.ceil(2 * reach) + 1)
    weights = (1 - (taps - places[:, None]).abs() / reach).clamp(min=0)
    weights /= weights.sum(1, keepdim=True)
    return _reflected(taps.long(), size), weights


def filtered(
    values: NDArray[Any], axis: int, index: NDArray[np.intp], weights: NDArray[np.float64]
) -> NDArray[Any]:
    """Weighted sums along one axis, each voxel's in the same order whatever else is computed.

    Args:
        values: (D, H, W) floating point.
        axis: 0, 1 or 2.
        index: (n, t) what is summed, places along the axis.
        weights: (n, t).

    Returns:
        ``values`` with n voxels along the axis, in their type.
    """
    moved = np.moveaxis(values, axis, 0)
    total = np.zeros((len(index), *moved.shape[1:]), values.dtype)
    for tap, weight in zip(index.T, weights.T.astype(values.dtype), strict=True):
        total += weight[:, None, None] * moved[tap]
    return np.moveaxis(total, 0, axis)


class ResampledArray:
    """A finer volume as an array on the working grid, antialiased; computed when it is read.

    Integers are rounded and keep their type.

    Args:
        source: the finer volume.
        axes: of the volume, seen from the working grid.
        shape: of the working grid, zyx.
    """

    def __init__(self, source: Volume, axes: RawAxes, shape: tuple[int, int, int]) -> None:
        self.source = source
        self.axes = axes
        self.shape: tuple[int, ...] = shape

    def read(self, box: Box) -> NDArray[Any]:
        """The voxels of a box; the memory that takes is bounded."""
        spans = [range(n)[s] for n, s in zip(self.shape, box, strict=True) if isinstance(s, slice)]
        roi = Roi([s.start for s in spans], [len(s) for s in spans])
        values = np.empty(tuple(roi.shape), self.source.metadata.dtype)
        for piece in self._pieces(roi):
            values[(piece - roi.offset).to_slices()] = self._resampled(piece)
        return values

    def _pieces(self, roi: Roi) -> Iterator[Roi]:
        """A box in halves of halves, until little enough of raw is needed for each."""
        longest = int(np.argmax(roi.shape))
        fine = math.prod(n * axis.ratio for n, axis in zip(roi.shape, self.axes, strict=True))
        if fine <= FINE_VOXELS or roi.shape[longest] == 1:
            yield roi
            return
        half = [0, 0, 0]
        half[longest] = int(roi.shape[longest]) // 2
        shape = [h or int(n) for h, n in zip(half, roi.shape, strict=True)]
        yield from self._pieces(Roi(roi.offset, shape))
        yield from self._pieces(Roi(roi.offset + Coordinate(half), roi.shape - Coordinate(half)))

    def _resampled(self, roi: Roi) -> NDArray[Any]:
        spans = zip(self.axes, roi.begin, roi.end, strict=True)
        taps = [axis.taps(range(int(begin), int(end))) for axis, begin, end in spans]
        first = [int(index.min()) for index, _ in taps]
        stop = [int(index.max()) + 1 for index, _ in taps]
        fine = self.source.read(Roi(first, np.subtract(stop, first)))
        values = fine.astype(np.result_type(fine.dtype, np.float32))
        for axis, (index, weights) in enumerate(taps):
            with np.errstate(invalid="ignore"):  # infinity times 0; whoever reads looks for NaN
                values = filtered(values, axis, index - first[axis], weights)
        return values if fine.dtype.kind == "f" else np.rint(values)


class ResampledVolume(Volume):
    """A finer volume on the working grid.

    Args:
        source: the finer volume.
        axes: of the volume, seen from the working grid.
        metadata: on the working grid.
    """

    def __init__(self, source: Volume, axes: RawAxes, metadata: VolumeMetadata) -> None:
        super().__init__(source.path, metadata, ResampledArray(source, axes, metadata.shape))
        self.source = source
        self.axes = axes


def source_of(raw: Volume) -> Volume:
    """Raw as the file has it."""
    return raw.source if isinstance(raw, ResampledVolume) else raw


def axes_of(raw: Volume) -> RawAxes:
    """Axes of raw as the file has it, seen from the grid that it is on."""
    return raw.axes if isinstance(raw, ResampledVolume) else same_axes(raw.metadata.shape)


def on_working_grid(raw: Volume, size_nm: Triple, start: Triple | None, where: str) -> Volume:
    """Raw on a coarser voxel grid that is extended over all of it.

    The grid's first voxel is the first whose centre lies in raw, so that the grid depends on raw
    and on the phase of ``start`` alone. Raw of this voxel size stays as it is.

    Args:
        raw: the volume.
        size_nm: voxel size of the grid, zyx.
        start: corner of any voxel of the grid, in voxels of raw from raw's corner, zyx; None where
            the corners coincide.
        where: whose grid it is, for messages.

    Raises:
        InputError: the grid is finer than raw, lies between raw's voxels along an axis where both
            are equally fine, or is so coarse that no voxel's centre lies in raw.
    """
    here = raw.metadata
    ratios = _ratios(size_nm, here, where)
    if all(ratio == 1 for ratio in ratios):
        return raw
    axes, shape = [], []
    for axis, (size, ratio) in enumerate(zip(here.shape, ratios, strict=True)):
        corner = _whole_if_near(0.0 if start is None else start[axis])
        if ratio == 1 and corner != int(corner):
            raise InputError(
                f"{where} starts at voxel {corner:.3f} of raw along {'zyx'[axis]}, where both have "
                f"equal voxels, which is not a whole number; correct its offset or resample it"
            )
        first = math.ceil(-corner / ratio - 0.5 - ON_GRID)
        end = math.floor((size - corner) / ratio + 0.5 + ON_GRID)
        if end <= first:
            raise InputError(
                f"{where} has voxels of {size_nm} nm, and none has its centre in raw, which has "
                f"{size} of {here.voxel_size_nm[axis]:g} nm along {'zyx'[axis]}; check the voxel "
                f"sizes"
            )
        axes.append(RawAxis(size, ratio, corner + first * ratio + (ratio - 1) / 2))
        shape.append(end - first)
    depth, height, width = shape
    placed = axes[0], axes[1], axes[2]
    metadata = _placed(here, (depth, height, width), size_nm, placed)
    return ResampledVolume(raw, placed, metadata)


def start_in(volume: VolumeMetadata, raw: VolumeMetadata) -> Triple:
    """Corner of a volume's first voxel, in voxels of raw from raw's corner, zyx.

    Where both have corners, these count, else centres. A position that may be either, such as none
    at all, is where the other's corner would be, had it this position.
    """
    if volume.corner_nm is not None and raw.corner_nm is not None:
        apart = np.subtract(volume.corner_nm, raw.corner_nm)
    else:
        apart = np.subtract(volume.offset_nm, raw.offset_nm)
        if all(one.corner_nm != one.offset_nm for one in (volume, raw)):
            apart -= np.subtract(volume.voxel_size_nm, raw.voxel_size_nm) / 2
    z, y, x = (float(v) for v in apart / raw.voxel_size_nm)
    return z, y, x


def same_size(one: Triple, other: Triple) -> bool:
    """Whether voxel sizes are equal but for rounding."""
    return bool(np.allclose(one, other, rtol=SAME_SIZE, atol=0))


def common_voxels(one: RawAxes, roi: Roi, other: RawAxes, there: Roi) -> Roi | None:
    """Voxels of one raw that boxes of two working grids have in common; None if there are none.

    Args:
        one: axes of raw, seen from the first grid.
        roi: box in its voxels.
        other: axes of the same raw, seen from the second grid.
        there: box in its voxels.
    """
    begins = zip(one, roi.begin, other, there.begin, strict=True)
    ends = zip(one, roi.end, other, there.end, strict=True)
    begin = [max(a.edge(int(v)), b.edge(int(w))) for a, v, b, w in begins]
    end = [min(a.edge(int(v)), b.edge(int(w))) for a, v, b, w in ends]
    if any(e - b < ON_GRID for b, e in zip(begin, end, strict=True)):
        return None
    first = np.floor(begin).astype(int)
    return Roi(first, np.ceil(end).astype(int) - first)


def _ratios(size_nm: Triple, raw: VolumeMetadata, where: str) -> Triple:
    """Voxels of raw per voxel of this size, whole where they nearly are."""
    ratios = np.divide(size_nm, raw.voxel_size_nm)
    whole = np.rint(ratios)
    z, y, x = (float(v) for v in np.where(abs(ratios - whole) <= SAME_SIZE * ratios, whole, ratios))
    if min(z, y, x) < 1:
        raise InputError(
            f"{where} has voxels of {size_nm} nm, finer than raw's of {raw.voxel_size_nm} nm; raw "
            f"may be finer than labels but not coarser: downsample the labels or take a finer raw"
        )
    return z, y, x


def _whole_if_near(place: float) -> float:
    """A place without what rounding in files' metadata amounts to."""
    return round(place) if abs(place - round(place)) <= ON_GRID else place


def _placed(
    raw: VolumeMetadata, shape: tuple[int, int, int], size_nm: Triple, axes: RawAxes
) -> VolumeMetadata:
    """Metadata of raw on the working grid."""
    sizes = raw.voxel_size_nm
    z, y, x = (o + a.origin * s for o, a, s in zip(raw.offset_nm, axes, sizes, strict=True))
    return VolumeMetadata(shape, raw.dtype, size_nm, (z, y, x))


def _reflected(index: Tensor, size: int) -> Tensor:
    """Voxel that stands in for ``index``, mirrored at both ends as often as needed."""
    if size == 1:
        return torch.zeros_like(index)
    index = index.remainder(2 * (size - 1))
    return torch.minimum(index, 2 * (size - 1) - index)
