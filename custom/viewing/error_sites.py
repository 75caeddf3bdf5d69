"""Where a segmentation errs, computed for the boxes that are looked at, and a list of the sites."""

import csv
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from funlib.geometry import Coordinate, Roi
from numpy.typing import NDArray

from custom.comparison import segmentation_of
from custom.datalist import OpenEntry
from custom.error_map import MERGE, MISSING, SPLIT
from custom.truth_identity import truth_identity
from custom.viewing.pyramid import Level, Pyramid
from custom.volumes import Volume, VolumeMetadata

logger = logging.getLogger(__name__)

MOST_VOXELS = 2**30  # looked through for the errors; more take minutes
PIECE = 2**24  # voxels of one step
MOST_SITES = 200
LAST = 2**64 - 1

Pair = tuple[int, int]  # an object and a segment
Voxel = tuple[int, int, int]

Table = tuple[NDArray[np.uint64], NDArray[np.uint64]]  # keys, ascending, and their values


@dataclass(frozen=True)
class Site:
    """One place where objects were cut or joined.

    Args:
        kind: "split" or "merge".
        object: id in the truth.
        segment: id in the segmentation.
        voxels: that they share, and that are wrong.
        voxel: one of them, zyx, in voxels of raw.
    """

    kind: str
    object: int
    segment: int
    voxels: int
    voxel: Voxel

    @property
    def text(self) -> str:
        """One line for the list in the viewer."""
        if self.kind == "split":
            return f"split: segment {self.segment} is {self.voxels:,} voxels of {self.object}"
        return f"merge: segment {self.segment} holds {self.voxels:,} voxels of {self.object}"


