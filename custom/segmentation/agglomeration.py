"""Join fragments whose common border is open."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from skimage import graph

from custom.segmentation.fragments import Offset, consecutive

LEVELS = 256


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
        Funke et al. 2019, IEEE TPAMI 41(7) (quantile scores); merging by scikit-image.
    """
    if affinities.shape != (len(offsets), *fragments.shape):
        raise ValueError(
            f"affinities must be (K, D, H, W) with K = {len(offsets)} and the shape of fragments "
            f"{fragments.shape}, got {affinities.shape}"
        )
    if not (0 <= threshold <= 1 and 0 < quantile <= 1):
        raise ValueError(f"threshold and quantile must be 0 to 1, got {threshold} and {quantile}")
    numbered = consecutive(fragments)
    rag = _region_graph(numbered, affinities, offsets, quantile)

    def pooled(rag: graph.RAG, source: int, target: int, node: int) -> dict[str, object]:
        links = sum(rag[end][node]["links"] for end in (source, target) if rag.has_edge(end, node))
        return _edge(np.asarray(links), quantile)

    segments = graph.merge_hierarchical(  # type: ignore[no-untyped-call]
        np.arange(rag.number_of_nodes()),
        rag,
        thresh=1 - threshold,
        rag_copy=False,
        in_place_merge=True,
        merge_func=_nothing,
        weight_func=pooled,
    )
    return consecutive(np.where(numbered == 0, 0, segments[numbered] + 1))


def _region_graph(
    fragments: NDArray[np.uint64],
    affinities: NDArray[np.uint8],
    offsets: Sequence[Offset],
    quantile: float,
) -> graph.RAG:
    """Graph of fragments; every edge has the histogram of its links."""
    size = int(fragments.max(initial=0)) + 1
    pairs, values = [], []
    for affinity, offset in zip(affinities, offsets, strict=True):
        pair, value = _links(fragments, affinity, offset, size)
        pairs.append(pair)
        values.append(value)
    edges, index = np.unique(np.concatenate(pairs), return_inverse=True)
    links = np.bincount(index * LEVELS + np.concatenate(values), minlength=len(edges) * LEVELS)
    rag = graph.RAG()  # type: ignore[no-untyped-call]  # so are all of scikit-image's functions
    for node in range(size):
        rag.add_node(node, labels=[node])  # type: ignore[no-untyped-call]
    for edge, histogram in zip(edges.tolist(), links.reshape(-1, LEVELS), strict=True):
        one, other = divmod(edge, size)
        rag.add_edge(one, other, **_edge(histogram, quantile))  # type: ignore[no-untyped-call]
    return rag


def _edge(links: NDArray[np.int64], quantile: float) -> dict[str, object]:
    """Edge with a histogram of links; its weight is one minus their quantile."""
    counts = np.cumsum(links)
    level = int(np.searchsorted(counts, quantile * counts[-1]))
    return {"weight": 1 - level / (LEVELS - 1), "links": links}


def _links(
    fragments: NDArray[np.uint64], affinity: NDArray[np.uint8], offset: Offset, size: int
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """For every link at an offset, one number for its two fragments, and its affinity."""
    here = tuple(
        slice(max(0, -o), max(0, n - o)) for o, n in zip(offset, affinity.shape, strict=True)
    )
    there = tuple(
        slice(max(0, o), max(0, n + o)) for o, n in zip(offset, affinity.shape, strict=True)
    )
    a, b = fragments[here], fragments[there]
    linked = (a != b) & (a != 0) & (b != 0)
    low, high = np.minimum(a[linked], b[linked]), np.maximum(a[linked], b[linked])
    return low.astype(np.int64) * size + high.astype(np.int64), affinity[here][linked]


def _nothing(*_: object) -> None:
    """Nodes carry no values that a join would change."""
