"""Hierarchical agglomeration by waterz, of fragments in an array or of a graph of them."""

import re
from collections.abc import Sequence

import numpy as np
import waterz
from numpy.typing import NDArray

from custom.errors import InputError
from custom.segmentation.fragments import Offset
from custom.segmentation.masking import check_affinities
from custom.segmentation.region_graph import RegionGraph
from custom.segmentation.small_segments import face_graph, looked_up
from custom.standard_output import standard_output_dropped

LEVELS = 256
_Whole = NDArray[np.int64]
_MEAN = "OneMinus<MeanAffinity<RegionGraphType, ScoreValue>>"
_QUANTILE = "OneMinus<HistogramQuantileAffinity<RegionGraphType, {}, ScoreValue, 256, {}>>"
QUANTILES = range(10, 100, 5)
"""Percentiles that waterz's wheels have compiled; for others it would need a C++ compiler."""


def scoring_function(name: str) -> str:
    """The C++ type that waterz has for a name.

    Args:
        name: "mean" of the affinities between two segments; "hist_quant_<q>", their q-th percentile
            (q among ``QUANTILES``); "hist_quant_<q>_initmax", which knows only the highest
            affinities between two fragments.

    Raises:
        InputError: there is no such function.
    """
    if name == "mean":
        return _MEAN
    found = re.fullmatch(r"hist_quant_(\d+)(_initmax)?", name)
    if not found or int(found[1]) not in QUANTILES:
        raise InputError(
            f"scoring must be 'mean', 'hist_quant_<q>' or 'hist_quant_<q>_initmax' with q = 10, "
            f"15, ... 95, got {name!r}."
        )
    return _QUANTILE.format(found[1], "true" if found[2] else "false")


def waterz_agglomerate(
    fragments: NDArray[np.integer],
    affinities: NDArray[np.uint8],
    offsets: Sequence[Offset],
    threshold: float,
    scoring: str = "hist_quant_75",
) -> NDArray[np.uint64]:
    """Join fragments by the affinities across the faces between them, best pairs first.

    The score of two segments is a mean or quantile of the affinities of all faces between them,
    and is taken anew after every join. Where no offset leads along z, sections are agglomerated
    each on their own.

    Args:
        fragments: (D, H, W); 0 is background and is never joined.
        affinities: (K, D, H, W) uint8, 0 to 255.
        offsets: K offsets, voxels, zyx; those of one voxel along one axis count.
        threshold: pairs whose score is above it are joined, 0 to 1.
        scoring: see ``scoring_function``.

    Returns:
        (D, H, W) uint64, ids from 1 on without gaps.

    Raises:
        ValueError: shapes do not match, or the threshold is out of range.
        InputError: no such scoring.

    Source:
        Funke et al. 2019, IEEE TPAMI 41(7); the implementation is the package waterz.
    """
    check_affinities(affinities, offsets, None)
    if fragments.shape != affinities.shape[1:]:
        raise ValueError(
            f"fragments must have the shape of one channel {affinities.shape[1:]}, "
            f"got {fragments.shape}"
        )
    graph = face_graph(fragments, affinities, offsets)
    return looked_up(fragments, graph, waterz_merge(graph, threshold, scoring))


def waterz_merge(graph: RegionGraph, threshold: float, scoring: str = "hist_quant_75") -> _Whole:
    """The same for a graph: which of its fragments are one segment.

    waterz knows arrays only. It gets a row of voxels that has every edge's two fragments in turns,
    as often as they have links, and background between edges: its region graph is ours again.

    Args:
        graph: any.
        threshold: as in ``waterz_agglomerate``.
        scoring: as there.

    Returns:
        (N,) numbers from 1 on without gaps; equal: one segment.

    Raises:
        ValueError: the threshold is out of range.
        InputError: as there.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be 0 to 1, got {threshold}")
    function = scoring_function(scoring)
    row, affinities = _as_row(graph)
    joined = np.arange(len(graph.ids) + 1, dtype=np.uint64)
    if row.size:
        found = row.copy()  # waterz writes into it
        with standard_output_dropped():
            list(
                waterz.agglomerate(
                    affinities, [1 - threshold], None, found, scoring_function=function
                )
            )
        joined[row.ravel()] = found.ravel()
    return np.unique(joined[1:], return_inverse=True)[1].astype(np.int64) + 1


def _as_row(graph: RegionGraph) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    """Edges as (1, 1, M) fragments, numbered by their places from 1 on, and (3, 1, 1, M) faces."""
    parts = np.repeat(np.arange(len(graph.edges)), np.diff(graph.starts))
    links = np.bincount(parts, graph.counts, len(graph.edges)).astype(np.int64)
    sizes = links + 2  # u v u v ... and a 0 behind: n + 1 voxels have n links
    edge = np.repeat(np.arange(len(sizes)), sizes)
    place = np.arange(len(edge)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    row = graph.edges[edge, place % 2].astype(np.uint64) + 1
    row[place == sizes[edge] - 1] = 0
    faces = np.zeros((3, 1, 1, len(row)), dtype=np.float32)
    faces[2, 0, 0, (place > 0) & (row != 0)] = np.repeat(graph.levels, graph.counts)
    faces[2] /= LEVELS - 1  # the other two channels are never read, nor take memory
    return row.reshape(1, 1, -1), faces