@dataclass
class Overlaps:
    """How many voxels objects and segments share; grows piece by piece.

    Args:
        voxels: of every pair (object, segment).
        place: one voxel of every pair, in the middle of its voxels in the piece with most of them.
        joint: another voxel of some pairs, where objects were joined.
    """

    voxels: dict[Pair, int] = field(default_factory=dict)
    place: dict[Pair, Voxel] = field(default_factory=dict)
    joint: dict[Pair, Voxel] = field(default_factory=dict)
    _most: dict[Pair, int] = field(default_factory=dict)

    def add(
        self,
        truth: NDArray[np.integer],
        segmentation: NDArray[np.integer],
        offset: Voxel,
    ) -> None:
        """Count a piece whose first voxel is at ``offset``; 0 in either counts as nothing."""
        here = np.flatnonzero((truth != 0) & (segmentation != 0))
        pairs = np.stack([truth.ravel()[here], segmentation.ravel()[here]]).astype(np.uint64)
        order = np.lexsort(pairs)
        pairs, here = pairs[:, order], here[order]
        change = np.flatnonzero((pairs[:, 1:] != pairs[:, :-1]).any(0)) + 1
        starts = np.concatenate([[0], change]) if here.size else change
        counts = np.diff(np.append(starts, here.size))
        middles = here[starts + counts // 2]
        for k, start in enumerate(starts):
            key = int(pairs[0, start]), int(pairs[1, start])  # object, segment
            count = int(counts[k])
            self.voxels[key] = self.voxels.get(key, 0) + count
            if count > self._most.get(key, 0):
                self._most[key] = count
                z, y, x = (int(v) for v in np.unravel_index(middles[k], truth.shape))
                self.place[key] = z + offset[0], y + offset[1], x + offset[2]

    def main_segments(self) -> dict[int, int]:
        """Of every object the segment with most of it, the lowest id of equals."""
        return _main({(o, s): n for (o, s), n in self.voxels.items()})

    def main_objects(self) -> dict[int, int]:
        """Of every segment the object with most of it, the lowest id of equals."""
        return _main({(s, o): n for (o, s), n in self.voxels.items()})

    def sites(self) -> list[Site]:
        """Splits and merges, the largest first."""
        segments, objects = self.main_segments(), self.main_objects()
        found = []
        for (own, segment), voxels in self.voxels.items():
            if segments[own] != segment:
                found.append(Site("split", own, segment, voxels, self.place[own, segment]))
            if objects[segment] != own:
                place = self.joint.get((own, segment), self.place[own, segment])
                found.append(Site("merge", own, segment, voxels, place))
        return sorted(found, key=lambda site: (-site.voxels, site.object, site.segment, site.kind))


def _main(voxels: Mapping[tuple[int, int], int]) -> dict[int, int]:
    """For every first of a pair the second with most voxels."""
    main: dict[int, tuple[int, int]] = {}
    for (key, value), count in voxels.items():
        main[key] = max(main.get(key, (0, 0)), (count, -value))
    return {key: -value for key, (_, value) in main.items()}


class ErrorMap:
    """Errors of a segmentation, box by box.

    Codes are those of ``error_map``. What is main is decided on the whole of what truth and
    segmentation share: by the lists of an evaluation of this very output and truth, else it is
    looked through once, when the first box or the sites are asked for.

    Args:
        opened: with labels.
        output_dir: of the segmentation.
        eval_dir: of an evaluation; None for ``eval`` beside ``output_dir``.

    Raises:
        InputError: as ``evaluation.segmentation_of``.
    """

    def __init__(self, opened: OpenEntry, output_dir: Path, eval_dir: Path | None = None) -> None:
        self.opened = opened
        self.eval_dir = output_dir.parent / "eval" if eval_dir is None else eval_dir
        self.segmentation: Volume
        self.segmentation, self.shift, self.roi = segmentation_of(opened, output_dir)

    @property
    def affordable(self) -> bool:
        """Whether it was evaluated, or is small enough to be looked through."""
        return self.voxels <= MOST_VOXELS or self.evaluated

    @property
    def voxels(self) -> int:
        """How many are compared."""
        return int(np.prod(self.roi.shape))

    @cached_property
    def evaluated(self) -> bool:
        """Whether there are lists of a whole evaluation of this output and truth as they are."""
        scores = self.eval_dir / "scores.json"
        lists = [self._list("splits"), self._list("merges")]
        if not all(path.is_file() for path in (*lists, scores)):
            return False
        output = Path(self.segmentation.path)
        newest = max(path.stat().st_mtime for path in (output, output.parent))
        times = [newest, *(path.stat().st_mtime for path in (*lists, scores))]
        if times != sorted(times):  # of another output, or an evaluation was stopped
            return False
        outputs = json.loads(scores.read_text()).get("outputs", {})
        made: Mapping[str, object] = outputs.get(self.opened.entry.id, {})
        return made.get("path") == str(output) and made.get("truth") == truth_identity(self.opened)

    def _list(self, name: str) -> Path:
        return self.eval_dir / f"{self.opened.entry.id}_{name}.csv"

    @cached_property
    def overlaps(self) -> Overlaps:
        """Of the whole ROI."""
        if self.evaluated:
            return listed(self._list("splits"), self._list("merges"), self.shift)
        logger.info("errors: comparing %s voxels", f"{self.voxels:,}")
        found = Overlaps()
        for piece in _pieces(self.roi):
            truth, segments = self._read(piece)
            z, y, x = (int(v) for v in piece.offset)
            found.add(truth, segments, (z, y, x))
        return found

    @cached_property
    def _tables(self) -> tuple[Table, Table]:
        return _table(self.overlaps.main_segments()), _table(self.overlaps.main_objects())

    def sites(self) -> list[Site]:
        """The largest errors."""
        return self.overlaps.sites()[:MOST_SITES]

    def codes(self, roi: Roi) -> NDArray[np.uint8]:
        """Codes of a box, in voxels from the ROI's first on."""
        truth, segments = self._read(roi + self.roi.offset)
        segment_of, object_of = self._tables
        known = (truth != 0) & (segments != 0)
        split = _looked_up(segment_of, truth[known]) != segments[known]
        merge = _looked_up(object_of, segments[known]) != truth[known]
        codes = np.zeros(truth.shape, np.uint8)
        codes[known] = SPLIT * split + MERGE * merge
        codes[(truth != 0) & (segments == 0)] = MISSING
        return codes

    def pyramid(self) -> Pyramid:
        """The codes as a volume of one level."""
        depth, height, width = (int(n) for n in self.roi.shape)
        shape = (depth, height, width)
        place = self.opened.offset_nm(self.roi)
        metadata = VolumeMetadata(shape, "uint8", self.opened.voxel_size_nm, place)
        return Pyramid(metadata, (Level((1, 1, 1), shape, self.codes),))

    def _read(self, roi: Roi) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Truth (0 where there is none) and segments of a box in raw voxels."""
        labels, annotated = self.opened.read_labels(roi)
        return np.where(annotated, labels, 0), self.segmentation.read(roi - self.shift)


def listed(splits: Path, merges: Path, shift: Sequence[int]) -> Overlaps:
    """Overlaps by an evaluation's lists.

    Args:
        splits: ``<id>_splits.csv``, every pair of an object and a segment.
        merges: ``<id>_merges.csv``, the same pairs at the borders where objects were joined.
        shift: raw voxel of the segmentation's first one.
    """
    found = Overlaps()
    for path, places in ((splits, found.place), (merges, found.joint)):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                pair = int(row["truth_id"]), int(row["segment_id"])
                if pair[1] == 0:  # what is missing is seen as such
                    continue
                found.voxels[pair] = int(row["voxels"])
                z, y, x = (int(row[a]) + int(s) for a, s in zip("zyx", shift, strict=True))
                places[pair] = z, y, x
    return found


def _table(main: Mapping[int, int]) -> Table:
    """Keys, ascending, and their values; a last key that every other one comes before."""
    keys = np.array([*sorted(main), LAST], np.uint64)
    return keys, np.array([main.get(int(key), 0) for key in keys], np.uint64)


def _looked_up(table: Table, keys: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Values of keys, 0 of those that are not in the table: labels may change under a viewer."""
    wanted = keys.astype(np.uint64)
    place = np.searchsorted(table[0], wanted)
    return np.where(table[0][place] == wanted, table[1][place], 0)


def _pieces(roi: Roi) -> Iterator[Roi]:
    """A box in slabs of sections."""
    depth = max(1, PIECE // int(roi.shape[1] * roi.shape[2]))
    for first in range(0, int(roi.shape[0]), depth):
        size = min(depth, int(roi.shape[0]) - first), *roi.shape[1:]
        yield Roi(roi.offset + Coordinate(first, 0, 0), size)
