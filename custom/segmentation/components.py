"""Connected components of thresholded affinities."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from custom.segmentation.faces import face_affinities, linked_pieces
from custom.segmentation.fragments import Offset
from custom.segmentation.masking import check_affinities

LEVELS = 255


def affinity_components(
    affinities: NDArray[np.uint8],
    offsets: Sequence[Offset],
    threshold: float = 0.5,
    mask: NDArray[np.bool_] | None = None,
) -> NDArray[np.uint64]:
    """Pieces of voxels that are linked across faces by affinities above a threshold.

    Only offsets of one voxel along one axis link voxels; where no offset leads along z, no piece
    has voxels in two sections.

    Args:
        affinities: (K, D, H, W) uint8, 0 to 255.
        offsets: K offsets, voxels, zyx.
        threshold: 0 to 1; an affinity at it does not link.
        mask: (D, H, W), True where to segment; everywhere when left out.

    Returns:
        (D, H, W) uint64, 0 outside ``mask``, else ids from 1 on without gaps, in the order in
        which a scan meets them. A voxel that nothing links is a piece of its own.

    Raises:
        ValueError: shapes do not match, or the threshold is out of range.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be 0 to 1, got {threshold}")
    counted = check_affinities(affinities, offsets, mask)
    faces = face_affinities(affinities, offsets)
    return linked_pieces(faces > threshold * LEVELS, counted)
