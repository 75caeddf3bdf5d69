"""Affinities between voxels that share a face, and the pieces that they link."""

from collections.abc import Sequence

import cc3d
import numpy as np
from numpy.typing import NDArray

from custom.segmentation.fragments import Offset, consecutive

Axes = tuple[bool, bool, bool]


def face_channels(offsets: Sequence[Offset]) -> dict[int, tuple[int, int]]:
    """For every axis that an offset leads along by one voxel, the first such offset.

    Args:
        offsets: K neighbour offsets in voxels, zyx.

    Returns:
        From the axis, 0 to 2, to the offset's position among ``offsets`` and its sign.
    """
    found: dict[int, tuple[int, int]] = {}
    for k, offset in enumerate(offsets):
        axes = [axis for axis in range(3) if offset[axis]]
        if len(axes) == 1 and abs(offset[axes[0]]) == 1:
            found.setdefault(axes[0], (k, offset[axes[0]]))
    return found


def face_affinities(
    affinities: NDArray[np.uint8],
    offsets: Sequence[Offset],
    mask: NDArray[np.bool_] | None = None,
) -> NDArray[np.uint8]:
    """Affinity of every voxel to the one before it along each axis.

    ``faces[axis, p]`` links ``p`` and ``p - e_axis``, whichever way the offset leads: waterz's
    order. It is 0 where the one before lies outside the array, where one of both is outside the
    mask, and for an axis that no offset leads along.

    Args:
        affinities: (K, D, H, W) uint8; further channels are ignored.
        offsets: K neighbour offsets in voxels, zyx; only those of one voxel along one axis count.
        mask: (D, H, W), True where voxels count.

    Returns:
        (3, D, H, W) uint8.
    """
    shape = affinities.shape[1:]
    faces = np.zeros((3, *shape), dtype=np.uint8)
    for axis, (k, sign) in face_channels(offsets).items():
        before, after = _neighbours(axis)
        links = affinities[k][before if sign > 0 else after]
        if mask is not None:
            links = links * (mask[before] & mask[after])
        faces[axis][after] = links
    return faces


def linked_pieces(faces: NDArray[np.bool_], counted: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Pieces of voxels that open faces link.

    Args:
        faces: (3, D, H, W), True where a voxel and the one before it along the axis are linked.
        counted: (D, H, W), True for the voxels to number.

    Returns:
        (D, H, W) uint64, 0 where not ``counted``, else ids from 1 on without gaps; a voxel that
        nothing links is a piece of its own.
    """
    ways = np.zeros(counted.shape, dtype=np.uint8)  # bits of cc3d: 2 axis forwards, 2 axis + 1 back
    for axis in range(3):
        before, after = _neighbours(axis)
        linked = faces[axis][after] & counted[before] & counted[after]
        ways[after] |= linked.astype(np.uint8) << (2 * axis + 1)
        ways[before] |= linked.astype(np.uint8) << (2 * axis)
    pieces = cc3d.color_connectivity_graph(ways, connectivity=6)
    return consecutive(np.where(counted, pieces, 0))


def same_across_faces(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """(3, D, H, W), True where a voxel and the one before it along the axis have one label."""
    same = np.zeros((3, *labels.shape), dtype=np.bool_)
    for axis in range(3):
        before, after = _neighbours(axis)
        same[axis][after] = labels[before] == labels[after]
    return same


def _neighbours(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Slices of all voxels but the last along an axis, and of those one further."""
    whole = [slice(None)] * 3
    before, after = whole.copy(), whole.copy()
    before[axis], after[axis] = slice(None, -1), slice(1, None)
    return tuple(before), tuple(after)
