"""Where the network's windows lie on a volume, and how large the blocks are that they serve."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from funlib.geometry import Roi
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers.utils import _get_scan_interval  # so that the windows are MONAI's own
from torch import Tensor

from custom.channels import ChannelLayout
from custom.errors import InputError
from custom.json_fields import per_axis

CHUNK = 64  # voxels of an output's chunks along an axis
BLOCK_BYTES = 2**29  # of the sums that a block of chosen size holds while it is predicted
MOST = 256  # voxels along an edge of a chosen block, so that large volumes take no more memory

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class WindowLattice:
    """The windows that MONAI's ``SlidingWindowInferer`` makes for a whole volume.

    ::

        |-----------------------------------|   volume of 36
        |wwwwwwwwwwww|                          windows of 12, overlap 0.5: every 6 voxels
              |wwwwwwwwwwww|
                               ...
                             |wwwwwwwwwwww|     the last one ends with the volume

    Args:
        shape: (D, H, W) of the volume.
        window: (D, H, W) of a window, nowhere larger than the volume.
        overlap: of neighbouring windows, a fraction from 0 to below 1.
    """

    shape: Shape
    window: Shape
    overlap: float

    @property
    def interval(self) -> Shape:
        """Voxels between neighbouring windows, zyx."""
        z, y, x = _get_scan_interval(self.shape, self.window, 3, [self.overlap] * 3)
        return z, y, x

    @cached_property
    def starts(self) -> tuple[list[int], list[int], list[int]]:
        """First voxels of the windows along each axis, ascending."""
        sizes = zip(self.shape, self.window, self.interval, strict=True)
        z, y, x = (
            [int(window.start) for (window,) in dense_patch_slices([n], [w], [i])]
            for n, w, i in sizes
        )
        return z, y, x

    def touching(self, roi: Roi) -> list[Shape]:
        """Corners of the windows that a box shares voxels with, in the order of MONAI's scan."""
        z, y, x = (self._touching(axis, roi.begin[axis], roi.end[axis]) for axis in range(3))
        return list(product(z, y, x))

    def _touching(self, axis: int, begin: int, end: int) -> list[int]:
        return [s for s in self.starts[axis] if s < end and s + self.window[axis] > begin]

    @property
    def context(self) -> Shape:
        """What the windows of a box reach beyond it on either side: at most a window less a voxel.

        A window that shares a voxel with a box begins or ends at most ``window - 1`` voxels outside
        it. Where neighbouring windows do not overlap and boxes are whole windows, only the last
        window of an axis, which ends with the volume, reaches out; along an axis with a single
        window, that window is the whole of it.
        """
        z, y, x = (w - 1 for w in self.window)
        return z, y, x

    def recomputed(self, block: Sequence[int]) -> float:
        """Windows that are computed again because they touch several blocks, as a share of all."""
        factor = 1.0
        for axis in range(3):
            starts = range(0, self.shape[axis], block[axis])
            touched = sum(len(self._touching(axis, s, s + block[axis])) for s in starts)
            factor *= touched / len(self.starts[axis])
        return factor - 1

    def importance(self, device: torch.device) -> Tensor:
        """Weights (D, H, W) of a window's voxels, float32: the inferer's Gaussian."""
        return compute_importance_map(self.window, "gaussian", 0.125, device, torch.float32)


def blocks_of(shape: Sequence[int], block: Sequence[int]) -> Iterator[Roi]:
    """Boxes of at most ``block`` that cover a volume from its first voxel on."""
    total = Roi((0, 0, 0), shape)
    for corner in product(*(range(0, n, b) for n, b in zip(shape, block, strict=True))):
        yield Roi(corner, block).intersect(total)


def slabs_of(roi: Roi, thickness: int) -> list[Roi]:
    """A box in slabs of so many sections."""
    z, y, x = roi.begin
    starts = range(z, roi.end[0], thickness)
    return [Roi((s, y, x), (thickness, *roi.shape[1:])).intersect(roi) for s in starts]


def block_size(value: object, lattice: WindowLattice, channels: int, unit: int = CHUNK) -> Shape:
    """The config's ``block_size`` for the prediction of a volume.

    A chosen one is the largest cube of at most ``MOST`` voxels along an edge whose sums
    (``bytes_of_sums``) take at most ``BLOCK_BYTES``, of whole files, and of whole intervals between
    windows where such a cube exists, cut to the volume; so a volume that is small enough is one
    block. It depends on nothing else, so a run goes on with more workers.

    Args:
        value: null for a chosen one, one whole number, or three for z, y and x.
        lattice: windows of the volume.
        channels: of the prediction, that are written.
        unit: edge of what one file of the output holds.

    Raises:
        InputError: blocks would share files of the output: a size that is not a multiple of
            ``unit``. Where these are single chunks, smaller blocks may take turns at one.
    """
    if value is None:
        side = min(MOST, math.isqrt(BLOCK_BYTES // bytes_of_sums(lattice, (1, 1), channels, unit)))
        z, y, x = (_aligned(side, i, unit) for i in lattice.interval)
    else:
        z, y, x = per_axis(value, "block_size")
    sizes = zip((z, y, x), lattice.shape, strict=True)
    if wrong := [b for b, n in sizes if b < n and b % unit and max(b, unit) > CHUNK]:
        raise InputError(
            f"block_size {[z, y, x]}: {wrong[0]} is not a multiple of {unit}, so two blocks would "
            f"write one file; take a multiple, or null."
        )
    depth, height, width = lattice.shape
    return min(z, depth), min(y, height), min(x, width)


def bytes_of_sums(
    lattice: WindowLattice, section: Sequence[int], channels: int, unit: int = CHUNK
) -> int:
    """What a block holds of its channels and of the weights of windows, float32.

    A block is predicted in slabs of ``unit`` sections; sums are held of those that a window shares
    sections with, and so of at most ``unit`` sections more than a window has.

    Args:
        lattice: windows of the volume.
        section: (H, W) of the block.
        channels: that are written.
        unit: sections of a slab.
    """
    return 4 * (channels + 1) * (lattice.window[0] + unit) * math.prod(section)


def _aligned(side: int, interval: int, file: int) -> int:
    """The largest multiple of file and interval up to ``side``; of the file alone if none is."""
    for unit in (math.lcm(file, interval), file):
        if unit <= side:
            return side // unit * unit
    return file


def written_channels(layout: ChannelLayout, lsds: bool) -> int:
    """Channels of a prediction that are written.

    Args:
        layout: of the network's channels.
        lsds: whether LSDs are written, too.
    """
    return layout.num_affinities + layout.num_classes + (layout.num_lsds if lsds else 0)
