"""A cached volume as one picture: raw, features and labels of three slices."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from funlib.geometry.roi import Roi
from numpy.typing import NDArray

from custom.features.cache import CachedVolume
from custom.pictures import (
    Colours,
    contact_sheet,
    grey_image,
    paint,
    plane_slice,
    principal_colours,
)
from custom.planes import NORMAL_AXIS, PLANES

Value = TypeVar("Value", bound=np.generic)


def volume_sheet(volume: CachedVolume) -> Colours:
    """Middle slices of a volume's three planes side by side: raw, features, labels.

    The features of a slice are its own plane's, every voxel in the colour of the patch that it lies
    in: the first three principal components of all slices' features as red, green and blue. A plane
    that was not cached is black. In the dense layout every voxel has the colour of its own
    features. Without labels their column is missing.
    """
    boxes = {plane: _middle(volume.shape, plane) for plane in PLANES}
    size = volume.voxel_size_nm
    columns = {
        "raw": [
            plane_slice(grey_image(volume.read_raw(box), *volume.raw_window), plane, size)
            for plane, box in boxes.items()
        ],
        "features": [
            plane_slice(colours, plane, size)
            for plane, colours in _feature_colours(volume, boxes).items()
        ],
    }
    if volume.has_labels:
        columns["labels"] = [
            plane_slice(_labels(volume, box), plane, size) for plane, box in boxes.items()
        ]
    return contact_sheet(columns, PLANES)


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


def _middle(shape: Sequence[int], plane: str) -> Roi:
    """Box of the middle slice of a plane."""
    offset, size = [0, 0, 0], list(shape)
    offset[NORMAL_AXIS[plane]], size[NORMAL_AXIS[plane]] = shape[NORMAL_AXIS[plane]] // 2, 1
    return Roi(offset, size)


def _feature_colours(volume: CachedVolume, boxes: Mapping[str, Roi]) -> dict[str, Colours]:
    """Colours (D, H, W, 3) of every plane's slice."""
    if volume.spec.layout == "dense":
        dense = [volume.read_features(box).movedim(0, -1).float().numpy() for box in boxes.values()]
        return dict(zip(boxes, principal_colours(dense), strict=True))
    grids = {plane: volume.plane_grid(plane, boxes[plane]) for plane in volume.spec.planes}
    features = [np.moveaxis(grid.values.float().numpy(), 0, -1) for grid in grids.values()]
    found = dict(zip(grids, principal_colours(features), strict=True))
    black: Colours = np.zeros((1, 1, 1, 3), np.uint8)
    return {
        plane: nearest(found[plane], grids[plane].start, grids[plane].step, box.shape)
        if plane in found
        else nearest(black, (0, 0, 0), (1, 1, 1), box.shape)
        for plane, box in boxes.items()
    }


def _labels(volume: CachedVolume, box: Roi) -> Colours:
    labels, mask = volume.read_labels(box)
    return paint(np.where(mask, labels, 0))
