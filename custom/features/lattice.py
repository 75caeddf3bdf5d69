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

_ROUNDING = 1e-6  # patches; 250 * 2.016 / 14 is 36 patches, not 37


@dataclass(frozen=True)
class AxisLattice:
    """Windows, pixels and patches along one axis of a volume.

    Window ``k`` starts at pixel ``k * (window - overlap)``, pixel ``q`` sits at voxel coordinate
    ``(q + 0.5) / pixels_per_voxel - 0.5``, patch ``i`` covers the voxels ``[i * v, (i + 1) * v)``
    with ``v = patch_size / pixels_per_voxel``::

        |000000000000000000000000|          window 0, overlap of one patch
                          |111111111111111111111111|
        |--0--|--1--|--2--|--3--|--4--|--5--|-         patches
        |. . . . . . . . . . . . . . . . .|. .         voxels, reflected beyond the last

    Args:
        size: voxels of the volume along the axis.
        pixels_per_voxel: scale.
        patch_size: pixels.
        window: pixels, a multiple of ``patch_size``.
        overlap: pixels, a multiple of ``patch_size`` below ``window``.
    """

    size: int
    pixels_per_voxel: float
    patch_size: int
    window: int
    overlap: int

    @property
    def voxels_per_patch(self) -> float:
        """Edge of a patch in voxels; may be fractional."""
        return self.patch_size / self.pixels_per_voxel

    @property
    def num_patches(self) -> int:
        """Patches that cover the whole volume."""
        return math.ceil(self.size / self.voxels_per_patch - _ROUNDING)

    @property
    def num_windows(self) -> int:
        """Windows that cover all patches."""
        rest = self.num_patches - self.window // self.patch_size
        return 1 + max(0, math.ceil(rest / self._patch_stride))

    @property
    def _patch_stride(self) -> int:
        return (self.window - self.overlap) // self.patch_size

    def patches_for(self, offset: int, size: int) -> range:
        """Patches of the voxels ``[offset, offset + size)``, with a neighbour on either side.

        With the neighbours, linear interpolation inside is the same as in the whole volume.
        """
        first = math.floor(offset / self.voxels_per_patch - 0.5 + _ROUNDING)
        end = math.ceil((offset + size) / self.voxels_per_patch + 0.5 - _ROUNDING)
        return range(max(0, first), min(self.num_patches, end))

    def patches_of(self, window: int) -> range:
        """Patches of one window; those of the last one may lie beyond the volume."""
        first = window * self._patch_stride
        return range(first, first + self.window // self.patch_size)

    def windows_touching(self, patches: range) -> range:
        """All windows that hold one of the patches."""
        per_window = self.window // self.patch_size
        first = max(0, (patches.start - per_window) // self._patch_stride + 1)
        end = -(-patches.stop // self._patch_stride)
        return range(first, min(self.num_windows, end))

    def blending(self, window: int) -> Tensor:
        """Share of one window in each of its patches: linear ramps where windows overlap.

        Returns:
            (patches per window,) float32; over all windows the shares of a patch sum to 1.
        """
        patches = self.patches_of(window)
        total = torch.zeros(len(patches), dtype=torch.float64)
        for k in self.windows_touching(patches):
            total += self._ramp(patches, k)
        share = self._ramp(patches, window) / total
        return share.float()

    def _ramp(self, patches: range, window: int) -> Tensor:
        """Unnormalised weight of ``window`` at ``patches``, 0 outside it."""
        inside = torch.arange(patches.start, patches.stop, dtype=torch.float64)
        inside = inside - self.patches_of(window).start + 0.5
        per_window, overlap = self.window // self.patch_size, self.overlap // self.patch_size
        edge = torch.minimum(inside, per_window - inside)
        return (edge > 0) * (edge / max(overlap, 0.5)).clamp(0, 1)

    def resampling(self, window: int) -> tuple[range, Tensor]:
        """How one window's pixels are read off the voxels: linear, with an antialiasing triangle.

        Returns:
            voxels: those that are needed, all inside the volume.
            matrix: (window, voxels) float32, rows sum to 1.
        """
        first = window * (self.window - self.overlap)
        pixels = torch.arange(first, first + self.window, dtype=torch.float64)
        centres = (pixels + 0.5) / self.pixels_per_voxel - 0.5
        reach = max(1.0, 1 / self.pixels_per_voxel)  # a triangle as wide as a pixel when shrinking
        taps = torch.arange(
            math.floor(centres[0].item() - reach), math.ceil(centres[-1].item() + reach) + 1
        )
        weights = (1 - (taps - centres[:, None]).abs() / reach).clamp(min=0)
        weights /= weights.sum(1, keepdim=True)
        used = weights.sum(0) > 0
        voxels = _reflected(taps[used], self.size)
        low, high = int(voxels.min()), int(voxels.max()) + 1
        matrix = torch.zeros(self.window, high - low, dtype=torch.float64)
        matrix.index_add_(1, voxels - low, weights[:, used])
        return range(low, high), matrix.float()


@dataclass(frozen=True)
class PlaneLattice:
    """Grid of patches of one plane over a box of a volume.

    Args:
        plane: "xy", "xz" or "yz".
        normal: voxels of the box along the plane's normal, one slice each.
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
    def windows(self) -> tuple[range, range]:
        """Windows per slice along the two in-plane axes."""
        a, b = (
            axis.windows_touching(patches)
            for axis, patches in zip(self.axes, self.patches, strict=True)
        )
        return a, b


def plane_lattice(
    spec: FeatureSpec, volume_shape: Sequence[int], roi: Roi, plane: str
) -> PlaneLattice:
    """Lattice of the features of one plane over a box.

    Args:
        spec: scale, patch and window.
        volume_shape: voxels of the whole raw volume, which anchors the lattice, zyx.
        roi: the box, raw voxels, inside the volume.
        plane: "xy", "xz" or "yz".
    """
    normal = NORMAL_AXIS[plane]
    start, step = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
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
        )
        wanted = lattice.patches_for(offset, size)
        start[axis] = wanted.start * lattice.voxels_per_patch - offset
        step[axis] = lattice.voxels_per_patch
        axes.append(lattice)
        patches.append(wanted)
    return PlaneLattice(
        plane,
        range(int(roi.begin[normal]), int(roi.end[normal])),
        (axes[0], axes[1]),
        (patches[0], patches[1]),
        (start[0], start[1], start[2]),
        (step[0], step[1], step[2]),
    )


def _reflected(index: Tensor, size: int) -> Tensor:
    """Voxel that stands in for ``index``, mirrored at both ends as often as needed."""
    if size == 1:
        return torch.zeros_like(index)
    index = index.remainder(2 * (size - 1))
    return torch.minimum(index, 2 * (size - 1) - index)
