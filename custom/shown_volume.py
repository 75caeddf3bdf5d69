"""The part of a validation volume that pictures show, and what there is to see in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from custom.error_map import (
    COLOURS,
    OF_CLASSES,
    OF_OBJECTS,
    class_errors,
    error_colours,
    object_errors,
    object_errors_by_section,
)
from custom.feature_colours import colours_of_dense, colours_of_grids
from custom.features.triplane import PlaneGrid, crop
from custom.pictures import (
    UNKNOWN_GREY,
    Colours,
    channels_as_colours,
    grey_image,
    matched_by_section,
    matched_to_truth,
    overlay,
    paint,
)
from custom.planes import NORMAL_AXIS, PLANES
from custom.scores import ClassScore, Score, SegmentationScore, as_uint8
from custom.targets.affinities import affinities

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class ShownVolume:
    """A box of a volume with all that pictures are made of; copies, not views.

    Args:
        raw: (D, H, W, 3) grey.
        features: (D, H, W, 3) of the middle slice of every plane, one voxel thick along its normal;
            empty without features.
        truth: (D, H, W) labels or class ids.
        counts: (D, H, W) bool, True where the truth counts.
        prediction: (C, D, H, W) uint8 probabilities.
        voxel_size_nm: zyx.
    """

    raw: Colours
    features: Mapping[str, Colours]
    truth: NDArray[np.integer]
    counts: NDArray[np.bool_]
    prediction: NDArray[np.uint8]
    voxel_size_nm: Sequence[float]


def shown_volume(
    given: Mapping[str, Any], found: Mapping[str, Any], size: int, channels: int
) -> ShownVolume:
    """What is shown of a volume.

    Args:
        given: an item of the evaluator's batch.
        found: that of its output: ``image`` in [-1, 1], ``label``, ``pred``.
        size: largest edge of the box, voxels.
        channels: so many of the prediction's are needed.
    """
    counts = given["mask"][0].cpu().numpy()
    box = shown_box(counts, size)
    return ShownVolume(
        grey_image(found["image"][0][box].cpu().numpy(), -1, 1),
        _features(given, box),
        found["label"][0][box].cpu().numpy().copy(),
        counts[box].copy(),
        as_uint8(found["pred"][:channels, *box]),
        [float(s) for s in given["voxel_size_nm"]],
    )


def shown_box(counts: NDArray[np.bool_], size: int) -> Box:
    """The box in the middle of what counts, no edge longer than ``size``."""
    slices = []
    for axis, length in enumerate(counts.shape):
        others = tuple(other for other in range(3) if other != axis)
        known = np.flatnonzero(counts.any(axis=others))
        middle = (known[0] + known[-1] + 1) // 2 if known.size else length // 2
        shown = min(size, length)
        start = int(np.clip(middle - shown // 2, 0, length - shown))
        slices.append(slice(start, start + shown))
    return slices[0], slices[1], slices[2]


def columns(shown: ShownVolume, score: Score) -> dict[str, Colours]:
    """What is drawn in every plane, volumes (D, H, W, 3) by name, raw first and errors last."""
    if isinstance(score, ClassScore):
        return {"raw": shown.raw, **_of_classes(shown)}
    return {"raw": shown.raw, **_of_segments(shown, score)}


def legend(score: Score) -> dict[str, tuple[int, int, int]]:
    """Names of the errors' colours."""
    names = OF_CLASSES if isinstance(score, ClassScore) else OF_OBJECTS
    return {name: COLOURS[name][1] for name in names}


def _of_segments(shown: ShownVolume, score: SegmentationScore) -> dict[str, Colours]:
    """Truth, the first affinities as they should be and as they are, segments in its colours."""
    segmenter = score.best_segmenter
    segments = segmenter(shown.prediction)
    matched = matched_by_section if score.per_section else matched_to_truth
    errors = object_errors_by_section if score.per_section else object_errors
    number = min(3, len(segmenter.offsets))
    name = "affinity 1" if number == 1 else f"affinities 1-{number}"
    target, valid = affinities(shown.truth, segmenter.offsets[:number], shown.counts)
    wanted = np.where(valid, np.uint8(255) * target.astype(np.uint8), np.uint8(UNKNOWN_GREY))
    return {
        "truth": overlay(paint(shown.truth), shown.raw),
        f"target {name}": channels_as_colours(wanted),
        name: channels_as_colours(shown.prediction[:number]),
        "segmentation": overlay(paint(matched(shown.truth, segments)), shown.raw),
        "errors": error_colours(errors(shown.truth, segments), shown.raw),
    }


def _of_classes(shown: ShownVolume) -> dict[str, Colours]:
    """Truth, probability of any class, most probable class."""
    classes = shown.prediction.argmax(0)
    return {
        "truth": overlay(paint(shown.truth), shown.raw),
        "not background": channels_as_colours(255 - shown.prediction[:1]),
        "classes": overlay(paint(classes), shown.raw),
        "errors": error_colours(class_errors(shown.truth, classes), shown.raw),
    }


def _features(given: Mapping[str, Any], box: Box) -> dict[str, Colours]:
    """Colours of the features in the middle slice of every plane."""
    shapes, starts = {}, {}
    for plane in PLANES:
        normal = NORMAL_AXIS[plane]
        shape, start = [s.stop - s.start for s in box], [s.start for s in box]
        start[normal] += shape[normal] // 2
        shape[normal] = 1
        shapes[plane], starts[plane] = shape, start
    if "features" in given:
        places = {
            plane: tuple(slice(a, a + n) for a, n in zip(starts[plane], shape, strict=True))
            for plane, shape in shapes.items()
        }
        return colours_of_dense({p: given["features"][:, *place] for p, place in places.items()})
    grids = {
        plane: crop(
            PlaneGrid.placed(given[f"tokens_{plane}"], given[f"placement_{plane}"]),
            starts[plane],
            shapes[plane],
        )
        for plane in PLANES
        if f"tokens_{plane}" in given
    }
    return colours_of_grids(grids, shapes) if grids else {}
