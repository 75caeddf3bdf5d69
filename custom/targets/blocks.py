"""Targets of a volume block by block, as a cache stores them."""

from collections.abc import Callable, Sequence

import numpy as np
from funlib.geometry.roi import Roi
from numpy.typing import NDArray

from custom.targets.affinities import affinities
from custom.targets.boundary_weights import boundary_distance
from custom.targets.halo import affinity_reach, lsd_reach
from custom.targets.parts import lsd_part
from custom.targets.settings import TargetSettings

FULL = 255
"""The stored value of 1: affinities are exact, LSDs are off by up to 1 / 510."""

FIRST_REACH = 32  # voxels; doubled until the nearest boundary of every voxel is in sight

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
          |rrrrrrrrrrrr|         labels read: offsets, three sigma, or up to the nearest boundary

    Args:
        read: labels and mask (D, H, W) of any box inside the volume.
        shape: of the volume.
        block: box of voxels inside the volume.
        voxel_size_nm: zyx.
        settings: of the targets.

    Returns:
        target: (K + L, D, H, W) uint8, affinities then LSDs, 255 stands for 1.
        weights: (D, H, W) float16, boundary weights; off by up to 1 / 2048 of themselves.
    """
    layout = settings.layout
    target = np.empty((layout.num_outputs, *block.shape), np.uint8)
    target[layout.affinities] = _affinities(read, shape, block, settings) * FULL
    if layout.num_lsds:
        descriptors = _descriptors(read, shape, block, voxel_size_nm, settings)
        target[layout.lsds] = np.rint(descriptors * FULL)
    weights = _weights(read, shape, block, voxel_size_nm, settings.boundary_power)
    return target, weights.astype(np.float16)


def restored(target: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Stored affinities and LSDs as numbers from 0 to 1."""
    return target.astype(np.float32) / np.float32(FULL)


def _affinities(
    read: ReadLabels, shape: Sequence[int], block: Roi, settings: TargetSettings
) -> NDArray[np.float32]:
    box = _around(block, affinity_reach(settings), shape)
    affinity, _ = affinities(read(box)[0], settings.affinity_offsets)
    return affinity[:, *(block - box.offset).to_slices()]


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
    power: float,
) -> NDArray[np.float32]:
    """Boundary weights (D, H, W); as much is read as their nearest boundaries are away."""
    if power == 0:
        return np.ones(tuple(block.shape), np.float32)
    reach = FIRST_REACH
    while True:
        box = _around(block, (reach,) * 3, shape)
        labels, mask = read(box)
        inner = (block - box.offset).to_slices()
        distance = boundary_distance(labels, voxel_size_nm, mask)[inner]
        counts = (
            mask[inner] & np.isfinite(distance) if box == Roi((0, 0, 0), shape) else mask[inner]
        )
        seen = _seen(box, block, shape, voxel_size_nm)
        if not (counts & (distance > seen)).any():
            return np.where(counts, np.power(1 + distance, -power), 1)
        reach *= 2


def _seen(
    box: Roi, block: Roi, shape: Sequence[int], voxel_size: Sequence[float]
) -> NDArray[np.float32]:
    """Distance within which all boundary voxels around a block's voxels are known, (D, H, W).

    Of a box's outermost voxels it is not known whether they are boundary, except at the volume's
    own border.
    """
    seen = np.full(tuple(block.shape), np.inf, np.float32)
    for axis, edge in enumerate(np.asarray(voxel_size) / min(voxel_size)):
        at = np.arange(block.begin[axis], block.end[axis])
        before = at - box.begin[axis] if box.begin[axis] > 0 else np.inf
        after = box.end[axis] - 1 - at if box.end[axis] < shape[axis] else np.inf
        known = np.broadcast_to(edge * np.minimum(before, after), at.shape)
        seen = np.minimum(seen, known.reshape([-1 if a == axis else 1 for a in range(3)]))
    return seen.astype(np.float32)


def _around(
    block: Roi, reach: Sequence[int], shape: Sequence[int], steps: Sequence[int] = (1, 1, 1)
) -> Roi:
    """A block grown by ``reach`` inside the volume, its begin on a multiple of ``steps``."""
    begin = [
        max(0, b - r) // step * step for b, r, step in zip(block.begin, reach, steps, strict=True)
    ]
    end = [min(n, e + r) for e, r, n in zip(block.end, reach, shape, strict=True)]
    return Roi(begin, [e - b for b, e in zip(begin, end, strict=True)])
