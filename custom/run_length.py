"""Expected run length: how far one can follow a neuron before the segmentation errs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

KINDS = ("correct", "split", "merged", "omitted")


@dataclass(frozen=True)
class Traced:
    """A skeleton with the segments that its nodes lie in.

    Args:
        edges: (E, 2) indices of nodes.
        lengths: (E,) of the edges.
        segments: (N,) of the nodes; 0 where there is none.
    """

    edges: NDArray[np.int64]
    lengths: NDArray[np.float64]
    segments: NDArray[np.uint64]


@dataclass(frozen=True)
class RunLength:
    """How far skeletons can be followed.

    Args:
        expected: run length, in the unit of the lengths.
        total: length of all edges.
        lengths: of the edges of every kind among ``KINDS``.
    """

    expected: float
    total: float
    lengths: dict[str, float]


def expected_run_length(skeletons: Sequence[Traced]) -> RunLength:
    """Expected run length of a point drawn evenly from all skeletons.

    An edge is ``omitted`` when one of its nodes is in no segment, else ``merged`` when one of them
    is in a segment that holds nodes of several skeletons, else ``split`` when they are in different
    segments, else ``correct``. The correct edges of a skeleton in one segment are a run. A point on
    an edge that is not correct has run length 0, so that the expectation is the sum of the squared
    lengths of all runs over the length of all edges; 0 without edges.

    Args:
        skeletons: every one of another neuron.

    Source:
        Januszewski et al. 2018, Nature Methods 15, as funlib.evaluate has it, save that there all
        of a skeleton counts as merged when a part of it is, and no segment is a segment.
    """
    merging = _merging(skeletons)
    lengths, squares = dict.fromkeys(KINDS, 0.0), 0.0
    for skeleton in skeletons:
        one, other = skeleton.segments[skeleton.edges].T
        omitted = (one == 0) | (other == 0)
        merged = ~omitted & (np.isin(one, merging) | np.isin(other, merging))
        split = ~omitted & ~merged & (one != other)
        correct = ~(omitted | merged | split)
        for kind, chosen in zip(KINDS, (correct, split, merged, omitted), strict=True):
            lengths[kind] += float(skeleton.lengths[chosen].sum())
        _, run = np.unique(one[correct], return_inverse=True)
        squares += float((np.bincount(run, weights=skeleton.lengths[correct]) ** 2).sum())
    total = sum(lengths.values())
    return RunLength(squares / total if total else 0.0, total, lengths)


def _merging(skeletons: Sequence[Traced]) -> NDArray[np.uint64]:
    """Segments that hold nodes of several skeletons."""
    found = [np.unique(skeleton.segments[skeleton.segments != 0]) for skeleton in skeletons]
    ids, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *found]), return_counts=True)
    return ids[counts > 1]
