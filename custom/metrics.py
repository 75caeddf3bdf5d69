"""Scores of a segmentation against the truth; both are labels up to renaming."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics.metric import CumulativeIterationMetric
from numpy.typing import NDArray
from torch import Tensor

SCORES = ("voi_split", "voi_merge", "voi", "adapted_rand")


@dataclass(frozen=True)
class Contingency:
    """Voxels shared by every pair of a true object and a segment, without empty pairs.

    Args:
        counts: (N,) voxels of each overlapping pair.
        truth: (N,) index of the pair's true object, 0 to T - 1.
        segment: (N,) index of the pair's segment, 0 to S - 1.
    """

    counts: NDArray[np.int64]
    truth: NDArray[np.int64]
    segment: NDArray[np.int64]

    @property
    def truth_sizes(self) -> NDArray[np.int64]:
        """(T,) voxels of each true object."""
        return _sums(self.truth, self.counts)

    @property
    def segment_sizes(self) -> NDArray[np.int64]:
        """(S,) voxels of each segment, only where the truth is known."""
        return _sums(self.segment, self.counts)


def contingency(truth: NDArray[np.integer], segmentation: NDArray[np.integer]) -> Contingency:
    """Overlap of two label arrays where the truth is not 0.

    A segmentation's 0 is a segment like any other: voxels that the truth assigns and the
    segmentation does not form one segment, "unassigned".

    Args:
        truth: labels of any shape and integer dtype; 0 is unknown and ignored.
        segmentation: labels of the same shape.

    Raises:
        ValueError: the shapes differ.
        TypeError: an array does not hold integers, so ids may already be rounded.
    """
    for name, labels in (("truth", truth), ("segmentation", segmentation)):
        if not np.issubdtype(labels.dtype, np.integer):
            raise TypeError(f"{name} must hold integer ids, got {labels.dtype}")
    if truth.shape != segmentation.shape:
        raise ValueError(
            f"truth and segmentation must have the same shape, "
            f"got {truth.shape} and {segmentation.shape}"
        )
    known = truth != 0
    _, true_index = np.unique(truth[known], return_inverse=True)
    segment_ids, segment_index = np.unique(segmentation[known], return_inverse=True)
    pairs, counts = np.unique(
        true_index * max(1, segment_ids.size) + segment_index, return_counts=True
    )
    return Contingency(counts, *np.divmod(pairs, max(1, segment_ids.size)))


def variation_of_information(
    truth: NDArray[np.integer], segmentation: NDArray[np.integer]
) -> tuple[float, float]:
    """Variation of information in bits, as split and merge error; 0 in the truth is ignored.

    ``split`` is H(segmentation | truth): an object cut into two halves has 1 bit. ``merge`` is
    H(truth | segmentation): two equal objects joined have 1 bit. Their sum is the VOI.
    A segmentation's 0 counts as one more segment. Without any known truth both are 0.

    Args:
        truth: labels of any shape and integer dtype; 0 is unknown and ignored.
        segmentation: labels of the same shape.

    Returns:
        split, merge: bits, at least 0.

    Raises:
        ValueError: the shapes differ.
        TypeError: an array does not hold integers.

    Source:
        Meila 2007, Journal of Multivariate Analysis 98(5).
    """
    return _split_and_merge(contingency(truth, segmentation))


def adapted_rand_error(truth: NDArray[np.integer], segmentation: NDArray[np.integer]) -> float:
    """One minus the F1 score over pairs of voxels; 0 in the truth is ignored.

    With ``P`` the pairs of voxels that share an object in both, ``T`` in the truth and ``S`` in
    the segmentation, the error is ``1 - 2 P / (T + S)``. A segmentation's 0 counts as one more
    segment. Where neither has a pair (or no truth is known) the error is 0.

    Args:
        truth: labels of any shape and integer dtype; 0 is unknown and ignored.
        segmentation: labels of the same shape.

    Returns:
        Error between 0 and 1.

    Raises:
        ValueError: the shapes differ.
        TypeError: an array does not hold integers.

    Source:
        Arganda-Carreras et al. 2015, Frontiers in Neuroanatomy 9.
    """
    return _pair_error(contingency(truth, segmentation))


@dataclass(frozen=True)
class ObjectCounts:
    """How many objects the truth has and how many segments lie on them."""

    truth: int
    segmentation: int


def object_counts(truth: NDArray[np.integer], segmentation: NDArray[np.integer]) -> ObjectCounts:
    """Ids other than 0 in the truth, and in the segmentation where the truth is not 0.

    Args:
        truth: labels of any shape and integer dtype; 0 is unknown and ignored.
        segmentation: labels of the same shape; 0 is not counted.

    Raises:
        ValueError: the shapes differ.
        TypeError: an array does not hold integers.
    """
    table = contingency(truth, segmentation)
    unassigned = bool(((truth != 0) & (segmentation == 0)).any())
    return ObjectCounts(table.truth_sizes.size, table.segment_sizes.size - unassigned)


class InstanceSegmentationMetric(CumulativeIterationMetric):
    """Mean over images of VOI and adapted Rand error, for MONAI's evaluators and handlers.

    Called with ``y_pred`` and ``y``, label arrays (B, 1, D, H, W) or lists of (1, D, H, W), of an
    integer dtype (floats would round ids). Lower is better: give the evaluator
    ``metric_cmp_fn`` and the checkpoint saver ``key_metric_negative_sign``.

    Args:
        scores: which scores, in this order, among ``voi_split``, ``voi_merge``, ``voi`` (bits)
            and ``adapted_rand``.

    Raises:
        ValueError: no score, or an unknown one; on call, shapes differ.
        TypeError: on call, labels do not hold integers.
    """

    def __init__(self, scores: Sequence[str] = SCORES) -> None:
        super().__init__()
        unknown = [score for score in scores if score not in SCORES]
        if unknown or not scores:
            raise ValueError(f"scores must be some of {SCORES}, got {list(scores)}")
        self.scores = tuple(scores)

    def aggregate(self) -> Tensor:
        """Mean of every score over the images since the last reset, (len(scores),) float64."""
        buffer: Tensor | None = self.get_buffer()  # type: ignore[no-untyped-call]  # MONAI's
        if buffer is None:
            raise ValueError("no image was scored since the last reset")
        return torch.mean(buffer, dim=0)

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: object) -> Tensor:
        """Scores of every image, (B, len(scores)) float64."""
        if y is None:
            raise ValueError("y, the true labels, is needed")
        rows = []
        for segmentation, truth in zip(y_pred.cpu().numpy(), y.cpu().numpy(), strict=True):
            scores = instance_scores(truth, segmentation)
            rows.append([scores[name] for name in self.scores])
        return torch.tensor(rows, dtype=torch.float64)


def instance_scores(
    truth: NDArray[np.integer], segmentation: NDArray[np.integer]
) -> dict[str, float]:
    """All of ``SCORES`` by name, from one contingency table."""
    table = contingency(truth, segmentation)
    split, merge = _split_and_merge(table)
    values = (split, merge, split + merge, _pair_error(table))
    return dict(zip(SCORES, values, strict=True))


def _split_and_merge(table: Contingency) -> tuple[float, float]:
    """Conditional entropies H(segmentation | truth) and H(truth | segmentation) in bits."""
    share = table.counts / max(1, table.counts.sum())
    split = share @ np.log2(table.truth_sizes[table.truth] / table.counts)
    merge = share @ np.log2(table.segment_sizes[table.segment] / table.counts)
    return float(split), float(merge)


def _pair_error(table: Contingency) -> float:
    """Adapted Rand error; ordered pairs of different voxels."""
    together, in_truth, in_segments = (
        float(np.sum(sizes.astype(np.float64) * (sizes - 1)))
        for sizes in (table.counts, table.truth_sizes, table.segment_sizes)
    )
    if in_truth + in_segments == 0:
        return 0.0
    return 1 - 2 * together / (in_truth + in_segments)


def _sums(index: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum of counts for every index, exact."""
    sums = np.zeros(index.max(initial=-1) + 1, dtype=np.int64)
    np.add.at(sums, index, counts)
    return sums
