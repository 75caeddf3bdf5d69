"""Features of every voxel: the mean over the planes of the upsampled grids, a box at a time."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from funlib.geometry.roi import Roi
from torch import Tensor

from custom.features.triplane import PlaneGrid, average, crop

TILE = (16, 32, 32)  # voxels that are upsampled at once; whole chunks of a cache


def tiles(shape: Sequence[int], first: int = 0) -> Iterator[tuple[Roi, int]]:
    """Boxes of at most ``TILE`` that cover a box from its section ``first`` on.

    Yields:
        box, and the number of sections that are covered after it.
    """
    for z in range(first, shape[0], TILE[0]):
        corners = [(y, x) for y in range(0, shape[1], TILE[1]) for x in range(0, shape[2], TILE[2])]
        for y, x in corners:
            size = [min(t, s - c) for t, s, c in zip(TILE, shape, (z, y, x), strict=True)]
            yield Roi((z, y, x), size), z + size[0] if (y, x) == corners[-1] else z


def dense_features(
    grids: Mapping[str, PlaneGrid], shape: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """As ``triplane.average``, (C, D, H, W) of ``dtype``; besides the result, memory is bounded."""
    channels = next(iter(grids.values())).values.shape[0]
    result = torch.empty((channels, *shape), dtype=dtype)
    for box, _ in tiles(shape):
        parts = {plane: crop(grid, box.offset, box.shape) for plane, grid in grids.items()}
        result[(slice(None), *box.to_slices())] = average(parts, box.shape)
    return result
