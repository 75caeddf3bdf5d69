"""Sections of truth and segmentation as pictures."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from custom.comparison import Comparison, Cut
from custom.pictures import (
    contact_sheet,
    grey_image,
    matched_by_section,
    matched_to_truth,
    overlay,
    paint,
    plane_slice,
)
from custom.planes import PLANES


def picture(comparison: Comparison) -> NDArray[np.uint8]:
    """Middle slices of raw, truth and segmentation in three planes, as one RGB image."""
    size = comparison.voxel_size_nm
    cuts = [comparison.middle(plane) for plane in PLANES]
    low, high = grey_range(cuts)
    columns: dict[str, list[NDArray[np.uint8]]] = {"raw": [], "truth": [], "segmentation": []}
    for plane, cut, segments in zip(PLANES, cuts, matched(comparison, cuts), strict=True):
        grey = grey_image(plane_slice(cut.raw, plane, size), low, high)
        columns["raw"].append(grey)
        for name, labels in (("truth", cut.truth), ("segmentation", segments)):
            columns[name].append(overlay(paint(plane_slice(labels, plane, size)), grey))
    return contact_sheet(columns, PLANES)


def grey_range(cuts: Sequence[Cut]) -> tuple[float, float]:
    """Grey values of raw that are shown black and white."""
    values = np.concatenate([cut.raw.ravel() for cut in cuts])
    low, high = np.percentile(values, (0.5, 99.5))
    return float(low), float(high)


def matched(comparison: Comparison, cuts: Sequence[Cut]) -> list[NDArray[np.integer]]:
    """Segmentations with the truth's ids where they agree; classes have them anyway.

    Args:
        comparison: that the sections are of.
        cuts: sections that are shown together, so that a segment has one colour in all.
    """
    if comparison.classes:
        return [cut.segmentation for cut in cuts]
    if comparison.per_section:
        return [matched_by_section(cut.truth, cut.segmentation) for cut in cuts]
    truth, segments = (
        np.concatenate([getattr(cut, name).ravel() for cut in cuts])
        for name in ("truth", "segmentation")
    )
    ends = np.cumsum([cut.truth.size for cut in cuts])[:-1]
    found = np.split(matched_to_truth(truth, segments), ends)
    return [part.reshape(cut.truth.shape) for part, cut in zip(found, cuts, strict=True)]
