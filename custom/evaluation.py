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

from custom.comparison import Comparison, comparable, compared
from custom.comparison_picture import picture
from custom.contingency import Table, contingency_of
from custom.counting import Counting
from custom.datalist import entries_in
from custom.errors import InputError
from custom.files import write_atomically
from custom.metrics import (
    class_counts_of_pairs,
    class_scores,
    precisions_of_table,
    scores_of_table,
)
from custom.pictures import png_bytes
from custom.run_length import RunLength, expected_run_length
from custom.skeletons import read_skeletons, traced
from custom.split_merge import merges, splits

logger = logging.getLogger(__name__)


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
        ap: average precision, the mean over thresholds of IoU from 0.5 to 0.95, 0 to 1.
        ap_50: at 0.5.
        ap_75: at 0.75.
    """

    id: str
    voi_split: float
    voi_merge: float
    voi: float
    adapted_rand: float
    truth_objects: int
    segments: int
    voxels: int
    ap: float
    ap_50: float
    ap_75: float

    def row(self) -> dict[str, Any]:
        """What is written of it, by name."""
        return asdict(self)

    def summary(self) -> str:
        """One line for the log."""
        return (
            f"{self.id}: VOI {self.voi:.3f} bits (split {self.voi_split:.3f}, merge "
            f"{self.voi_merge:.3f}), adapted Rand error {self.adapted_rand:.3f}, "
            f"AP {self.ap:.3f}, {_number(self.segments, 'segment')} for "
            f"{_number(self.truth_objects, 'object')}, {_number(self.voxels, 'voxel')}"
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
class SkeletonScores:
    """How far skeletons can be followed through the segmentation.

    Args:
        id: the datalist entry.
        run: lengths in nm.
        skeletons: number of them with an edge among the voxels compared.
    """

    id: str
    run: RunLength
    skeletons: int

    def row(self) -> dict[str, Any]:
        """What is written of it, by name."""
        shares = {
            f"edges_{kind}": length / self.run.total for kind, length in self.run.lengths.items()
        }
        return {
            "id": self.id,
            "erl_nm": self.run.expected,
            "skeletons": self.skeletons,
            "skeleton_nm": self.run.total,
            **shares,
        }

    def summary(self) -> str:
        """One line for the log."""
        return (
            f"{self.id}: expected run length {self.run.expected / 1000:.2f} um of "
            f"{_number(self.skeletons, 'skeleton')}, {self.run.total / 1000:.2f} um in all"
        )


AnyScores = Scores | ClassScores | SkeletonScores


class SegmentationEvaluator:
    """Compares ``<output_dir>/<id>.zarr/labels/segmentation`` with labels and skeletons of entries.

    The comparison covers the voxels that the entry's ROI and the segmentation share, and counts
    them block by block. What the segmentation holds, objects, objects of single sections or
    classes, is said by its attributes. Writes ``scores.json`` and ``scores.csv``, and per entry
    ``<id>.png`` and, of objects, ``<id>_splits.csv`` and ``<id>_merges.csv`` into ``eval_dir``.

    Args:
        datalist: path of the datalist.
        section: "training", "validation" or "test".
        output_dir: folder that inference wrote to.
        eval_dir: folder for the scores, created if missing.
        on_start: called before the first file is written.
        counting: how voxels are counted.
    """

    def __init__(
        self,
        datalist: str | os.PathLike[str],
        section: str,
        output_dir: str | os.PathLike[str],
        eval_dir: str | os.PathLike[str],
        on_start: Callable[[], object] | None = None,
        counting: Counting | None = None,
    ) -> None:
        self.datalist = Path(datalist)
        self.section = section
        self.output_dir = Path(output_dir)
        self.eval_dir = Path(eval_dir)
        self.on_start = on_start
        self.counting = Counting() if counting is None else counting

    def run(self) -> list[AnyScores]:
        """Score every entry with labels or skeletons, write the files, return the scores.

        Raises:
            InputError: the section has no entries or none with labels or skeletons, an entry has
                no truth in its ROI, or its segmentation is missing, unfinished or does not fit;
                blocks failed.
        """
        entries = entries_in(self.datalist, self.section)
        results: list[AnyScores] = []
        details: dict[str, dict[str, Any]] = {"outputs": {}, "worst_splits": {}, "worst_merges": {}}
        chosen = comparable(entries)
        if bare := [entry.id for entry in entries if entry not in chosen]:
            logger.warning("without labels, so not scored: %s", ", ".join(bare))
        for entry in chosen:
            comparison = compared(entry, self.output_dir)
            if self.on_start is not None and not results:
                self.on_start()
            details["outputs"][entry.id] = comparison.provenance()
            if entry.truth is not None:
                results.append(self._compare(comparison, details))
            if entry.skeletons is not None:
                results.append(skeleton_scores(comparison))
                logger.info("%s", results[-1].summary())
        write_atomically(self.eval_dir / "scores.json", self._as_json(results, details))
        write_atomically(self.eval_dir / "scores.csv", _as_csv(results))
        return results

    def _compare(self, comparison: Comparison, details: Mapping[str, dict[str, Any]]) -> AnyScores:
        """Scores of an entry with labels; writes its picture and lists, and adds to details."""
        id_ = comparison.opened.entry.id
        table = self.counting.table(comparison, self.datalist, self.section, self.eval_dir)
        result = scores(comparison, table)
        if not comparison.classes:
            for name, worst in self._list(comparison, table).items():
                details[name][id_] = worst
        write_atomically(self.eval_dir / f"{id_}.png", png_bytes(picture(comparison)))
        logger.info("%s", result.summary())
        return result

    def _list(self, comparison: Comparison, table: Table) -> dict[str, Any]:
        """Write the lists of splits and merges of an entry; the worst of both."""
        metadata, id_ = comparison.segmentation.metadata, comparison.opened.entry.id
        place = (metadata.voxel_size_nm, metadata.offset_nm)
        worst = {}
        for name, pieces in (("splits", splits(table)), ("merges", merges(table))):
            write_atomically(self.eval_dir / f"{id_}_{name}.csv", pieces.as_csv(*place))
            worst[f"worst_{name}"] = pieces.worst(*place)
        return worst

    def _as_json(self, results: Sequence[AnyScores], details: Mapping[str, Any]) -> bytes:
        """Scores of every entry, where they come from and what lowers them most."""
        content = {
            "datalist": str(self.datalist),
            "section": self.section,
            "output_dir": str(self.output_dir),
            "entries": _rows(results),
            **details,
        }
        return (json.dumps(content, indent=2) + "\n").encode()


def scores(comparison: Comparison, table: Table) -> Scores | ClassScores:
    """Scores of one comparison.

    Raises:
        InputError: there is no truth, or labels that are no classes.
    """
    if comparison.classes:
        return _class_scores(comparison, table)
    id_ = comparison.opened.entry.id
    if not len(table.pairs):
        raise InputError(
            f"the labels of entry '{id_}' are all zero where the segmentation is, so there is "
            "nothing to compare with; check 'labels', 'mask' and 'roi' in the datalist"
        )
    counted = contingency_of(table.pairs, comparison.per_section)
    return Scores(
        id=id_,
        **scores_of_table(counted),
        **precisions_of_table(counted),
        truth_objects=counted.objects.truth,
        segments=counted.objects.segmentation,
        voxels=int(counted.counts.sum()),
    )


def skeleton_scores(comparison: Comparison) -> SkeletonScores:
    """Expected run length of an entry's skeletons.

    Raises:
        InputError: files that are no skeletons, or none of them is in the voxels compared.
    """
    entry = comparison.opened.entry
    assert entry.skeletons is not None
    skeletons = read_skeletons(entry.skeletons, f"entry '{entry.id}', skeletons")
    found = traced(skeletons, comparison.segmentation, comparison.written)
    run = expected_run_length(found)
    if not run.total:
        raise InputError(
            f"no edge of the skeletons of entry '{entry.id}' ('{entry.skeletons}') lies in its "
            "segmentation; positions must be x y z in nm, in the frame of raw and its offset"
        )
    return SkeletonScores(entry.id, run, sum(len(skeleton.edges) > 0 for skeleton in found))


def _class_scores(comparison: Comparison, table: Table) -> ClassScores:
    id_, names = comparison.opened.entry.id, comparison.classes
    _, labels, found = table.pairs.keys.T
    truth = comparison.classes_of(labels)
    if not (truth > 0).any():
        raise InputError(
            f"the labels of entry '{id_}' hold none of the classes {', '.join(names[1:])} where "
            "the segmentation is, so there is nothing to compare with; check 'labels', 'mask' and "
            "'roi' in the datalist"
        )
    counts = class_counts_of_pairs(truth, found, table.pairs.counts, len(names))
    return ClassScores(id_, class_scores(counts, names), int(counts.truth.sum()))


def _rows(results: Sequence[AnyScores]) -> list[dict[str, Any]]:
    """One row per entry, with all its scores."""
    rows: dict[str, dict[str, Any]] = {}
    for result in results:
        rows.setdefault(result.id, {}).update(result.row())
    return list(rows.values())


def _as_csv(results: Sequence[AnyScores]) -> bytes:
    """One row per entry under the names of the scores; blank where an entry has no such score."""
    text = io.StringIO()
    rows = _rows(results)
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
