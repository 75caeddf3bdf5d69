"""Targets of a volume block by block, as a cache stores them."""

from collections.abc import Callable, Sequence

import numpy as np
from funlib.geometry.roi import Roi
from numpy.typing import NDArray

from custom.targets.halo import affinity_reach, lsd_reach, weight_reach
from custom.targets.parts import affinity_part, lsd_part, weight_part
from custom.targets.settings import TargetSettings

FULL = 255
"""The stored value of 1: affinities are exact, LSDs are off by up to 1 / 510."""

Labelled = tuple[NDArray[np.integer], NDArray[np.bool_]]
ReadLabels = Callable[[Roi], Labelled]


def target_block(
    read: ReadLabels,
    shape: Sequence[int],
    block: Roi,
    voxel_size_nm: Sequence[float],
    settings: TargetSettings,
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Targets of one block, the same as those of the whole volume, cropped.

    ::

        |--------------------|   volume
             |wwwwww|            block
          |rrrrrrrrrrrr|         labels read: offsets, three sigma, or the reach of weights

    Args:
        read: labels and mask (D, H, W) of any box inside the volume.
        shape: of the volume.
        block: box of voxels inside the volume.
        voxel_size_nm: zyx.
        settings: of the targets.

    Returns:
        target: (K + L, D, H, W) uint8, affinities then LSDs, 255 stands for 1.
        weights: (D, H, W) float16, boundary weights; off by up to 1 / 2048 of themselves, or by
            3e-8 where that is more.
    """
    layout = settings.layout
    target = np.empty((layout.num_outputs, *block.shape), np.uint8)
    target[layout.affinities] = _affinities(read, shape, block, settings) * FULL
    if layout.num_lsds:
        descriptors = _descriptors(read, shape, block, voxel_size_nm, settings)
        target[layout.lsds] = np.rint(descriptors * FULL)
    weights = _weights(read, shape, block, voxel_size_nm, settings)
    return target, weights.astype(np.float16)


def restored(target: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Stored affinities and LSDs as numbers from 0 to 1."""
    return target.astype(np.float32) / np.float32(FULL)


def _affinities(
    read: ReadLabels, shape: Sequence[int], block: Roi, settings: TargetSettings
) -> NDArray[np.float32]:
    box = _around(block, affinity_reach(settings), shape)
    labels, _ = read(box)
    return affinity_part(labels, settings)[:, *(block - box.offset).to_slices()]


def _descriptors(
    read: ReadLabels,
    shape: Sequence[int],
    block: Roi,
    voxel_size_nm: Sequence[float],
    settings: TargetSettings,
) -> NDArray[np.float32]:
    """LSDs (L, D, H, W); where they are sampled, on the lattice of the whole volume."""
    steps = settings.lsd_downsample
    reach = [
        r + (4 * step if step > 1 else 0)
        for r, step in zip(lsd_reach(settings, voxel_size_nm), steps, strict=True)
    ]
    box = _around(block, reach, shape, steps)
    labels, _ = read(box)
    return lsd_part(labels, voxel_size_nm, settings, block - box.offset)


def _weights(
    read: ReadLabels,
    shape: Sequence[int],
    block: Roi,
    voxel_size_nm: Sequence[float],
    settings: TargetSettings,
) -> NDArray[np.float32]:
    box = _around(block, weight_reach(settings, voxel_size_nm), shape)
    labels, mask = read(box)
    weights = weight_part(labels, mask, voxel_size_nm, settings)
    return weights[(block - box.offset).to_slices()]


def _around(
    block: Roi, reach: Sequence[int], shape: Sequence[int], steps: Sequence[int] = (1, 1, 1)
) -> Roi:
    """A block grown by ``reach`` inside the volume, its begin on a multiple of ``steps``."""
    begin = [
        max(0, b - r) // step * step for b, r, step in zip(block.begin, reach, steps, strict=True)
    ]
    end = [min(n, e + r) for e, r, n in zip(block.end, reach, shape, strict=True)]
    return Roi(begin, [e - b for b, e in zip(begin, end, strict=True)])
