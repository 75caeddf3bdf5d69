"""Raw, predictions, segments, truth and errors of an output in three planes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from funlib.geometry import Coordinate, Roi
from numpy.typing import NDArray

from custom.comparison import compared
from custom.comparison_picture import matched
from custom.datalist import OpenEntry
from custom.error_map import class_errors, error_colours, object_errors_by_section
from custom.outputs.images import SEGMENTATION
from custom.pictures import Colours, channels_as_colours, grey_image, overlay, paint, plane_slice
from custom.planes import NORMAL_AXIS, PLANES
from custom.viewing.error_sites import ErrorMap
from custom.viewing.finished_output import AFFINITIES, PROBABILITIES, FinishedOutput
from custom.viewing.layers import axis_channels
from custom.viewing.pyramid import open_channels
from custom.volumes import Volume, open_volume
from custom.working_grid import same_size

LARGEST_SIDE = 512  # voxels of a section that is shown
ERROR_VOXELS = 2**27  # that are compared for a report


@dataclass(frozen=True)
class PlanePictures:
    """Images of one section.

    Args:
        plane: "xy", "xz" or "yz".
        images: name to (rows, columns, 3) uint8.
    """

    plane: str
    images: dict[str, Colours]


def output_pictures(output: FinishedOutput, eval_dir: Path | None = None) -> list[PlanePictures]:
    """Pictures of the middle sections of an output: of its evaluated part, if there is one.

    Of sections longer than ``LARGEST_SIDE`` the middle is shown.

    Args:
        output: finished.
        eval_dir: as of ``ErrorMap``.
    """
    segmentation = open_volume(output.path / SEGMENTATION, field="segmentation")
    size = segmentation.metadata.voxel_size_nm
    boxes = _boxes(_shown_part(output, segmentation))
    raw = _raw(output.entry, segmentation, boxes)
    truth = _truth(output, eval_dir, boxes)
    predicted = _predicted(output, boxes)
    found = []
    for k, (plane, box) in enumerate(zip(PLANES, boxes, strict=True)):
        volumes: dict[str, Colours] = {}
        if raw is not None:
            volumes["raw"] = raw[k]
        under = volumes.get("raw", np.full((*box.shape, 3), 60, np.uint8))
        volumes |= {name: values[k] for name, values in predicted.items()}
        segments = truth["matched"][k] if truth else segmentation.read(box)
        volumes["segmentation"] = overlay(paint(segments), under)
        if truth:
            volumes["truth"] = overlay(paint(truth["truth"][k]), under)
        if "errors" in truth:
            volumes["errors"] = error_colours(truth["errors"][k].astype(np.uint8), under)
        images = {name: plane_slice(values, plane, size) for name, values in volumes.items()}
        found.append(PlanePictures(plane, images))
    return found


def _shown_part(output: FinishedOutput, segmentation: Volume) -> Roi:
    """What is compared with truth, else all."""
    if output.entry is None or output.entry.labels is None:
        return segmentation.metadata.roi
    return compared(output.entry.entry, output.path.parent).written


def _boxes(part: Roi) -> list[Roi]:
    """The middle section of every plane."""
    found = []
    for plane in PLANES:
        shape = np.minimum(part.shape, LARGEST_SIDE)
        shape[NORMAL_AXIS[plane]] = 1
        begin = Coordinate((np.asarray(part.shape) - shape + 1) // 2)
        found.append(Roi(part.offset + begin, shape))
    return found


def _raw(
    opened: OpenEntry | None, segmentation: Volume, boxes: Sequence[Roi]
) -> list[Colours] | None:
    """Raw on the voxels of the segmentation; None where it is not known or lies elsewhere."""
    if opened is None:
        return None
    here, there = segmentation.metadata, opened.raw.metadata
    if not same_size(here.voxel_size_nm, there.voxel_size_nm):
        return None
    moved = np.subtract(here.offset_nm, there.offset_nm) / here.voxel_size_nm
    shift = Coordinate(int(v) for v in np.rint(moved))
    if not all(there.roi.contains(box + shift) for box in boxes):
        return None
    values = [opened.read_raw(box + shift) for box in boxes]
    low, high = np.percentile(np.concatenate([v.ravel() for v in values]), (0.5, 99.5))
    low, high = opened.entry.intensity_window or (low, high)
    return [grey_image(one, float(low), float(high)) for one in values]


def _truth(
    output: FinishedOutput, eval_dir: Path | None, boxes: Sequence[Roi]
) -> dict[str, list[NDArray[np.integer]]]:
    """Truth, segments in its colours, and errors where they are affordable; nothing without."""
    opened = output.entry
    if opened is None or opened.labels is None:
        return {}
    comparison = compared(opened.entry, output.path.parent)
    cuts = [comparison.cut(box) for box in boxes]
    found = {"truth": [cut.truth for cut in cuts], "matched": matched(comparison, cuts)}
    if comparison.classes:
        found["errors"] = [class_errors(cut.truth, cut.segmentation) for cut in cuts]
    elif comparison.per_section:
        found["errors"] = [object_errors_by_section(cut.truth, cut.segmentation) for cut in cuts]
    else:
        errors = ErrorMap(opened, output.path.parent, eval_dir)
        if errors.evaluated or errors.voxels <= ERROR_VOXELS:
            begin = errors.roi.offset - errors.shift
            found["errors"] = [errors.codes(box - begin) for box in boxes]
    return found


def _predicted(output: FinishedOutput, boxes: Sequence[Roi]) -> dict[str, list[Colours]]:
    """Affinities as colours, or where it is not background."""
    if output.has(AFFINITIES):
        axes = axis_channels(output.attributes(AFFINITIES)["offsets"])
        return {"affinities": list(_colours(output, AFFINITIES, axes, boxes))}
    if output.has(PROBABILITIES):
        level = open_channels(str(output.path / PROBABILITIES), [0], PROBABILITIES).levels[0]
        return {"not background": [channels_as_colours(255 - level.read(box)) for box in boxes]}
    return {}


def _colours(
    output: FinishedOutput, name: str, axes: dict[int, int], boxes: Sequence[Roi]
) -> Iterator[Colours]:
    """Channels in the colours of their axes: red z, green y, blue x."""
    level = open_channels(str(output.path / name), list(axes.values()), name).levels[0]
    for box in boxes:
        colours = np.zeros((*box.shape, 3), np.uint8)
        colours[..., list(axes)] = np.moveaxis(level.read(box), 0, -1)
        yield colours
