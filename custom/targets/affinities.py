"""Affinities between a voxel and its neighbours at given offsets."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Offset = Sequence[int]

BACKGROUNDS = ("apart", "joined")
"""Whether two voxels of background belong together."""


def affinities(
    labels: NDArray[np.integer],
    offsets: Sequence[Offset],
    mask: NDArray[np.bool_] | None = None,
    background: Literal["apart", "joined"] | str = "apart",
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Affinity of every voxel to its neighbour at each offset.

    ``affinity[k, p]`` is 1 when ``labels[p]`` and ``labels[p + offsets[k]]`` are
    the same non-zero label, else 0. With the background "joined", two voxels of background have
    affinity 1, too: it is one more object.

    Args:
        labels: instance labels, shape (D, H, W), zyx; 0 is background.
        offsets: K neighbour offsets in voxels, zyx, positive or negative.
        mask: True where ``labels`` is annotated, shape (D, H, W); everywhere when left out.
        background: "apart" or "joined".

    Returns:
        affinity: (K, D, H, W) float32, 0 or 1.
        valid: (K, D, H, W) bool, True where voxel and neighbour both lie inside ``labels``
            and inside ``mask``. ``affinity`` itself does not look at ``mask``.

    Raises:
        ValueError: ``labels`` is not 3D, ``mask`` has another shape, an offset does not have
            three numbers, an offset is zero, or ``background`` is unknown.

    Source:
        Turaga et al. 2010, Neural Computation 22(2).
    """
    if labels.ndim != 3:
        raise ValueError(f"labels must be 3D (D, H, W), got shape {labels.shape}")
    if mask is not None and mask.shape != labels.shape:
        raise ValueError(f"mask must have the shape of labels {labels.shape}, got {mask.shape}")
    for k, offset in enumerate(offsets):
        if len(offset) != 3:
            raise ValueError(f"offset {k} must have three numbers (z, y, x), got {list(offset)}")
        if not any(offset):
            raise ValueError(f"offset {k} is zero; a voxel is not its own neighbour")
    if background not in BACKGROUNDS:
        raise ValueError(f"background must be 'apart' or 'joined', got {background!r}")
    affinity = np.zeros((len(offsets), *labels.shape), dtype=np.float32)
    for k, offset in enumerate(offsets):
        here, there = paired_slices(labels.shape, offset)
        same = labels[here] == labels[there]
        affinity[k][here] = same & (labels[here] != 0) if background == "apart" else same
    counts = np.ones(labels.shape, dtype=np.bool_) if mask is None else mask
    return affinity, valid_affinities(counts, offsets)


def valid_affinities(mask: NDArray[np.bool_], offsets: Sequence[Offset]) -> NDArray[np.bool_]:
    """Where affinities count: voxel and neighbour both lie inside the array and inside ``mask``.

    Args:
        mask: True where labels are annotated, shape (D, H, W).
        offsets: K neighbour offsets in voxels, zyx.

    Returns:
        (K, D, H, W) bool.
    """
    valid = np.zeros((len(offsets), *mask.shape), dtype=np.bool_)
    for k, offset in enumerate(offsets):
        here, there = paired_slices(mask.shape, offset)
        valid[k][here] = mask[here] & mask[there]
    return valid


def paired_slices(
    shape: Sequence[int], offset: Offset
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Voxels whose neighbour at ``offset`` is inside the array, and those neighbours."""
    here = tuple(
        slice(max(0, -o), max(0, -o, n - max(0, o))) for n, o in zip(shape, offset, strict=True)
    )
    there = tuple(
        slice(max(0, o), max(0, o, n - max(0, -o))) for n, o in zip(shape, offset, strict=True)
    )
    return here, there
