"""Scores of a segmentation against the truth: of objects, up to renaming, and of classes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SCORES = ("voi_split", "voi_merge", "voi", "adapted_rand")
PRECISIONS = ("ap", "ap_50", "ap_75")

SLAB_VOXELS = 1 << 20  # that are compared at once

UNKNOWN = -1
"""Class id of voxels whose class is not known."""


@dataclass(frozen=True)
class Contingency:
    """Voxels shared by every pair of a true object and a segment, without empty pairs.

    Args:
        counts: (N,) voxels of each overlapping pair.
        truth: (N,) index of the pair's true object, 0 to T - 1.
        segment: (N,) index of the pair's segment, 0 to S - 1.
        assigned: (N,) False where that segment is 0, "unassigned".
    """

    counts: NDArray[np.int64]
    truth: NDArray[np.int64]
    segment: NDArray[np.int64]
    assigned: NDArray[np.bool_]

    @property
    def truth_sizes(self) -> NDArray[np.int64]:
        """(T,) voxels of each true object."""
        return _sums(self.truth, self.counts)

    @property
    def segment_sizes(self) -> NDArray[np.int64]:
        """(S,) voxels of each segment, only where the truth is known."""
        return _sums(self.segment, self.counts)

    @property
    def objects(self) -> "ObjectCounts":
        """True objects, and segments without that of what is unassigned."""
        return ObjectCounts(self.truth_sizes.size, np.unique(self.segment[self.assigned]).size)


def contingency(
    truth: NDArray[np.integer], segmentation: NDArray[np.integer], per_section: bool = False
) -> Contingency:
    """Overlap of two label arrays where the truth is not 0.

    A segmentation's 0 is a segment like any other: voxels that the truth assigns and the
    segmentation does not form one segment, "unassigned".

    Args:
        truth: labels of any shape and integer dtype; 0 is unknown and ignored.
        segmentation: labels of the same shape.
        per_section: what one id has in two sections (indices of the first axis) counts as two
            objects, or segments.

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
    slabs = [_overlaps(*slab) for slab in _slabs(truth, segmentation, per_section)]
    of_slab = np.repeat(np.arange(len(slabs)), [counts.size for _, _, counts in slabs])
    true, found, counts = (np.concatenate(column) for column in zip(*slabs, strict=True))
    sections = of_slab if per_section else None
    return contingency_of_pairs(true, found, counts, sections)


def contingency_of_pairs(
    truth: NDArray[np.integer],
    segment: NDArray[np.integer],
    counts: NDArray[np.int64],
    sections: NDArray[np.integer] | None = None,
) -> Contingency:
    """Overlap from counts of pairs of ids, in which a pair may stand several times.

    Args:
        truth: (M,) ids of true objects.
        segment: (M,) ids of segments; 0 is "unassigned".
        counts: (M,) voxels that both have.
        sections: (M,) where what one id has in two sections counts as two objects, or segments.
    """
    true_index, _ = _numbered(truth, sections)
    found_index, segments = _numbered(segment, sections)
    pairs, first, index = np.unique(
        true_index * max(1, segments) + found_index, return_index=True, return_inverse=True
    )
    own, found = np.divmod(pairs, max(1, segments))
    return Contingency(_sums(index, counts), own, found, segment[first] != 0)


