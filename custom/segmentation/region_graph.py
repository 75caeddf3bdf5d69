"""Fragments, and for every two that are linked or touch, the affinities between them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from custom.segmentation.fragments import Offset

LEVELS = 256

_Whole = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RegionGraph:
    """A graph whose N nodes are fragments; E edges are pairs that are linked or touch.

    Histograms lie one after the other: that of edge e has ``counts[i]`` links of affinity
    ``levels[i]`` for i from ``starts[e]`` to ``starts[e + 1]``; levels ascend.

    Args:
        ids: (N,) uint64, ascending.
        sizes: (N,) voxels.
        affinities: (N,) mean short-range affinity of a fragment, 0 to 1.
        open: (N,) True where no block has seen the whole fragment: its size and affinity were
            never judged.
        edges: (E, 2) places of the two fragments in ``ids``, the lower first; in ascending order.
        contacts: (E,) pairs of voxels, one of each fragment, that share a face.
        agreed: (E,) those of them that lie on both sides of a border between blocks, and are of one
            fragment to both blocks.
        starts: (E + 1,) see above.
        levels: (L,) uint8.
        counts: (L,)
    """

    ids: NDArray[np.uint64]
    sizes: _Whole
    affinities: NDArray[np.float64]
    open: NDArray[np.bool_]
    edges: _Whole
    contacts: _Whole
    agreed: _Whole
    starts: _Whole
    levels: NDArray[np.uint8]
    counts: _Whole

    def means(self) -> NDArray[np.float64]:
        """Mean affinity of the links of every edge, 0 to 1; -1 where there is none."""
        edge = np.repeat(np.arange(len(self.edges)), np.diff(self.starts))
        links = np.bincount(edge, self.counts, len(self.edges))
        total = np.bincount(edge, self.counts * self.levels.astype(np.float64), len(self.edges))
        return np.where(links > 0, total / np.maximum(links, 1) / (LEVELS - 1), -1.0)


def linked_pairs(
    fragments: NDArray[np.integer], offset: Offset
) -> tuple[tuple[slice, ...], NDArray[np.bool_], NDArray[np.integer], NDArray[np.integer]]:
    """Pairs of voxels at an offset that lie in two fragments.

    Args:
        fragments: (D, H, W); 0 is background.
        offset: voxels, zyx.

    Returns:
        here: slices of the voxels that have a neighbour at the offset.
        linked: of these, True where both lie in a fragment, and not in the same.
        low: of the linked ones, the lower id.
        high: and the higher id.
    """
    shape = fragments.shape
    here = tuple(slice(max(0, -o), max(0, n - o)) for o, n in zip(offset, shape, strict=True))
    there = tuple(slice(max(0, o), max(0, n + o)) for o, n in zip(offset, shape, strict=True))
    a, b = fragments[here], fragments[there]
    linked = (a != b) & (a != 0) & (b != 0)
    one, other = a[linked], b[linked]
    return here, linked, np.minimum(one, other), np.maximum(one, other)


def pool(
    pairs: _Whole, levels: NDArray[np.uint8], counts: _Whole
) -> tuple[_Whole, _Whole, NDArray[np.uint8], _Whole]:
    """Histograms of links, of which any may come in parts.

    Args:
        pairs: (M,) a number of the edge.
        levels: (M,) the affinity.
        counts: (M,) so many links of it.

    Returns:
        edges: the different numbers, ascending.
        starts: as of ``RegionGraph``.
        levels: as of ``RegionGraph``.
        counts: as of ``RegionGraph``.
    """
    keys = pairs * LEVELS + levels
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    sums = np.add.reduceat(counts[order], first) if len(first) else counts[:0]
    edges, starts = np.unique(keys[first] // LEVELS, return_index=True)
    return edges, np.append(starts, len(first)), (keys[first] % LEVELS).astype(np.uint8), sums


def link_histograms(
    pairs: _Whole, levels: NDArray[np.uint8], edges: _Whole, counts: _Whole | None = None
) -> tuple[_Whole, NDArray[np.uint8], _Whole]:
    """Histograms for given edges, empty for those without links.

    Args:
        pairs: (M,) number of the edge of every link, or of every part of a histogram.
        levels: (M,) its affinity.
        edges: (E,) numbers of the edges, ascending, all of ``pairs`` among them.
        counts: (M,) links; 1 each when left out.

    Returns:
        starts, levels and counts as of ``RegionGraph``.
    """
    ones = np.ones(len(pairs), dtype=np.int64) if counts is None else counts
    linked, starts, pooled_levels, sums = pool(pairs, levels, ones)
    lengths = np.zeros(len(edges), dtype=np.int64)
    lengths[np.searchsorted(edges, linked)] = np.diff(starts)
    return np.append(0, np.cumsum(lengths)), pooled_levels, sums


def region_graph(
    fragments: NDArray[np.integer], affinities: NDArray[np.uint8], offsets: Sequence[Offset]
) -> RegionGraph:
    """The graph of a whole volume's fragments; its edges are linked pairs.

    Args:
        fragments: (D, H, W); 0 is background.
        affinities: (K, D, H, W) uint8, 0 to 255.
        offsets: K offsets of these links, voxels, zyx.
    """
    ids, sizes = np.unique(fragments, return_counts=True)
    ids, sizes = ids[ids != 0].astype(np.uint64), sizes[ids != 0]
    number = len(ids)
    pairs: list[_Whole] = [np.empty(0, dtype=np.int64)]
    levels: list[NDArray[np.uint8]] = [np.empty(0, dtype=np.uint8)]
    for affinity, offset in zip(affinities, offsets, strict=True):
        here, linked, low, high = linked_pairs(fragments, offset)
        lower, higher = (np.searchsorted(ids, end.astype(np.uint64)) for end in (low, high))
        pairs.append(lower * number + higher)
        levels.append(affinity[here][linked])
    links = np.concatenate(pairs)
    edges = np.unique(links)
    starts, histogram, counts = link_histograms(links, np.concatenate(levels), edges)
    none = np.zeros(len(edges), dtype=np.int64)
    return RegionGraph(
        ids,
        sizes,
        np.ones(number),
        np.zeros(number, dtype=np.bool_),
        np.stack(np.divmod(edges, max(number, 1)), axis=1),
        none,
        none,
        starts,
        histogram,
        counts,
    )


def contracted(graph: RegionGraph, groups: NDArray[np.int64]) -> RegionGraph:
    """The graph whose nodes are groups of a graph's nodes; their links are pooled.

    Args:
        graph: any.
        groups: (N,) from 1 on without gaps; equal: one node, whose id is the lowest of theirs; 0:
            the node and its edges go.

    Returns:
        Node i is group i + 1, so that ids may not ascend; an edge within a group goes. A group is
        open where all its nodes are.
    """
    number, kept = int(groups.max(initial=0)), groups > 0
    of = groups[kept] - 1
    ids = np.full(number, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(ids, of, graph.ids[kept])
    sizes = np.zeros(number, dtype=np.int64)
    np.add.at(sizes, of, graph.sizes[kept])
    total = np.bincount(of, graph.affinities[kept] * graph.sizes[kept], number)
    is_open = np.ones(number, dtype=np.bool_)
    np.logical_and.at(is_open, of, graph.open[kept])
    ends = np.sort(groups[graph.edges], axis=1) - 1
    staying = (ends[:, 0] >= 0) & (ends[:, 0] != ends[:, 1])
    keys = ends[:, 0] * max(number, 1) + ends[:, 1]
    edges, index = np.unique(keys[staying], return_inverse=True)
    parts = np.repeat(staying, np.diff(graph.starts))
    links = np.repeat(keys, np.diff(graph.starts))[parts]
    histograms = link_histograms(links, graph.levels[parts], edges, graph.counts[parts])
    contacts, agreed = (np.zeros(len(edges), dtype=np.int64) for _ in range(2))
    np.add.at(contacts, index, graph.contacts[staying])
    np.add.at(agreed, index, graph.agreed[staying])
    return RegionGraph(
        ids,
        sizes,
        total / np.maximum(sizes, 1),
        is_open,
        np.stack(np.divmod(edges, max(number, 1)), axis=1),
        contacts,
        agreed,
        *histograms,
    )
