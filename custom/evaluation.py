"""Scores and pictures of finished segmentations against the truth of a datalist's section."""

import csv
import io
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from funlib.geometry import Coordinate, Roi
from numpy.typing import NDArray

from custom.datalist import OpenEntry, entries_in, open_entry
from custom.datalist_entry import DatalistEntry
from custom.errors import InputError
from custom.files import write_atomically
from custom.locations import Location
from custom.metrics import (
    UNKNOWN,
    class_counts,
    class_scores,
    instance_scores,
    object_counts,
)
from custom.outputs.images import SEGMENTATION
from custom.pictures import (
    contact_sheet,
    grey_image,
    matched_by_section,
    matched_to_truth,
    overlay,
    paint,
    plane_slice,
    png_bytes,
)
from custom.planes import PLANES
from custom.targets.classes import ClassSettings
from custom.volumes import Volume, open_volume
from custom.zarr_metadata import read_node

logger = logging.getLogger(__name__)

ON_GRID = 1e-3


@dataclass(frozen=True)
class Scores:
    """How well one segmentation agrees with the truth; voxels without truth do not count.

    Args:
        id: the datalist entry.
        voi_split: bits, over-segmentation.
        voi_merge: bits, under-segmentation.
        voi: their sum.
        adapted_rand: adapted Rand error, 0 to 1.
        truth_objects: objects of the truth among the voxels compared.
        segments: segments among the voxels compared, 0 not counted.
        voxels: voxels compared.
    """

    id: str
    voi_split: float
    voi_merge: float
    voi: float
    adapted_rand: float
    truth_objects: int
    segments: int
    voxels: int

    def row(self) -> dict[str, Any]:
        """What is written of it, by name."""
        return asdict(self)

    def summary(self) -> str:
        """One line for the log."""
        return (
            f"{self.id}: VOI {self.voi:.3f} bits (split {self.voi_split:.3f}, merge "
            f"{self.voi_merge:.3f}), adapted Rand error {self.adapted_rand:.3f}, "
            f"{_number(self.segments, 'segment')} for {_number(self.truth_objects, 'object')}, "
            f"{_number(self.voxels, 'voxel')}"
        )


