"""Hierarchical merging of the fragments of a graph, compiled."""

import heapq
from typing import Any

import numpy as np
from numpy.typing import NDArray

from custom.compiling import compiled, kept
from custom.segmentation.region_graph import LEVELS, RegionGraph

_Whole = NDArray[np.int64]
_Levels = NDArray[np.uint8]

_DEAD = -1  # level of an edge that is gone, or that never had links
_EDGE_BITS = 40  # of an entry of the heap; above them 255 - level


def merged_by_quantile(graph: RegionGraph, threshold: float, quantile: float) -> _Whole:
    """Groups of fragments: the pair with the highest quantile of its links is joined first.

    The links of a joined pair to a third are pooled, and so on until no pair is above the
    threshold. Among equal pairs the one that comes first among the edges is joined first.

    Args:
        graph: any.
        threshold: pairs above it are joined, 0 to 1.
        quantile: of the links, above 0 up to 1; 0.5 is their median.

    Returns:
        (N,) numbers from 1 on without gaps; equal: one group.

    Raises:
        ValueError: a number is out of range.

    Source:
        Funke et al. 2019, IEEE TPAMI 41(7) (quantile scores).
    """
    if not (0 <= threshold <= 1 and 0 < quantile <= 1):
        raise ValueError(f"threshold and quantile must be 0 to 1, got {threshold} and {quantile}")
    above = np.flatnonzero(np.arange(LEVELS) / (LEVELS - 1) > threshold)
    lowest = int(above[0]) if len(above) else LEVELS
    roots = _merge(
        len(graph.ids),
        graph.edges.astype(np.int64),
        graph.starts.astype(np.int64),
        graph.levels,
        graph.counts.astype(np.int64),
        lowest,
        quantile,
    )
    return np.unique(roots, return_inverse=True)[1].astype(np.int64) + 1


@kept
def _merge(
    number: int,
    edges: _Whole,
    starts: _Whole,
    levels: _Levels,
    counts: _Whole,
    lowest: int,
    quantile: float,
) -> _Whole:
    """Root of every node's group.

    A node has a list of half-edges: half-edge 2 e + s is edge e seen from its end s. The node with
    fewer of them is joined to the other, so that every half-edge moves seldom.
    """
    heap = [0 for _ in range(0)]
    first, length = starts[:-1].copy(), np.diff(starts)
    used = len(levels)
    level_of = np.empty(len(edges), np.int64)
    ends = edges.copy()
    head, degree = np.full(number, -1), np.zeros(number, np.int64)
    following = np.full(2 * len(edges), -1)
    place = {-1: -1}
    for e in range(len(edges)):
        level_of[e] = _level(levels, counts, first[e], length[e], quantile)
        if level_of[e] == _DEAD:
            continue
        place[_pair(ends[e, 0], ends[e, 1], number)] = e
        for s in range(2):
            node = ends[e, s]
            following[2 * e + s], head[node] = head[node], 2 * e + s
            degree[node] += 1
        if level_of[e] >= lowest:
            heap.append(_entry(level_of[e], e))
    heapq.heapify(heap)
    root = np.arange(number)
    while len(heap):
        entry = heapq.heappop(heap)
        e = entry & ((1 << _EDGE_BITS) - 1)
        if level_of[e] != LEVELS - 1 - (entry >> _EDGE_BITS):
            continue
        stays, goes = ends[e, 0], ends[e, 1]
        if degree[stays] < degree[goes]:
            stays, goes = goes, stays
        level_of[e] = _DEAD
        root[goes] = stays
        half = head[goes]
        while half != -1:
            later, f = following[half], half >> 1
            if level_of[f] != _DEAD:
                other = ends[f, 1 - (half & 1)]
                key = _pair(stays, other, number)
                g = place[key] if key in place else -1  # noqa: SIM401  # numba's dict.get gives an Optional
                if g != -1 and level_of[g] != _DEAD:
                    if used + length[f] + length[g] > len(levels):
                        levels, counts, used = _compacted(levels, counts, first, length, level_of)
                    begin = used
                    used = _pool(levels, counts, first, length, f, g, used)
                    first[g], length[g] = begin, used - begin
                    level_of[f] = _DEAD
                    degree[other] -= 1
                    before = level_of[g]
                    level_of[g] = _level(levels, counts, first[g], length[g], quantile)
                    if level_of[g] != before and level_of[g] >= lowest:
                        heapq.heappush(heap, _entry(level_of[g], g))
                else:
                    place[key] = f
                    ends[f, half & 1] = stays
                    following[half], head[stays] = head[stays], half
                    degree[stays] += 1
            half = later
    for node in range(number):
        top = node
        while root[top] != top:
            root[top] = root[root[top]]
            top = root[top]
        root[node] = top
    return root


@compiled
def _entry(level: int, edge: int) -> int:
    """Entry of the heap: high levels first, then edges in their order."""
    return ((LEVELS - 1 - level) << _EDGE_BITS) | edge


@compiled
def _pair(one: int, other: int, number: int) -> int:
    """One number for two nodes."""
    return min(one, other) * number + max(one, other)


@compiled
def _level(levels: _Levels, counts: _Whole, begin: int, length: int, quantile: float) -> int:
    """The lowest level with at least ``quantile`` of the links at it or below."""
    total = 0
    for i in range(begin, begin + length):
        total += counts[i]
    if total == 0:
        return _DEAD
    below, wanted = 0, quantile * total
    for i in range(begin, begin + length):
        below += counts[i]
        if below >= wanted:
            return int(levels[i])
    return int(levels[begin + length - 1])


@compiled
def _pool(
    levels: _Levels, counts: _Whole, first: _Whole, length: _Whole, f: int, g: int, begin: int
) -> int:
    """Write the sum of two histograms from ``begin`` on; returns its end."""
    i, i_end = first[f], first[f] + length[f]
    j, j_end = first[g], first[g] + length[g]
    k = begin
    while i < i_end or j < j_end:
        if j == j_end or (i < i_end and levels[i] < levels[j]):
            levels[k], counts[k] = levels[i], counts[i]
            i += 1
        elif i == i_end or levels[j] < levels[i]:
            levels[k], counts[k] = levels[j], counts[j]
            j += 1
        else:
            levels[k], counts[k] = levels[i], counts[i] + counts[j]
            i, j = i + 1, j + 1
        k += 1
    return k


@compiled
def _compacted(
    levels: _Levels, counts: _Whole, first: _Whole, length: _Whole, level_of: _Whole
) -> tuple[Any, Any, int]:
    """Living histograms alone, in arrays with as much room again; changes ``first``."""
    living = 0
    for e in range(len(first)):
        if level_of[e] != _DEAD:
            living += length[e]
    new_levels = np.empty(2 * living + 4 * LEVELS, np.uint8)
    new_counts = np.empty(len(new_levels), np.int64)
    used = 0
    for e in range(len(first)):
        if level_of[e] != _DEAD:
            begin, first[e] = first[e], used
            for i in range(length[e]):
                new_levels[used + i] = levels[begin + i]
                new_counts[used + i] = counts[begin + i]
            used += length[e]
    return new_levels, new_counts, used
