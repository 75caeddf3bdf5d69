"""Scores and pictures of finished segmentations against the truth of a datalist's section."""

import csv
import io
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from funlib.geometry import Coordinate, Roi
from numpy.typing import NDArray

from custom.datalist import OpenEntry, open_entry, parse_datalist
from custom.datalist_entry import DatalistEntry
from custom.errors import InputError
from custom.files import write_atomically
from custom.metrics import adapted_rand_error, variation_of_information
from custom.pictures import (
    contact_sheet,
    grey_image,
    matched_to_truth,
    overlay,
    paint,
    plane_slice,
    png_bytes,
)
from custom.planes import PLANES
from custom.volumes import Volume, open_volume

logger = logging.getLogger(__name__)

SEGMENTATION = "labels/segmentation"
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


@dataclass(frozen=True)
class Comparison:
    """Arrays of one entry on the same voxels, raw voxel grid.

    Args:
        raw: (D, H, W) grey values.
        truth: (D, H, W) labels, 0 where there is no truth.
        segmentation: (D, H, W) labels.
        voxel_size_nm: zyx.
        written: the same voxels as a ROI of the arrays that inference wrote.
    """

    raw: NDArray[np.number]
    truth: NDArray[np.integer]
    segmentation: NDArray[np.integer]
    voxel_size_nm: tuple[float, float, float]
    written: Roi


class SegmentationEvaluator:
    """Compares ``<output_dir>/<id>.zarr/labels/segmentation`` with the labels of every entry.

    The comparison covers the voxels that the entry's ROI and the segmentation share. Writes
    ``scores.json``, ``scores.csv`` and one ``<id>.png`` per entry into ``eval_dir``.

    Args:
        datalist: path of the datalist.
        section: "training", "validation" or "test".
        output_dir: folder that inference wrote to.
        eval_dir: folder for the scores, created if missing.
    """

    def __init__(
        self,
        datalist: str | os.PathLike[str],
        section: str,
        output_dir: str | os.PathLike[str],
        eval_dir: str | os.PathLike[str],
    ) -> None:
        self.datalist = Path(datalist)
        self.section = section
        self.output_dir = Path(output_dir)
        self.eval_dir = Path(eval_dir)

    def run(self) -> list[Scores]:
        """Score every entry of the section that has labels, write the files, return the scores.

        Raises:
            InputError: the section has no entries or none with labels, an entry has no truth in
                its ROI, or its segmentation is missing or does not fit.
        """
        entries = parse_datalist(self.datalist).section(self.section)
        if not entries:
            raise InputError(
                f"section '{self.section}' of {self.datalist} has no entries to evaluate; "
                "choose another section or add entries to it"
            )
        results = []
        for entry in _comparable(entries):
            comparison = compared(entry, self.output_dir)
            results.append(scores(entry.id, comparison))
            write_atomically(self.eval_dir / f"{entry.id}.png", png_bytes(picture(comparison)))
            logger.info("%s", _summary(results[-1]))
        write_atomically(self.eval_dir / "scores.json", self._as_json(results))
        write_atomically(self.eval_dir / "scores.csv", _as_csv(results))
        return results

    def _as_json(self, results: Sequence[Scores]) -> bytes:
        """Scores of every entry and where they come from."""
        content = {
            "datalist": str(self.datalist),
            "section": self.section,
            "output_dir": str(self.output_dir),
            "entries": [asdict(result) for result in results],
        }
        return (json.dumps(content, indent=2) + "\n").encode()


def _comparable(entries: Sequence[DatalistEntry]) -> Sequence[DatalistEntry]:
    """Entries with labels, if there are any; the others are named."""
    bare = [entry.id for entry in entries if entry.truth is None]
    if not bare or len(bare) == len(entries):
        return entries
    logger.warning("without labels, so not scored: %s", ", ".join(bare))
    return [entry for entry in entries if entry.truth is not None]


def scores(entry_id: str, comparison: Comparison) -> Scores:
    """Scores of one comparison."""
    truth, segmentation = comparison.truth, comparison.segmentation
    split, merge = variation_of_information(truth, segmentation)
    known = truth != 0
    found = np.unique(segmentation[known])
    return Scores(
        id=entry_id,
        voi_split=split,
        voi_merge=merge,
        voi=split + merge,
        adapted_rand=adapted_rand_error(truth, segmentation),
        truth_objects=int(np.unique(truth[known]).size),
        segments=int(np.count_nonzero(found)),
        voxels=int(np.count_nonzero(known)),
    )


def compared(entry: DatalistEntry, output_dir: Path) -> Comparison:
    """Raw, truth and segmentation on the voxels that entry and segmentation share.

    Raises:
        InputError: no labels, no segmentation, another voxel size or grid, no overlap, no truth.
    """
    if entry.truth is None:
        raise InputError(
            f"entry '{entry.id}' has no labels to compare with; "
            "name them in the datalist's field 'labels' or 'classes', or leave the entry out"
        )
    group = output_dir / f"{entry.id}.zarr"
    path = group / SEGMENTATION
    if not path.exists():
        raise InputError(
            f"there is no segmentation of entry '{entry.id}' at {path}; run inference first"
        )
    opened = open_entry(entry)
    segmentation = open_volume(str(path), field=f"segmentation of entry '{entry.id}'")
    shift = _shift(entry, opened, segmentation)
    roi = opened.roi.intersect(Roi(shift, segmentation.metadata.shape))
    if roi.empty:
        raise InputError(
            f"the segmentation {path} covers none of the ROI of entry '{entry.id}'; "
            "run inference on this entry again"
        )
    if roi != opened.roi:
        logger.warning("%s: the segmentation covers %s of the ROI %s", entry.id, roi, opened.roi)
    labels, annotated = opened.read_labels(roi)
    truth = np.where(annotated, labels, 0)
    if not truth.any():
        raise InputError(
            f"the labels of entry '{entry.id}' are all zero where the segmentation is, "
            "so there is nothing to compare with; check 'labels', 'mask' and 'roi' in the datalist"
        )
    written = roi - shift
    return Comparison(
        opened.read_raw(roi), truth, segmentation.read(written), opened.voxel_size_nm, written
    )


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
    low, high = np.percentile(comparison.raw, (0.5, 99.5))
    matched = matched_to_truth(comparison.truth, comparison.segmentation)
    layers: Mapping[str, NDArray[np.integer] | None] = {
        "raw": None,
        "truth": comparison.truth,
        "segmentation": matched,
    }
    columns: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in layers}
    for plane in PLANES:
        grey = grey_image(
            plane_slice(comparison.raw, plane, comparison.voxel_size_nm), float(low), float(high)
        )
        for name, labels in layers.items():
            columns[name].append(
                grey
                if labels is None
                else overlay(paint(plane_slice(labels, plane, comparison.voxel_size_nm)), grey)
            )
    return contact_sheet(columns, PLANES)


def _as_csv(results: Sequence[Scores]) -> bytes:
    """One row per entry under the names of the scores."""
    text = io.StringIO()
    rows = [asdict(result) for result in results]
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _summary(result: Scores) -> str:
    """One line for the log."""
    return (
        f"{result.id}: VOI {result.voi:.3f} bits (split {result.voi_split:.3f}, merge "
        f"{result.voi_merge:.3f}), adapted Rand error {result.adapted_rand:.3f}, "
        f"{result.segments} segments for {result.truth_objects} objects, {result.voxels} voxels"
    )
