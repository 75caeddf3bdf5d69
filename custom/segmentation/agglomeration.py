"""Join fragments whose common border is open."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from custom.segmentation.fragments import Offset, consecutive
from custom.segmentation.merging import merged_by_quantile
from custom.segmentation.region_graph import region_graph


def agglomerate(
    fragments: NDArray[np.integer],
    affinities: NDArray[np.uint8],
    offsets: Sequence[Offset],
    threshold: float,
    quantile: float = 0.75,
) -> NDArray[np.uint64]:
    """Hierarchical agglomeration of fragments by a quantile of the affinities between them.

    All affinities that link a voxel of one fragment with a voxel of another are their links. The
    pair with the highest ``quantile`` of its links is joined first, its links are pooled, and so on
    until no pair is above the threshold. A high quantile finds thin necks, whose few open links
    stand beside many closed ones.

    Args:
        fragments: (D, H, W); 0 is background and is never joined.
        affinities: (K, D, H, W) uint8, 0 to 255.
        offsets: K offsets, voxels, zyx.
        threshold: pairs above it are joined, 0 to 1.
        quantile: of the links, above 0 up to 1; 0.5 is their median.

    Returns:
        (D, H, W) uint64, ids from 1 on without gaps.

    Raises:
        ValueError: shapes do not match, or a number is out of range.

    Source:
        Funke et al. 2019, IEEE TPAMI 41(7) (quantile scores).
    """
    if affinities.shape != (len(offsets), *fragments.shape):
        raise ValueError(
            f"affinities must be (K, D, H, W) with K = {len(offsets)} and the shape of fragments "
            f"{fragments.shape}, got {affinities.shape}"
        )
    graph = region_graph(fragments, affinities, offsets)
    segments = merged_by_quantile(graph, threshold, quantile).astype(np.uint64)
    lookup = np.append(segments, np.uint64(0))  # the last one is the background's
    places = np.searchsorted(graph.ids, fragments.astype(np.uint64))
    return consecutive(lookup[np.where(fragments == 0, len(segments), places)])