def _slabs(
    truth: NDArray[np.integer], segmentation: NDArray[np.integer], per_section: bool
) -> Iterator[tuple[NDArray[np.integer], NDArray[np.integer]]]:
    """Both arrays in parts along the first axis, so that sorting takes little memory."""
    truth, segmentation = np.atleast_1d(truth), np.atleast_1d(segmentation)
    depth = len(truth)
    step = 1 if per_section else max(1, SLAB_VOXELS * depth // max(1, truth.size))
    for first in range(0, max(1, depth), step):
        yield truth[first : first + step], segmentation[first : first + step]


def _overlaps(
    truth: NDArray[np.integer], segmentation: NDArray[np.integer]
) -> tuple[NDArray[np.integer], NDArray[np.integer], NDArray[np.int64]]:
    """Every pair of ids that share voxels, and how many, where the truth is not 0."""
    known = truth != 0
    true_ids, true_index = np.unique(truth[known], return_inverse=True)
    found_ids, found_index = np.unique(segmentation[known], return_inverse=True)
    number = max(1, found_ids.size)
    pairs, counts = np.unique(true_index * number + found_index, return_counts=True)
    return true_ids[pairs // number], found_ids[pairs % number], counts


def _numbered(
    ids: NDArray[np.integer], sections: NDArray[np.integer] | None
) -> tuple[NDArray[np.int64], int]:
    """Ids, or pairs of id and section, as numbers from 0 on without gaps, and how many."""
    found, index = np.unique(ids, return_inverse=True)
    if sections is None:
        return index, found.size
    depth = int(sections.max(initial=0)) + 1
    return _numbered(index * depth + sections, None)


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


def average_precisions(
    truth: NDArray[np.integer], segmentation: NDArray[np.integer], per_section: bool = False
) -> dict[str, float]:
    """Average precision of matched objects; 0 in the truth is ignored.

    An object and a segment match at a threshold ``t`` of at least 0.5 when their intersection over
    union is above ``t``, so that each has one partner at most. With ``TP`` matches, ``FP`` segments
    and ``FN`` objects without one, the precision is ``TP / (TP + FP + FN)``. A segment's size is
    that where the truth is known; a segmentation's 0 is no segment. Without objects it is 1.

    Args:
        truth: labels of any shape and integer dtype; 0 is unknown and ignored.
        segmentation: labels of the same shape.
        per_section: as in ``contingency``.

    Returns:
        ``ap_50`` and ``ap_75``, at 0.5 and 0.75, and ``ap``, the mean over 0.5, 0.55, ..., 0.95;
        0 to 1.

    Raises:
        ValueError: the shapes differ.
        TypeError: an array does not hold integers.

    Source:
        Caicedo et al. 2019, Nature Methods 16; Schmidt et al. 2018, MICCAI (StarDist).
    """
    return precisions_of_table(contingency(truth, segmentation, per_section))


def precisions_of_table(table: Contingency) -> dict[str, float]:
    """All of ``PRECISIONS`` by name: see ``average_precisions``."""
    truth, segments = table.truth_sizes[table.truth], table.segment_sizes[table.segment]
    union = (truth + segments - table.counts)[table.assigned]
    shared, objects = table.counts[table.assigned], table.objects
    precision = {}
    for percent in range(50, 100, 5):
        matches = int(np.count_nonzero(100 * shared > percent * union))
        together = objects.truth + objects.segmentation - matches
        precision[percent] = matches / together if together else 1.0
    mean = sum(precision.values()) / len(precision)
    return dict(zip(PRECISIONS, (mean, precision[50], precision[75]), strict=True))


@dataclass(frozen=True)
class ObjectCounts:
    """How many objects the truth has and how many segments lie on them."""

    truth: int
    segmentation: int


def object_counts(
    truth: NDArray[np.integer], segmentation: NDArray[np.integer], per_section: bool = False
) -> ObjectCounts:
    """Ids other than 0 in the truth, and in the segmentation where the truth is not 0.

    Args:
        truth: labels of any shape and integer dtype; 0 is unknown and ignored.
        segmentation: labels of the same shape; 0 is not counted.
        per_section: as in ``contingency``.

    Raises:
        ValueError: the shapes differ.
        TypeError: an array does not hold integers.
    """
    return contingency(truth, segmentation, per_section).objects


def instance_scores(
    truth: NDArray[np.integer], segmentation: NDArray[np.integer], per_section: bool = False
) -> dict[str, float]:
    """All of ``SCORES`` by name, from one contingency table; ``per_section`` as there."""
    return scores_of_table(contingency(truth, segmentation, per_section))


def scores_of_table(table: Contingency) -> dict[str, float]:
    """All of ``SCORES`` by name."""
    split, merge = _split_and_merge(table)
    values = (split, merge, split + merge, _pair_error(table))
    return dict(zip(SCORES, values, strict=True))


@dataclass(frozen=True)
class ClassCounts:
    """Voxels of N classes, where the true class is known.

    Args:
        truth: (N,) voxels of each class in the truth.
        prediction: (N,) in the prediction.
        shared: (N,) in both.
    """

    truth: NDArray[np.int64]
    prediction: NDArray[np.int64]
    shared: NDArray[np.int64]

    def __add__(self, other: "ClassCounts") -> "ClassCounts":
        """Counts of two volumes together."""
        return ClassCounts(
            self.truth + other.truth,
            self.prediction + other.prediction,
            self.shared + other.shared,
        )

    @property
    def dice(self) -> NDArray[np.float64]:
        """(N,) twice the shared voxels over the sum of both; NaN for a class without truth."""
        return self._where_true(2 * self.shared, self.truth + self.prediction)

    @property
    def iou(self) -> NDArray[np.float64]:
        """(N,) shared voxels over those in either; NaN for a class without truth."""
        return self._where_true(self.shared, self.truth + self.prediction - self.shared)

    def _where_true(self, part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
        """``part / whole`` of the classes that are in the truth, NaN for the others."""
        share = np.full(part.shape, np.nan)
        np.divide(part, whole, out=share, where=self.truth > 0)
        return share


def class_counts(
    truth: NDArray[np.integer], prediction: NDArray[np.integer], num_classes: int
) -> ClassCounts:
    """How many voxels of every class truth and prediction have, alone and together.

    Args:
        truth: class ids from 0 (background) to N - 1, any shape; negative ones are ``UNKNOWN`` and
            do not count.
        prediction: class ids of the same shape.
        num_classes: N.

    Raises:
        ValueError: the shapes differ, or an id is N or higher.
    """
    if truth.shape != prediction.shape:
        raise ValueError(
            f"truth and prediction must have the same shape, got {truth.shape} and "
            f"{prediction.shape}"
        )
    known = truth >= 0
    true, found = truth[known], prediction[known]
    _refuse_no_classes(true, found, num_classes)
    return ClassCounts(
        *(
            np.bincount(ids.astype(np.int64), minlength=num_classes)
            for ids in (true, found, true[true == found])
        )
    )


def class_counts_of_pairs(
    truth: NDArray[np.integer],
    prediction: NDArray[np.integer],
    counts: NDArray[np.int64],
    num_classes: int,
) -> ClassCounts:
    """As ``class_counts``, from counts of pairs of class ids.

    Args:
        truth: (M,) class ids, negative ones do not count.
        prediction: (M,) class ids.
        counts: (M,) voxels that have both.
        num_classes: N.

    Raises:
        ValueError: an id is N or higher.
    """
    known = truth >= 0
    true, found, counts = truth[known], prediction[known], counts[known]
    _refuse_no_classes(true, found, num_classes)
    sums = []
    for ids, part in ((true, counts), (found, counts), (true, counts * (true == found))):
        sums.append(np.zeros(num_classes, dtype=np.int64))
        np.add.at(sums[-1], ids.astype(np.int64), part)
    return ClassCounts(*sums)


def _refuse_no_classes(
    truth: NDArray[np.integer], prediction: NDArray[np.integer], num_classes: int
) -> None:
    highest = max(truth.max(initial=0), prediction.max(initial=0))
    if highest >= num_classes:
        raise ValueError(f"class ids must be below num_classes {num_classes}, got {highest}")


def class_scores(counts: ClassCounts, names: Sequence[str]) -> dict[str, float]:
    """Dice and IoU of every class but the background, and their means.

    A class that the truth does not have has no score and no part in the means; voxels that are
    taken for it count against the classes that they are of.

    Args:
        counts: of N classes.
        names: N, the background's first.

    Returns:
        ``dice``, ``iou``, then ``dice_<name>`` and ``iou_<name>`` of every class that the truth
        has, 0 to 1; empty if it has none but the background.
    """
    there = [k for k in range(1, len(names)) if counts.truth[k]]
    values = {"dice": counts.dice, "iou": counts.iou}
    if not there:
        return {}
    means = {score: float(value[there].mean()) for score, value in values.items()}
    single = {
        f"{score}_{names[k]}": float(value[k]) for score, value in values.items() for k in there
    }
    return means | single


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
