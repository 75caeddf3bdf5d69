"""Small segments removed, or given to their neighbours, when all of them is known."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from custom.segmentation.faces import face_channels
from custom.segmentation.fragments import Offset, consecutive
from custom.segmentation.region_graph import RegionGraph, contracted, region_graph
from custom.segmentation.settling import settle

_Whole = NDArray[np.int64]


def face_graph(
    fragments: NDArray[np.integer], affinities: NDArray[np.uint8], offsets: Sequence[Offset]
) -> RegionGraph:
    """The graph of fragments whose links are the affinities across faces.

    Args:
        fragments: (D, H, W); 0 is background.
        affinities: (K, D, H, W) uint8; further channels are ignored.
        offsets: K offsets.
    """
    channels = sorted(k for k, _ in face_channels(offsets).values())
    return region_graph(fragments, affinities[channels], [offsets[k] for k in channels])


def looked_up(
    fragments: NDArray[np.integer], graph: RegionGraph, groups: _Whole
) -> NDArray[np.uint64]:
    """The group of every voxel's fragment, with ids from 1 on without gaps.

    Args:
        fragments: (D, H, W), of the graph; 0 is background.
        graph: of them.
        groups: (N,), 0 for background.
    """
    places = np.searchsorted(graph.ids, fragments.astype(np.uint64))
    table = np.append(groups, 0)  # the last is the background's
    return consecutive(table[np.where(fragments == 0, len(groups), places)])


def without_weak_and_small(
    graph: RegionGraph, groups: _Whole, min_affinity: float, min_size: int, grow: bool
) -> _Whole:
    """Groups of fragments without those of low mean affinity and the small ones.

    Args:
        graph: of fragments; links lie across faces.
        groups: (N,) group of every fragment, 0 for background.
        min_affinity: groups with a lower mean affinity become background.
        min_size: smaller groups (voxels) go.
        grow: small ones become part of the neighbour with the highest mean affinity between them;
            else, or without a neighbour, background.

    Returns:
        (N,) numbers from 1 on without gaps, 0 for background.
    """
    whole = contracted(graph, groups)
    part = np.repeat(np.arange(len(whole.edges)), np.diff(whole.starts))
    faces = np.bincount(part, whole.counts, len(whole.edges)).astype(np.int64)
    judged = replace(whole, open=np.ones_like(whole.open), contacts=faces)
    kept = settle(judged, min_size, min_affinity, grow)
    return np.append(0, kept)[groups]
