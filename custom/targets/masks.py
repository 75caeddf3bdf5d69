"""Where labels count."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import minimum_filter1d


def eroded(mask: NDArray[np.bool_], voxels: Sequence[int]) -> NDArray[np.bool_]:
    """A mask without what lies near its edge.

    A voxel stays where all voxels of the box that reaches ``voxels`` from it, as far as they are in
    the array, are in ``mask``: the border of the array is no edge::

        mask     ....######|      voxels 2
        eroded   ......####|

    Args:
        mask: True where labels are annotated, shape (D, H, W).
        voxels: from the edge, zyx, 0 for none; with that many around a box its erosion is exact.

    Returns:
        (D, H, W) bool.
    """
    kept = mask.view(np.uint8)
    for axis, distance in enumerate(voxels):
        if distance:
            size = 2 * distance + 1
            kept = minimum_filter1d(kept, size, axis, mode="constant", cval=1)
    return kept.astype(np.bool_)