def _number(count: int, noun: str) -> str:
    """Such as "1 segment", "2 segments"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


@dataclass(frozen=True)
class ClassScores:
    """How well predicted classes agree with the truth; voxels without truth do not count.

    Args:
        id: the datalist entry.
        values: ``class_scores``, by name.
        voxels: voxels compared.
    """

    id: str
    values: Mapping[str, float]
    voxels: int

    def row(self) -> dict[str, Any]:
        """What is written of it, by name."""
        return {"id": self.id, **self.values, "voxels": self.voxels}

    def summary(self) -> str:
        """One line for the log."""
        single = ", ".join(
            f"{name.removeprefix('dice_')} {value:.3f}"
            for name, value in self.values.items()
            if name.startswith("dice_")
        )
        return (
            f"{self.id}: mean Dice {self.values['dice']:.3f} ({single}), mean IoU "
            f"{self.values['iou']:.3f}, {self.voxels} voxels"
        )


@dataclass(frozen=True)
class Comparison:
    """Arrays of one entry on the same voxels, raw voxel grid.

    Args:
        raw: (D, H, W) grey values.
        truth: (D, H, W) labels, 0 where there is no truth; class ids, ``UNKNOWN`` there.
        segmentation: (D, H, W) labels or class ids.
        voxel_size_nm: zyx.
        written: the same voxels as a ROI of the arrays that inference wrote.
        classes: names of the classes, the background's first; empty for objects.
        per_section: every section has segments of its own.
    """

    raw: NDArray[np.number]
    truth: NDArray[np.integer]
    segmentation: NDArray[np.integer]
    voxel_size_nm: tuple[float, float, float]
    written: Roi
    classes: Sequence[str] = ()
    per_section: bool = False


class SegmentationEvaluator:
    """Compares ``<output_dir>/<id>.zarr/labels/segmentation`` with the labels of every entry.

    The comparison covers the voxels that the entry's ROI and the segmentation share. What the
    segmentation holds, objects, objects of single sections or classes, is said by its attributes.
    Writes ``scores.json``, ``scores.csv`` and one ``<id>.png`` per entry into ``eval_dir``.

    Args:
        datalist: path of the datalist.
        section: "training", "validation" or "test".
        output_dir: folder that inference wrote to.
        eval_dir: folder for the scores, created if missing.
        on_start: called before the first file is written.
    """

    def __init__(
        self,
        datalist: str | os.PathLike[str],
        section: str,
        output_dir: str | os.PathLike[str],
        eval_dir: str | os.PathLike[str],
        on_start: Callable[[], object] | None = None,
    ) -> None:
        self.datalist = Path(datalist)
        self.section = section
        self.output_dir = Path(output_dir)
        self.eval_dir = Path(eval_dir)
        self.on_start = on_start

    def run(self) -> list[Scores | ClassScores]:
        """Score every entry of the section that has labels, write the files, return the scores.

        Raises:
            InputError: the section has no entries or none with labels, an entry has no truth in
                its ROI, or its segmentation is missing or does not fit.
        """
        entries = entries_in(self.datalist, self.section)
        results: list[Scores | ClassScores] = []
        chosen = comparable(entries)
        if bare := [entry.id for entry in entries if entry not in chosen]:
            logger.warning("without labels, so not scored: %s", ", ".join(bare))
        for entry in chosen:
            comparison = compared(entry, self.output_dir)
            if self.on_start is not None and not results:
                self.on_start()
            results.append(scores(entry.id, comparison))
            write_atomically(self.eval_dir / f"{entry.id}.png", png_bytes(picture(comparison)))
            logger.info("%s", results[-1].summary())
        write_atomically(self.eval_dir / "scores.json", self._as_json(results))
        write_atomically(self.eval_dir / "scores.csv", _as_csv(results))
        return results

    def _as_json(self, results: Sequence[Scores | ClassScores]) -> bytes:
        """Scores of every entry and where they come from."""
        content = {
            "datalist": str(self.datalist),
            "section": self.section,
            "output_dir": str(self.output_dir),
            "entries": [result.row() for result in results],
        }
        return (json.dumps(content, indent=2) + "\n").encode()


def comparable(entries: Sequence[DatalistEntry]) -> Sequence[DatalistEntry]:
    """Entries with labels, if there are any."""
    return [entry for entry in entries if entry.truth is not None] or entries


def scores(entry_id: str, comparison: Comparison) -> Scores | ClassScores:
    """Scores of one comparison."""
    truth, segmentation = comparison.truth, comparison.segmentation
    if comparison.classes:
        counts = class_counts(truth, segmentation, len(comparison.classes))
        values = class_scores(counts, comparison.classes)
        return ClassScores(entry_id, values, int(counts.truth.sum()))
    counted = object_counts(truth, segmentation, comparison.per_section)
    return Scores(
        id=entry_id,
        **instance_scores(truth, segmentation, comparison.per_section),
        truth_objects=counted.truth,
        segments=counted.segmentation,
        voxels=int(np.count_nonzero(truth)),
    )


def compared(entry: DatalistEntry, output_dir: Path) -> Comparison:
    """Raw, truth and segmentation on the voxels that entry and segmentation share.

    Raises:
        InputError: no labels, no segmentation, another voxel size or grid, no overlap, no truth.
    """
    path = _path_of_segmentation(entry, output_dir)
    opened = open_entry(entry)
    segmentation, shift, roi = segmentation_of(opened, output_dir)
    if roi != opened.roi:
        logger.warning("%s: the segmentation covers %s of the ROI %s", entry.id, roi, opened.roi)
    attributes = _attributes(path)
    classes = attributes.get("classes")
    written = roi - shift
    return Comparison(
        opened.read_raw(roi),
        _class_truth(opened, roi, classes) if classes else _truth(opened, roi),
        segmentation.read(written),
        opened.voxel_size_nm,
        written,
        classes["names"] if classes else (),
        per_section=attributes.get("dimensions") == 2,
    )


def segmentation_of(opened: OpenEntry, output_dir: Path) -> tuple[Volume, Coordinate, Roi]:
    """An entry's segmentation, as far as its metadata.

    Returns:
        the segmentation; the raw voxel of its first one; the voxels that it shares with the entry's
        ROI, in raw voxels.

    Raises:
        InputError: no labels, no segmentation, another voxel size or grid, no overlap.
    """
    entry = opened.entry
    path = _path_of_segmentation(entry, output_dir)
    segmentation = open_volume(str(path), field=f"segmentation of entry '{entry.id}'")
    shift = _shift(entry, opened, segmentation)
    roi = opened.roi.intersect(Roi(shift, segmentation.metadata.shape))
    if roi.empty:
        raise InputError(
            f"the segmentation {path} covers none of the ROI of entry '{entry.id}'; "
            "run inference on this entry again"
        )
    return segmentation, shift, roi


def _path_of_segmentation(entry: DatalistEntry, output_dir: Path) -> Path:
    """Where the segmentation of an entry that has labels lies; it must be there."""
    if entry.truth is None:
        raise InputError(
            f"entry '{entry.id}' has no labels to compare with; "
            "name them in the datalist's field 'labels' or 'classes', or leave the entry out"
        )
    path = output_dir / f"{entry.id}.zarr" / SEGMENTATION
    if not path.exists():
        raise InputError(
            f"there is no segmentation of entry '{entry.id}' at {path}; run inference first"
        )
    return path


def _truth(opened: OpenEntry, roi: Roi) -> NDArray[np.integer]:
    """Labels of a box, 0 where there is no truth."""
    labels, annotated = opened.read_labels(roi)
    truth = np.where(annotated, labels, 0)
    if not truth.any():
        raise InputError(
            f"the labels of entry '{opened.entry.id}' are all zero where the segmentation is, "
            "so there is nothing to compare with; check 'labels', 'mask' and 'roi' in the datalist"
        )
    return truth


def _class_truth(opened: OpenEntry, roi: Roi, classes: Mapping[str, Any]) -> NDArray[np.int64]:
    """Class ids of a box, ``UNKNOWN`` where there is no truth; labels mean what they did before."""
    names, id_ = classes["names"], opened.entry.id
    settings = ClassSettings(
        len(names), classes.get("ignore_label"), classes.get("class_of_labels", "ids")
    )
    labels, annotated = opened.read_labels(roi)
    ids, index = np.unique(labels, return_inverse=True)
    table = settings.table(ids, f"labels of entry '{id_}'")
    truth = np.where(annotated, table[index.reshape(labels.shape)], UNKNOWN)
    if not (truth > 0).any():
        raise InputError(
            f"the labels of entry '{id_}' hold none of the classes {', '.join(names[1:])} where "
            "the segmentation is, so there is nothing to compare with; check 'labels', 'mask' and "
            "'roi' in the datalist"
        )
    return truth


def _attributes(path: Path) -> dict[str, Any]:
    """What inference wrote beside a segmentation; nothing for one of another tool."""
    node = read_node(Location(str(path.absolute() / "s0")))
    return {} if node is None else dict(node.attributes)


def _shift(entry: DatalistEntry, opened: OpenEntry, segmentation: Volume) -> Coordinate:
    """Raw voxel index of the segmentation's first voxel, from physical positions."""
    raw, found = opened.raw.metadata, segmentation.metadata
    size = np.asarray(opened.voxel_size_nm)
    if not np.allclose(found.voxel_size_nm, size, rtol=1e-4):
        raise InputError(
            f"the segmentation of entry '{entry.id}' has voxels of {found.voxel_size_nm} nm and "
            f"the raw volume of {tuple(opened.voxel_size_nm)} nm; run inference again"
        )
    exact = (np.asarray(found.offset_nm) - np.asarray(raw.offset_nm)) / size
    shift = np.rint(exact)
    if np.abs(exact - shift).max() > ON_GRID:
        raise InputError(
            f"the segmentation of entry '{entry.id}' lies {exact.round(3).tolist()} voxels from "
            "the raw volume, which are not whole numbers; run inference again"
        )
    return Coordinate(int(step) for step in shift)


def picture(comparison: Comparison) -> NDArray[np.uint8]:
    """Middle slices of raw, truth and segmentation in three planes, as one RGB image."""
    size = comparison.voxel_size_nm
    low, high = np.percentile(comparison.raw, (0.5, 99.5))
    layers = {"truth": comparison.truth, "segmentation": matched(comparison)}
    columns: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in ("raw", *layers)}
    for plane in PLANES:
        grey = grey_image(plane_slice(comparison.raw, plane, size), float(low), float(high))
        columns["raw"].append(grey)
        for name, labels in layers.items():
            columns[name].append(overlay(paint(plane_slice(labels, plane, size)), grey))
    return contact_sheet(columns, PLANES)


def matched(comparison: Comparison) -> NDArray[np.integer]:
    """The segmentation with the truth's ids where they agree; classes have them anyway."""
    truth, segmentation = comparison.truth, comparison.segmentation
    if comparison.classes:
        return segmentation
    match = matched_by_section if comparison.per_section else matched_to_truth
    return match(truth, segmentation)


def _as_csv(results: Sequence[Scores | ClassScores]) -> bytes:
    """One row per entry under the names of the scores; blank where an entry has no such score."""
    text = io.StringIO()
    rows = [result.row() for result in results]
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
