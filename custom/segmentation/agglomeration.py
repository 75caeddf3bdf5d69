"""Join fragments whose common border has a high mean affinity."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from skimage import graph

from custom.segmentation.fragments import Offset, consecutive


def agglomerate(
    fragments: NDArray[np.integer],
    affinities: NDArray[np.uint8] | NDArray[np.floating],
    offsets: Sequence[Offset],
    threshold: float,
) -> NDArray[np.uint64]:
    """Average-linkage agglomeration of fragments.

    Two fragments are as similar as the mean of all affinities, short- and long-range, that link a
    voxel of one with a voxel of the other. The most similar pair is joined first, until no pair is
    above the threshold.

    Args:
        fragments: (D, H, W); 0 is background and is never joined.
        affinities: (K, D, H, W), uint8 from 0 to 255 or float from 0 to 1.
        offsets: K offsets, voxels, zyx.
        threshold: pairs with a higher mean affinity are joined, 0 to 1.

    Returns:
        (D, H, W) uint64, ids from 1 on without gaps.

    Raises:
        ValueError: shapes do not match.

    Source:
        Bailoni et al. 2022, CVPR (GASP with average linkage); merging by scikit-image.
    """
    if affinities.shape != (len(offsets), *fragments.shape):
        raise ValueError(
            f"affinities must be (K, D, H, W) with K = {len(offsets)} and the shape of fragments "
            f"{fragments.shape}, got {affinities.shape}"
        )
    numbered = consecutive(fragments)
    ids = np.arange(int(numbered.max(initial=0)) + 1)
    segments = graph.merge_hierarchical(  # type: ignore[no-untyped-call]  # scikit-image has no types
        ids,
        region_graph(numbered, affinities, offsets),
        thresh=1 - threshold,
        rag_copy=False,
        in_place_merge=True,
        merge_func=_nothing,
        weight_func=_mean_of_both,
    )
    joined = np.where(numbered == 0, 0, segments[numbered] + 1)
    return consecutive(joined)


def region_graph(
    fragments: NDArray[np.integer],
    affinities: NDArray[np.uint8] | NDArray[np.floating],
    offsets: Sequence[Offset],
) -> graph.RAG:
    """Graph of fragments; an edge where some offset links two of them.

    Args:
        fragments: (D, H, W), ids from 1 on without gaps; 0 is background.
        affinities: (K, D, H, W), uint8 from 0 to 255 or float from 0 to 1.
        offsets: K offsets, voxels, zyx.

    Returns:
        Nodes 0 to N; edges have ``weight``, one minus the mean affinity of their links, and ``count``,
        the number of these.
    """
    rag = graph.RAG()  # type: ignore[no-untyped-call]
    size = int(fragments.max(initial=0)) + 1
    for node in range(size):
        rag.add_node(node, labels=[node])
    pairs = np.concatenate([_links(fragments, o) for o in offsets])
    strength = np.concatenate(
        [_linked(affinity, fragments, o) for affinity, o in zip(affinities, offsets, strict=True)]
    )
    keys, index, count = np.unique(pairs, return_inverse=True, return_counts=True)
    scale = 255 if affinities.dtype == np.uint8 else 1
    mean = np.bincount(index, strength, minlength=len(keys)) / (count * scale)
    for key, m, n in zip(keys.tolist(), mean.tolist(), count.tolist(), strict=True):
        rag.add_edge(key // size, key % size, weight=1 - m, count=n)
    return rag


def _paired(shape: Sequence[int], offset: Offset) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Boxes of the voxels that have a neighbour at ``offset``, and of those neighbours."""
    here = tuple(
        slice(max(0, -o), max(0, n - max(0, o))) for o, n in zip(offset, shape, strict=True)
    )
    there = tuple(
        slice(max(0, o), max(0, n - max(0, -o))) for o, n in zip(offset, shape, strict=True)
    )
    return here, there


def _crossing(fragments: NDArray[np.integer], offset: Offset) -> NDArray[np.bool_]:
    """Where a voxel and its neighbour lie in two fragments, neither of them background."""
    here, there = _paired(fragments.shape, offset)
    a, b = fragments[here], fragments[there]
    crossing: NDArray[np.bool_] = (a != b) & (a != 0) & (b != 0)
    return crossing


def _links(fragments: NDArray[np.integer], offset: Offset) -> NDArray[np.int64]:
    """One number for the two fragments of every link."""
    here, there = _paired(fragments.shape, offset)
    crossing = _crossing(fragments, offset)
    a, b = fragments[here][crossing].astype(np.int64), fragments[there][crossing].astype(np.int64)
    size = int(fragments.max(initial=0)) + 1
    return np.minimum(a, b) * size + np.maximum(a, b)


def _linked(
    affinity: NDArray[np.uint8] | NDArray[np.floating],
    fragments: NDArray[np.integer],
    offset: Offset,
) -> NDArray[np.float64]:
    """Affinity of every link, in the order of ``_links``."""
    here, _ = _paired(fragments.shape, offset)
    return affinity[here][_crossing(fragments, offset)].astype(np.float64)


def _nothing(*_: object) -> None:
    """Nodes carry no values that a join would change."""


def _mean_of_both(rag: graph.RAG, source: int, target: int, node: int) -> dict[str, float]:
    """Edge from the joined ``source`` and ``target`` to ``node``."""
    edges = [rag[end][node] for end in (source, target) if rag.has_edge(end, node)]
    count = sum(edge["count"] for edge in edges)
    return {"weight": sum(e["weight"] * e["count"] for e in edges) / count, "count": count}
