"""Fragments or segments from affinities by the mutex watershed."""

from collections.abc import Sequence

import mwatershed
import numpy as np
from numpy.typing import NDArray

from custom.segmentation.fragments import Offset, consecutive, is_short_range

_LONG_RANGE_STRIDE = 4


def mutex_watershed(
    affinities: NDArray[np.uint8] | NDArray[np.floating],
    offsets: Sequence[Offset],
    bias: float | Sequence[float] = -0.5,
    strides: Sequence[Sequence[int]] | None = None,
    mask: NDArray[np.bool_] | None = None,
    noise: float = 0.0,
    seed: int = 0,
) -> NDArray[np.uint64]:
    """Labels in which strong affinities join voxels and weak ones keep them apart.

    Every edge (voxel ``p``, voxel ``p + offsets[k]``) has the score ``affinity + bias``, positive
    to join and negative to keep apart. Edges are taken by decreasing absolute score; one that
    would join two clusters that are kept apart, or the reverse, is dropped. A voxel that nothing
    joins is a fragment of its own.

    Memory is about 100 bytes a voxel and 60 bytes an edge, beside 8 K bytes a voxel for scores:
    with nine offsets 362 bytes a voxel in all.

    Args:
        affinities: (K, D, H, W), uint8 from 0 to 255 or float from 0 to 1.
        offsets: K neighbour offsets in voxels, zyx; ``affinities[k, p]`` links ``p`` and
            ``p + offsets[k]``. Offsets that leave the array everywhere play no part.
        bias: added to affinities (on the scale 0 to 1), usually between -1 and 0; nearer to -1
            splits more. One number for all offsets, one per offset, or two: for short-range
            offsets (no component beyond 1) and for the others.
        strides: for every offset the sub-sampling of its edges, zyx, at least 1. By default all
            edges of the short-range offsets and one in 4 x 4 x 4 of the others; few long-range
            edges are enough to keep objects apart, and memory grows with their number.
        mask: True where to segment, shape (D, H, W); everywhere when left out.
        noise: standard deviation of Gaussian noise added to the scores, which breaks the ties of
            uint8 affinities without a preferred direction.
        seed: of the noise.

    Returns:
        (D, H, W) uint64, 0 outside ``mask``, else ids from 1 on without gaps, in the order in
        which a scan meets them. Equal input gives equal output.

    Raises:
        ValueError: shapes or lengths do not match, a stride is below 1, or affinities are not
            finite.

    Source:
        Wolf et al. 2018, ECCV; the implementation is the package mwatershed.
    """
    shape = affinities.shape[1:]
    if affinities.ndim != 4 or len(affinities) != len(offsets):
        raise ValueError(
            f"affinities must be (K, D, H, W) with one channel for each of the {len(offsets)} "
            f"offsets, got shape {affinities.shape}"
        )
    if mask is None:
        mask = np.ones(shape, dtype=np.bool_)
    if mask.shape != shape:
        raise ValueError(f"mask must have the shape of one channel {shape}, got {mask.shape}")
    biases = _per_offset_biases(bias, offsets)
    steps = _per_offset_strides(strides, offsets)
    inside = [k for k, o in enumerate(offsets) if _reaches(o, shape)]
    scores = np.empty((len(inside), *shape), dtype=np.float64)
    random = np.random.default_rng(seed)
    for score, k in zip(scores, inside, strict=True):
        np.multiply(affinities[k], 1 / 255 if affinities.dtype == np.uint8 else 1, out=score)
        score += biases[k]
        if noise > 0:
            score += random.normal(0, noise, shape)
        score[~(mask & _shifted(mask, offsets[k]))] = 0  # no edge
    if not np.isfinite(scores).all():
        raise ValueError("affinities must be finite where mask is True, found NaN or infinity")
    labels = mwatershed.agglom(
        scores, [list(offsets[k]) for k in inside], strides=[steps[k] for k in inside]
    )
    return _single_voxels_numbered(labels, mask)


def _reaches(offset: Offset, shape: Sequence[int]) -> bool:
    """Whether some voxel has its neighbour inside an array of ``shape``."""
    return all(abs(o) < n for o, n in zip(offset, shape, strict=True))


def _per_offset_biases(bias: float | Sequence[float], offsets: Sequence[Offset]) -> list[float]:
    """One bias for every offset, from one, from two (short and long range) or from K."""
    given = [float(b) for b in np.atleast_1d(np.asarray(bias, dtype=np.float64))]
    if len(given) == len(offsets):
        return given
    if len(given) not in (1, 2):
        raise ValueError(
            f"bias must be one number, two (short and long range) or {len(offsets)} "
            f"(one for each offset), got {len(given)}"
        )
    return [given[0] if is_short_range(offset) else given[-1] for offset in offsets]


def _per_offset_strides(
    strides: Sequence[Sequence[int]] | None, offsets: Sequence[Offset]
) -> list[list[int]]:
    """The given strides, checked, or the default."""
    if strides is None:
        return [[1 if is_short_range(o) else _LONG_RANGE_STRIDE] * 3 for o in offsets]
    if len(strides) != len(offsets) or any(len(s) != 3 or min(s) < 1 for s in strides):
        raise ValueError(
            f"strides must be {len(offsets)} triples (one for each offset) of numbers from 1 on, "
            f"got {list(strides)}"
        )
    return [list(s) for s in strides]


def _shifted(mask: NDArray[np.bool_], offset: Offset) -> NDArray[np.bool_]:
    """``mask[p + offset]`` for every voxel ``p``, False outside the array."""
    result = np.zeros_like(mask)
    here = tuple(slice(max(0, -o), n - max(0, o)) for o, n in zip(offset, mask.shape, strict=True))
    there = tuple(slice(max(0, o), n - max(0, -o)) for o, n in zip(offset, mask.shape, strict=True))
    result[here] = mask[there]
    return result


def _single_voxels_numbered(
    labels: NDArray[np.uint64], mask: NDArray[np.bool_]
) -> NDArray[np.uint64]:
    """Consecutive ids, with a new one for every voxel that nothing joined (0 in mwatershed)."""
    alone = mask & (labels == 0)
    labels[alone] = labels.max(initial=0) + 1 + np.arange(np.count_nonzero(alone), dtype=np.uint64)
    return consecutive(labels)
