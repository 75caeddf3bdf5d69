"""A block's part of the volume as contexts see it: coarser, and only where its windows look."""

from collections.abc import Sequence

import torch
from funlib.geometry import Coordinate, Roi

from custom.blockwise.sources import BlockSource
from custom.context import SLAB, CoarseVolume, Factor, coarsen, first_around
from custom.features.triplane import GridPart, entries_for
from custom.planes import NORMAL_AXIS


def context_reach(window: Sequence[int], factor: Sequence[int]) -> tuple[int, ...]:
    """What a window's context reaches beyond it on either side, voxels, zyx.

    The context is ``factor`` windows wide and has its centre; its coarse voxels lie on the volume's
    own lattice, which moves it by up to one of them: ``(factor - 1) * window / 2 + factor``.
    """
    sizes = zip(window, factor, strict=True)
    return tuple(0 if f == 1 else -(-(f - 1) * w // 2) + f for w, f in sizes)


def coarse_part(
    source: BlockSource, factor: Factor, box: Roi, window: Sequence[int]
) -> CoarseVolume:
    """What contexts of the windows in a box are cut from, read a slab at a time.

    It gives the same contexts as ``coarse_volume`` of the whole volume.

    Args:
        source: the volume.
        factor: voxels per coarse voxel, zyx.
        box: hull of the windows.
        window: (D, H, W) of each.
    """
    lowest, highest = box.begin, [e - w for e, w in zip(box.end, window, strict=True)]
    first, last = (first_around(corner, window, factor) for corner in (lowest, highest))
    count = [-(-n // f) for n, f in zip(source.shape, factor, strict=True)]
    coarse = _clipped(first, [f + w for f, w in zip(last, window, strict=True)], count)
    image = torch.cat(
        [coarsen(source.image(slab), factor) for slab in _slabs(coarse, factor, source.shape)], 1
    )
    features = None
    if source.dense:
        parts = [
            coarsen(source.features(slab), factor) for slab in _slabs(coarse, factor, source.shape)
        ]
        features = torch.cat(parts, 1)
    grids = {
        plane: _coarse_grid(source, plane, factor, (first, last), window) for plane in source.planes
    }
    return CoarseVolume(factor, image, grids, features, tuple(coarse.begin))


def _coarse_grid(
    source: BlockSource,
    plane: str,
    factor: Factor,
    corners: tuple[Sequence[int], Sequence[int]],
    window: Sequence[int],
) -> GridPart:
    """As ``coarse_grid`` of the whole volume, what the contexts from first to last corner need."""
    whole, step = source.placed(plane)
    begin, count = entries_for(whole, step, (0, 0, 0), source.shape)
    starts = zip(whole, begin, step, factor, strict=True)
    z, y, x = ((s + b * t) / f for s, b, t, f in starts)
    first, _ = entries_for((z, y, x), step, corners[0], window)
    last, size = entries_for((z, y, x), step, corners[1], window)
    available = [-(-c // f) for c, f in zip(count, factor, strict=True)]
    part = _clipped(first, [e + s for e, s in zip(last, size, strict=True)], available)
    axis = NORMAL_AXIS[plane]
    values = [
        coarsen(source.entries(plane, slab + Coordinate(begin)), factor)
        for slab in _slabs(part, factor, count, axis)
    ]
    return GridPart(torch.cat(values, 1 + axis), (z, y, x), step, tuple(part.begin))


def _clipped(first: Sequence[int], end: Sequence[int], count: Sequence[int]) -> Roi:
    """Entries from ``first`` to ``end``, and at least one, of ``count``."""
    begin = [min(max(f, 0), c - 1) for f, c in zip(first, count, strict=True)]
    ends = [min(max(e, b + 1), c) for e, b, c in zip(end, begin, count, strict=True)]
    return Roi(begin, [e - b for e, b in zip(ends, begin, strict=True)])


def _slabs(coarse: Roi, factor: Factor, size: Sequence[int], axis: int = 0) -> list[Roi]:
    """A box of coarse entries in slabs of ``SLAB`` along an axis, each in fine entries."""
    slabs = []
    for start in range(coarse.begin[axis], coarse.end[axis], SLAB):
        begin, end = list(coarse.begin), list(coarse.end)
        begin[axis], end[axis] = start, min(start + SLAB, end[axis])
        low = [b * f for b, f in zip(begin, factor, strict=True)]
        high = [min(e * f, n) for e, f, n in zip(end, factor, size, strict=True)]
        slabs.append(Roi(low, [h - b for h, b in zip(high, low, strict=True)]))
    return slabs
