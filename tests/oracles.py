"""Slow, obvious definitions that the library is compared with."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray


def affinities_by_loop(
    labels: NDArray,
    offsets: Sequence[Sequence[int]],
    mask: NDArray | None = None,
    background: str = "apart",
) -> tuple[NDArray, NDArray]:
    """Affinity and validity, one voxel and one offset at a time."""
    affinity = np.zeros((len(offsets), *labels.shape))
    valid = np.zeros(affinity.shape, dtype=bool)
    for k, p in product(range(len(offsets)), np.ndindex(labels.shape)):
        q = tuple(a + o for a, o in zip(p, offsets[k], strict=True))
        if not all(0 <= a < n for a, n in zip(q, labels.shape, strict=True)):
            continue
        affinity[k][p] = labels[p] == labels[q] and (labels[p] != 0 or background == "joined")
        valid[k][p] = mask is None or (mask[p] and mask[q])
    return affinity, valid


def lsds_by_loop(
    labels: NDArray, sigma: Sequence[float], voxel_size: Sequence[float] = (1, 1, 1)
) -> NDArray[np.float64]:
    """Local shape descriptors in float64, one voxel at a time."""
    sigma, voxel_size = np.asarray(sigma, float), np.asarray(voxel_size, float)
    radius = (3 * sigma / voxel_size + 0.5).astype(int)
    result = np.zeros((10, *labels.shape))
    kernels = [
        np.exp(-0.5 * (np.arange(-r, r + 1) * v / s) ** 2)
        for r, v, s in zip(radius, voxel_size, sigma, strict=True)
    ]
    kernels = [k / k.sum() for k in kernels]
    for p in zip(*np.nonzero(labels), strict=True):
        q = np.argwhere(labels == labels[p])
        q = q[(np.abs(q - p) <= radius).all(axis=1)]
        weight = np.prod([kernels[d][(q - p)[:, d] + radius[d]] for d in range(3)], axis=0)
        distance = (q - p) * voxel_size
        mean = weight @ distance / weight.sum()
        centred = distance - mean
        covariance = (weight[:, None] * centred).T @ centred / weight.sum()
        variance = np.maximum(np.diag(covariance), 1e-3)
        correlation = [
            covariance[i, j] / np.sqrt(variance[i] * variance[j])
            for i, j in ((0, 1), (0, 2), (1, 2))
        ]
        result[:, *p] = [
            *(mean / sigma / 2 + 0.5),
            *(variance / sigma**2),
            *(np.asarray(correlation) / 2 + 0.5),
            weight.sum(),
        ]
    return np.clip(result, 0, 1)


def boundary_weights_by_loop(
    labels: NDArray,
    power: float,
    voxel_size: Sequence[float],
    form: str,
    peak: float,
    sigma: float,
    mask: NDArray | None = None,
    length: float | None = None,
    reach: float | None = None,
    between: str = "all",
    dimensions: int = 3,
) -> NDArray[np.float64]:
    """Boundary weights from all pairs of voxels."""
    known = np.ones(labels.shape, bool) if mask is None else mask
    bounding = known if between == "all" else known & (labels != 0)
    steps = [s * np.eye(3, dtype=int)[axis] for axis in range(3 - dimensions, 3) for s in (-1, 1)]
    boundary = [
        p
        for p in np.argwhere(bounding)
        for q in p + steps
        if ((q >= 0) & (q < labels.shape)).all() and bounding[*q] and labels[*p] != labels[*q]
    ]
    unit = length or min(voxel_size[3 - dimensions :])
    weights = np.ones(labels.shape)
    for p in np.argwhere(known):
        seen = [b - p for b in boundary if dimensions == 3 or b[0] == p[0]]
        distances = [float(np.linalg.norm(step * np.asarray(voxel_size))) for step in seen]
        d = min([*distances, reach or np.inf])
        if np.isinf(d):
            continue
        bump = 1 + (peak - 1) * np.exp(-(d**2) / 2 / sigma**2)
        weights[*p] = (1 / (1 + d / unit) if form == "inverse" else bump) ** power
    return weights


def pair_counts(truth: NDArray, segmentation: NDArray) -> tuple[int, int, int]:
    """Pairs of known voxels that share an object in both, in the truth, in the segmentation."""
    t, s = truth[truth != 0], segmentation[truth != 0]
    pairs = np.triu_indices(t.size, 1)
    in_truth, in_segments = (x[pairs[0]] == x[pairs[1]] for x in (t, s))
    return int((in_truth & in_segments).sum()), int(in_truth.sum()), int(in_segments.sum())


def same_partition(a: NDArray, b: NDArray) -> bool:
    """Whether two label arrays are equal up to renaming; 0 must stay 0."""
    pairs = {(int(i), int(j)) for i, j in zip(a.ravel(), b.ravel(), strict=True)}
    return (
        a.shape == b.shape
        and all((i == 0) == (j == 0) for i, j in pairs)
        and len(pairs) == len({i for i, _ in pairs}) == len({j for _, j in pairs})
    )


def mutex_watershed_by_loop(scores: NDArray, offsets: Sequence[Sequence[int]]) -> NDArray:
    """Mutex watershed of all edges, by relabelling whole arrays; scores must have no ties."""
    shape = scores.shape[1:]
    labels = np.arange(1, np.prod(shape) + 1).reshape(shape)
    apart: set[frozenset[int]] = set()
    edges = []
    for k, p in product(range(len(offsets)), np.ndindex(shape)):
        q = tuple(a + o for a, o in zip(p, offsets[k], strict=True))
        if all(0 <= a < n for a, n in zip(q, shape, strict=True)):
            edges.append((scores[k][p], p, q))
    for score, p, q in sorted(edges, key=lambda edge: -abs(edge[0])):
        a, b = int(labels[p]), int(labels[q])
        if a == b or (score > 0 and frozenset((a, b)) in apart):
            continue
        if score < 0:
            apart.add(frozenset((a, b)))
            continue
        labels[labels == b] = a
        apart = {frozenset(a if i == b else i for i in pair) for pair in apart}
    return labels
