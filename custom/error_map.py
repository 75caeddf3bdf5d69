"""Where a segmentation errs, voxel by voxel: labels in, codes and colours out."""

import numpy as np
from numpy.typing import NDArray

SPLIT, MERGE, BOTH, MISSING, FALSE, WRONG = range(1, 7)
"""Codes of errors; 0 is none, or unknown truth."""

COLOURS = {
    "split": (SPLIT, (255, 170, 40)),
    "merge": (MERGE, (70, 130, 255)),
    "split and merge": (BOTH, (190, 80, 220)),
    "missing": (MISSING, (235, 60, 60)),
    "false": (FALSE, (255, 170, 40)),
    "wrong class": (WRONG, (70, 130, 255)),
}
"""Names of errors with code and RGB."""

OF_OBJECTS = ("split", "merge", "split and merge", "missing")
OF_CLASSES = ("missing", "false", "wrong class")


def object_errors(
    truth: NDArray[np.integer], segmentation: NDArray[np.integer]
) -> NDArray[np.uint8]:
    """Errors of segments where the truth is known, up to renaming.

    The main segment of an object is the one with which it shares most voxels, and the main object
    of a segment likewise (of equals, the one with the lowest id). A voxel is a split where its
    segment is not its object's main segment, a merge where its object is not its segment's main
    object, both where both hold; it is missing where it has no segment at all.

    Args:
        truth: labels; 0 is unknown and never an error.
        segmentation: labels of the same shape; 0 is no segment.

    Returns:
        Codes, uint8, same shape.
    """
    known = (truth != 0) & (segmentation != 0)
    objects, own = np.unique(truth[known], return_inverse=True)
    segments, segment = np.unique(segmentation[known], return_inverse=True)
    overlap = _overlap(own, segment, len(objects), len(segments))
    split = _main(*overlap, len(objects))[own] != segment
    merge = _main(overlap[1], overlap[0], overlap[2], len(segments))[segment] != own
    codes = np.zeros(truth.shape, np.uint8)
    codes[known] = SPLIT * split + MERGE * merge  # both: 3
    codes[(truth != 0) & (segmentation == 0)] = MISSING
    return codes


def object_errors_by_section(
    truth: NDArray[np.integer], segmentation: NDArray[np.integer]
) -> NDArray[np.uint8]:
    """``object_errors`` of every section (of the first axis) on its own."""
    return np.stack([object_errors(*pair) for pair in zip(truth, segmentation, strict=True)])


def class_errors(truth: NDArray[np.integer], classes: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Errors of classes: missing, false (background in the truth) or of another class.

    Args:
        truth: class ids; negative ones are unknown and never an error.
        classes: predicted ids, same shape.

    Returns:
        Codes, uint8, same shape.
    """
    codes = np.zeros(truth.shape, np.uint8)
    wrong = (truth >= 0) & (truth != classes.astype(np.int64))
    codes[wrong & (classes == 0)] = MISSING
    codes[wrong & (truth == 0)] = FALSE
    codes[wrong & (classes != 0) & (truth != 0)] = WRONG
    return codes


def error_colours(codes: NDArray[np.uint8], grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Errors in their colours over darkened grey values.

    Args:
        codes: (...).
        grey: (..., 3) RGB.

    Returns:
        (..., 3) RGB.
    """
    table = np.zeros((max(code for code, _ in COLOURS.values()) + 1, 3), np.uint8)
    for code, colour in COLOURS.values():
        table[code] = colour
    painted: NDArray[np.uint8] = np.where((codes != 0)[..., None], table[codes], grey // 2)
    return painted


def _overlap(
    own: NDArray[np.int64], segment: NDArray[np.int64], objects: int, segments: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Object, segment and shared voxels of every pair that shares any."""
    pairs, counts = np.unique(own * max(1, segments) + segment, return_counts=True)
    first, second = np.divmod(pairs, max(1, segments))
    return first, second, counts


def _main(
    key: NDArray[np.int64], value: NDArray[np.int64], counts: NDArray[np.int64], size: int
) -> NDArray[np.int64]:
    """For every key the value with the highest count, the lowest of equals."""
    order = np.lexsort((-value, counts))  # the last one written wins
    main = np.zeros(size, np.int64)
    main[key[order]] = value[order]
    return main
