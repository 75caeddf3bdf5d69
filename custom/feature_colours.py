"""Features as colours: their principal components as red, green and blue."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from custom.features.triplane import PlaneGrid
from custom.pictures import Colours, principal_colours

Value = TypeVar("Value", bound=np.generic)


def colours_of_grids(
    grids: Mapping[str, PlaneGrid], shapes: Mapping[str, Sequence[int]]
) -> dict[str, Colours]:
    """Every voxel in the colour of the patch that it lies in; one basis for all planes.

    Args:
        grids: of some planes, each of a box.
        shapes: (D, H, W) of every plane's box; a plane without a grid is black.

    Returns:
        (D, H, W, 3) by plane.
    """
    features = [np.moveaxis(grid.values.float().cpu().numpy(), 0, -1) for grid in grids.values()]
    found = dict(zip(grids, principal_colours(features), strict=True))
    return {
        plane: nearest(found[plane], grids[plane].start, grids[plane].step, shape)
        if plane in found
        else np.zeros((*shape, 3), np.uint8)
        for plane, shape in shapes.items()
    }


def colours_of_dense(features: Mapping[str, Tensor]) -> dict[str, Colours]:
    """Every voxel in the colour of its own features; one basis for all boxes.

    Args:
        features: (C, D, H, W) by plane.

    Returns:
        (D, H, W, 3) by plane.
    """
    dense = [values.movedim(0, -1).float().cpu().numpy() for values in features.values()]
    return dict(zip(features, principal_colours(dense), strict=True))


def nearest(
    entries: NDArray[Value], start: Sequence[float], step: Sequence[float], shape: Sequence[int]
) -> NDArray[Value]:
    """The entry of a grid that each voxel lies in.

    Args:
        entries: (d, h, w, ...), zyx.
        start: corner of the first entry, voxels, zyx.
        step: voxels per entry, zyx.
        shape: (D, H, W) of the box.

    Returns:
        (D, H, W, ...); beyond the grid its border repeats.
    """
    for axis in range(3):
        position = (np.arange(shape[axis]) + 0.5 - start[axis]) / step[axis]
        index = np.clip(np.floor(position).astype(int), 0, entries.shape[axis] - 1)
        entries = np.take(entries, index, axis=axis)
    return entries
