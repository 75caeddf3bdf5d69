"""Small operations on fragments: renumbering, means, connected pieces, small ones removed."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import generate_binary_structure
from skimage.measure import label as connected_pieces
from skimage.segmentation import watershed

Offset = Sequence[int]
Cut = tuple[tuple[bool, bool, bool], tuple[bool, bool, bool]]
"""At which faces an array is cut out of a larger one: at the lower ends zyx, at the upper ends."""
UNCUT: Cut = ((False, False, False), (False, False, False))


def consecutive(labels: NDArray[np.integer]) -> NDArray[np.uint64]:
    """The same partition with ids 1, 2, ... in the order in which a scan meets them; 0 stays 0."""
    ids, first, index = np.unique(labels, return_index=True, return_inverse=True)
    numbers = np.zeros(ids.size, dtype=np.uint64)
    order = np.argsort(np.where(ids == 0, -1, first))
    numbers[order] = np.arange(ids.size) + (0 if (ids == 0).any() else 1)
    return numbers[index].reshape(labels.shape)


def connected_components(labels: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Every piece of a label that is connected by faces as its own label; 0 stays 0.

    Args:
        labels: shape (D, H, W), any integer dtype.

    Returns:
        (D, H, W) uint64, ids from 1 on without gaps.
    """
    numbered = consecutive(labels).astype(np.int64)
    pieces = connected_pieces(numbered, background=0, connectivity=1)  # type: ignore[no-untyped-call]  # scikit-image has no types
    return consecutive(pieces)


def is_short_range(offset: Offset) -> bool:
    """Whether an offset leads to a voxel that touches (no component beyond 1)."""
    return max(abs(o) for o in offset) == 1


def linked_axes(offsets: Sequence[Offset]) -> tuple[bool, bool, bool]:
    """Axes z, y, x along which some offset leads; without z, every section is on its own."""
    z, y, x = (any(offset[axis] for offset in offsets) for axis in range(3))
    return z, y, x


def short_range_mean(
    affinities: NDArray[np.uint8] | NDArray[np.floating], offsets: Sequence[Offset]
) -> NDArray[np.float32]:
    """Mean of the short-range affinities of every voxel, on the scale 0 to 1.

    Args:
        affinities: (K, D, H, W), uint8 from 0 to 255 or float from 0 to 1.
        offsets: K neighbour offsets in voxels, zyx.

    Returns:
        (D, H, W) float32.

    Raises:
        ValueError: no offset is short-range.
    """
    short = [k for k, offset in enumerate(offsets) if is_short_range(offset)]
    if not short:
        raise ValueError(f"no offset among {list(offsets)} is short-range (components of 0, 1)")
    total = np.zeros(affinities.shape[1:], dtype=np.float32)
    for k in short:
        total += affinities[k]
    scale = 255 if affinities.dtype == np.uint8 else 1
    return total / np.float32(len(short) * scale)


def remove_small_fragments(
    labels: NDArray[np.integer],
    min_size: int,
    affinity: NDArray[np.floating] | None = None,
    linked: Sequence[bool] = (True, True, True),
    cut: Cut = UNCUT,
) -> NDArray[np.uint64]:
    """Fragments of fewer than ``min_size`` voxels removed, or grown over by their neighbours.

    With ``affinity``, a watershed from the remaining fragments fills the removed voxels, those
    of high affinity first. Voxels that were 0 stay 0, so that a removed fragment with no
    remaining neighbour across a face becomes 0.

    Args:
        labels: fragments, shape (D, H, W); 0 is background.
        min_size: smallest number of voxels that stays; 0 or 1 removes nothing.
        affinity: (D, H, W), for example ``short_range_mean``; without it the removed become 0.
        linked: axes z, y, x along which neighbours grow; ``linked_axes`` of the offsets.
        cut: faces where fragments go on: those that touch one stay, whatever their size here.

    Returns:
        (D, H, W) uint64, ids from 1 on without gaps.

    Raises:
        ValueError: ``affinity`` has another shape.
    """
    if affinity is not None:
        _check_same_shape(affinity, labels)
    numbered = consecutive(labels).astype(np.int64)
    large = np.bincount(numbered.ravel()) >= min_size
    large |= touching(numbered, cut)
    kept = np.where(large[numbered], numbered, 0)
    if affinity is not None:
        near = generate_binary_structure(3, 1)
        for axis in (axis for axis in range(3) if not linked[axis]):
            near &= np.arange(3).reshape([-1 if a == axis else 1 for a in range(3)]) == 1
        kept = watershed(-affinity, kept, near, mask=labels != 0)  # type: ignore[no-untyped-call]
    return consecutive(kept)


def remove_weak_fragments(
    labels: NDArray[np.integer],
    affinity: NDArray[np.floating],
    min_affinity: float,
    cut: Cut = UNCUT,
) -> NDArray[np.uint64]:
    """Fragments whose mean affinity is below ``min_affinity`` become background.

    Args:
        labels: fragments, shape (D, H, W); 0 is background.
        affinity: (D, H, W), for example ``short_range_mean``.
        min_affinity: on the scale of ``affinity``.
        cut: faces where fragments go on: those that touch one stay.

    Returns:
        (D, H, W) uint64, ids from 1 on without gaps.

    Raises:
        ValueError: ``affinity`` has another shape.
    """
    _check_same_shape(affinity, labels)
    numbered = consecutive(labels).astype(np.int64)
    flat = numbered.ravel()
    mean = np.bincount(flat, affinity.ravel()) / np.maximum(np.bincount(flat), 1)
    strong = (mean >= min_affinity) | touching(numbered, cut)
    return consecutive(np.where(strong[numbered], numbered, 0))


def touching(numbered: NDArray[np.int64], cut: Cut) -> NDArray[np.bool_]:
    """Which fragments touch a cut face.

    Args:
        numbered: (D, H, W), ids without large gaps; 0 is background.
        cut: the faces.

    Returns:
        (largest id + 1,), True for ids that do; False for 0.
    """
    found = np.zeros(int(numbered.max(initial=0)) + 1, dtype=np.bool_)
    for faces, end in zip(cut, (0, -1), strict=True):
        for axis in (axis for axis in range(3) if faces[axis]):
            found[numbered.take(end, axis)] = True
    found[0] = False
    return found


def _check_same_shape(affinity: NDArray[np.floating], labels: NDArray[np.integer]) -> None:
    """Raise unless both arrays cover the same voxels."""
    if affinity.shape != labels.shape:
        raise ValueError(
            f"affinity must have the shape of labels {labels.shape}, got {affinity.shape}"
        )
