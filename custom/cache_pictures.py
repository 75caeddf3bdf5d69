"""A cached volume as one picture: raw, features and labels of three slices."""

from collections.abc import Mapping, Sequence

import numpy as np
from funlib.geometry.roi import Roi

from custom.feature_colours import colours_of_dense, colours_of_grids
from custom.features.cache import CachedVolume
from custom.pictures import (
    Colours,
    contact_sheet,
    grey_image,
    paint,
    plane_slice,
)
from custom.planes import NORMAL_AXIS, PLANES


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


def _middle(shape: Sequence[int], plane: str) -> Roi:
    """Box of the middle slice of a plane."""
    offset, size = [0, 0, 0], list(shape)
    offset[NORMAL_AXIS[plane]], size[NORMAL_AXIS[plane]] = shape[NORMAL_AXIS[plane]] // 2, 1
    return Roi(offset, size)


def _feature_colours(volume: CachedVolume, boxes: Mapping[str, Roi]) -> dict[str, Colours]:
    """Colours (D, H, W, 3) of every plane's slice."""
    if volume.spec.layout == "dense":
        return colours_of_dense({plane: volume.read_features(b) for plane, b in boxes.items()})
    grids = {plane: volume.plane_grid(plane, boxes[plane]) for plane in volume.spec.planes}
    return colours_of_grids(grids, {plane: box.shape for plane, box in boxes.items()})


def _labels(volume: CachedVolume, box: Roi) -> Colours:
    labels, mask = volume.read_labels(box)
    return paint(np.where(mask, labels, 0))
