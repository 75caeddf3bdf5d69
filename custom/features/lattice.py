"""Where windows and patches lie on a volume: one lattice, anchored to the volume's first voxel.

Blocks, workers and a whole-volume run compute the same windows, so their features are the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from funlib.geometry.roi import Roi
from torch import Tensor

from custom.features.spec import FeatureSpec
from custom.planes import NORMAL_AXIS
from custom.voxel_grid import Triple
from custom.working_grid import RawAxes, RawAxis, triangle

_ROUNDING = 1e-6  # patches; 250 * 2.016 / 14 is 36 patches, not 37


@dataclass(frozen=True)
class AxisLattice:
    """Windows, pixels and patches along one axis of a volume.

    Pixel ``q`` sits at voxel coordinate ``(q + 0.5) / pixels_per_voxel - 0.5``. With ``stride``
    equal to ``patch_size``, window ``k`` starts at pixel ``k * (window - overlap)`` and patch ``i``
    covers the voxels ``[i * v, (i + 1) * v)`` with ``v = patch_size / pixels_per_voxel``::

        |000000000000000000000000|          window 0, overlap of one patch
                          |111111111111111111111111|
        |--0--|--1--|--2--|--3--|--4--|--5--|-         patches
        |. . . . . . . . . . . . . . . . .|. .         voxels, reflected beyond the last

    With a smaller ``stride`` there are ``n = patch_size / stride`` such lattices, moved by
    ``-(n // 2)`` to ``n - 1 - n // 2`` strides, so that they stick out alike at both ends. Window
    ``w`` is window ``w // n`` of lattice ``w % n``, and the patches of all lattices are counted
    together, from left to right. The patches overlap; a patch stands for the stride around its
    centre, its entry in the grid. With ``n = 2``::

        |--0--|--2--|--4--|--6--|                      patches of lattice 0
           |--1--|--3--|--5--|--7--|                   patches of lattice 1
         |0 |1 |2 |3 |4 |5 |6 |7 |                     entries
           |. . . . . . . . . .|                       voxels

    Where an upsampler makes ``finer`` values of every patch, these are the entries: what is said of
    patches below holds for them.

    Args:
        size: voxels of the volume along the axis.
        pixels_per_voxel: scale.
        patch_size: pixels.
        window: pixels, a multiple of ``patch_size``.
        overlap: pixels, a multiple of ``patch_size`` below ``window``.
        stride: pixels between patches, a divisor of ``patch_size``.
        finer: entries per patch; more than 1 only with ``stride`` equal to ``patch_size``.
        raw: what pixels are read off, where raw is finer than the volume's grid.
    """

    size: int
    pixels_per_voxel: float
    patch_size: int
    window: int
    overlap: int
    stride: int
    finer: int = 1
    raw: RawAxis | None = None

    @property
    def step(self) -> float:
        """Size of an entry in voxels; may be fractional."""
        return self.stride / self.pixels_per_voxel / self.finer

    @property
    def corner(self) -> float:
        """Where the first entry begins, voxels: at the volume's corner or half an entry before."""
        return -0.5 * self.step if self.shifts % 2 == 0 else 0.0

    @property
    def shifts(self) -> int:
        """Number of lattices."""
        return self.patch_size // self.stride

    @property
    def num_patches(self) -> int:
        """Patches whose entries cover the whole volume."""
        return math.ceil((self.size - self.corner) / self.step - _ROUNDING)

    @property
    def _per_window(self) -> int:
        return self.window // self.patch_size * self.finer

    @property
    def _patch_stride(self) -> int:
        return (self.window - self.overlap) // self.patch_size * self.finer

    def patches_for(self, offset: int, size: int) -> range:
        """Patches of the voxels ``[offset, offset + size)``, with a neighbour on either side.

        With the neighbours, linear interpolation inside is the same as in the whole volume.
        """
        low, high = offset - self.corner, offset + size - self.corner
        first = math.floor(low / self.step - 0.5 + _ROUNDING)
        end = math.ceil(high / self.step + 0.5 - _ROUNDING)
        return range(max(0, first), min(self.num_patches, end))

    def patches_of(self, window: int) -> range:
        """Patches of one window, ``shifts`` apart; the last ones may lie beyond the volume."""
        index, shift = divmod(window, self.shifts)
        first = index * self._patch_stride * self.shifts + shift
        return range(first, first + self._per_window * self.shifts, self.shifts)

    @property
    def cell(self) -> int:
        """Patches, of all lattices together, from where a window begins to where the next does.

        Without overlap, all windows with the same number of their lattices hold exactly the patches
        of one cell, counted from the first patch; so whole cells need no window twice.
        """
        return self._patch_stride * self.shifts

    def windows_touching(self, patches: range) -> list[int]:
        """All windows that hold one of the patches."""
        return [
            index * self.shifts + shift
            for shift in range(self.shifts)
            for index in self._indices(shift, patches)
        ]

    def _indices(self, shift: int, patches: range) -> range:
        """Those of one lattice, counted in it."""
        first, stop, count = (
            -(-(patch - shift) // self.shifts)
            for patch in (patches.start, patches.stop, self.num_patches)
        )
        if first >= stop:
            return range(0)
        last = max(0, -(-(count - self._per_window) // self._patch_stride))
        begin = max(0, (first - self._per_window) // self._patch_stride + 1)
        return range(begin, min(last + 1, -(-stop // self._patch_stride)))

    def blending(self, window: int) -> Tensor:
        """Share of one window in each of its patches: linear ramps where windows overlap.

        Returns:
            (patches per window,) float32; over all windows the shares of a patch sum to 1.
        """
        patches, shift = self.patches_of(window), window % self.shifts
        total = torch.zeros(len(patches), dtype=torch.float64)
        for index in self._indices(shift, patches):
            total += self._ramp(patches, index * self.shifts + shift)
        share = self._ramp(patches, window) / total
        return share.float()

    def _ramp(self, patches: range, window: int) -> Tensor:
        """Unnormalised weight of ``window`` at ``patches`` of its lattice, 0 outside it."""
        inside = torch.tensor(patches, dtype=torch.float64)
        inside = (inside - self.patches_of(window).start) / self.shifts + 0.5
        overlap = self.overlap // self.patch_size * self.finer
        edge = torch.minimum(inside, self._per_window - inside)
        return (edge > 0) * (edge / max(overlap, 0.5)).clamp(0, 1)

    def _first_pixel(self, window: int) -> int:
        index, shift = divmod(window, self.shifts)
        moved = (shift - self.shifts // 2) * self.stride
        return moved + index * (self.window - self.overlap)

    def resampling(self, window: int) -> tuple[range, Tensor]:
        """How one window's pixels are read off raw: linear, with an antialiasing triangle.

        Returns:
            voxels: those of raw that are needed, all inside it.
            matrix: (window, voxels) float32, rows sum to 1.
        """
        raw = self.raw or RawAxis(self.size)
        first = self._first_pixel(window)
        pixels = torch.arange(first, first + self.window, dtype=torch.float64)
        centres = raw.places((pixels + 0.5) / self.pixels_per_voxel - 0.5)
        # a triangle as wide as a pixel when shrinking
        reach = max(1.0, raw.ratio / self.pixels_per_voxel)
        voxels, weights = triangle(centres, reach, raw.size)
        used = voxels[weights > 0]
        low, high = int(used.min()), int(used.max()) + 1
        matrix = torch.zeros(self.window, high - low, dtype=torch.float64)
        matrix.scatter_add_(1, (voxels - low).clamp(0, high - low - 1), weights)
        return range(low, high), matrix.float()


@dataclass(frozen=True)
class PlaneLattice:
    """Grid of patches of one plane over a box of a volume.

    Args:
        plane: "xy", "xz" or "yz".
        normal: slices of the volume along the plane's normal; with a step, also those on either
            side of the box that interpolation needs.
        axes: lattices of the two in-plane axes, in zyx order.
        patches: wanted patches along them.
        start: corner of the first patch as seen from the box's corner, voxels, zyx.
        step: voxels per entry, zyx.
    """

    plane: str
    normal: range
    axes: tuple[AxisLattice, AxisLattice]
    patches: tuple[range, range]
    start: Triple
    step: Triple

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, then patches along the two in-plane axes."""
        return len(self.normal), len(self.patches[0]), len(self.patches[1])

    @property
    def windows(self) -> tuple[list[int], list[int]]:
        """Windows per slice along the two in-plane axes."""
        a, b = (
            axis.windows_touching(patches)
            for axis, patches in zip(self.axes, self.patches, strict=True)
        )
        return a, b


def plane_lattice(
    spec: FeatureSpec,
    volume_shape: Sequence[int],
    roi: Roi,
    plane: str,
    raw_axes: RawAxes | None = None,
) -> PlaneLattice:
    """Lattice of the features of one plane over a box.

    Args:
        spec: scale, patch, window and steps.
        volume_shape: voxels of the whole raw volume, which anchors the lattice, zyx.
        roi: the box, raw voxels, inside the volume.
        plane: "xy", "xz" or "yz".
        raw_axes: raw, where it is finer than the volume's grid.
    """
    normal = NORMAL_AXIS[plane]
    every = spec.slice_step_of(plane)
    slices = _slices(
        volume_shape[normal], range(int(roi.begin[normal]), int(roi.end[normal])), every
    )
    start, step = [0.0, 0.0, 0.0], [float(every)] * 3
    start[normal] = slices.start - (every - 1) / 2 - int(roi.offset[normal])
    axes, patches = [], []
    for axis in range(3):
        if axis == normal:
            continue
        offset, size = int(roi.offset[axis]), int(roi.shape[axis])
        lattice = AxisLattice(
            volume_shape[axis],
            spec.pixels_per_voxel[axis],
            spec.patch_size,
            spec.window,
            spec.overlap,
            spec.stride,
            finer=spec.refinement[axis],
            raw=None if raw_axes is None else raw_axes[axis],
        )
        wanted = lattice.patches_for(offset, size)
        start[axis] = lattice.corner + wanted.start * lattice.step - offset
        step[axis] = lattice.step
        axes.append(lattice)
        patches.append(wanted)
    return PlaneLattice(
        plane,
        slices,
        (axes[0], axes[1]),
        (patches[0], patches[1]),
        (start[0], start[1], start[2]),
        (step[0], step[1], step[2]),
    )


def _slices(size: int, voxels: range, every: int) -> range:
    """Every so-many-th slice of a volume, those next to ``voxels`` on either side included."""
    first = voxels.start // every
    last = min(-(-(voxels.stop - 1) // every), (size - 1) // every)
    return range(first * every, last * every + 1, every)


def grid_bytes(
    spec: FeatureSpec, volume_shape: Sequence[int], roi: Roi, raw_axes: RawAxes | None = None
) -> int:
    """Size of the grids of all planes over a box, in the spec's ``float_dtype``.

    Args:
        spec: as of ``plane_lattice``, and so are the other arguments.
        volume_shape: of the whole raw volume.
        roi: the box.
        raw_axes: where raw is finer.
    """
    lattices = (plane_lattice(spec, volume_shape, roi, plane, raw_axes) for plane in spec.planes)
    entries = sum(math.prod(lattice.shape) for lattice in lattices)
    bits = torch.finfo(getattr(torch, spec.float_dtype)).bits
    return entries * spec.channels * bits // 8
