"""Truth and segmentation of an entry of a datalist, on the same voxels."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from funlib.geometry import Coordinate, Roi
from numpy.typing import NDArray

from custom.datalist import OpenEntry, entries_in, open_entry, place_entry
from custom.datalist_entry import DatalistEntry
from custom.errors import InputError
from custom.file_stamps import file_stamp
from custom.locations import Location
from custom.metrics import UNKNOWN
from custom.outputs.images import MARKER, SEGMENTATION, is_complete, is_result
from custom.planes import NORMAL_AXIS
from custom.targets.classes import ClassSettings
from custom.truth_identity import truth_identity
from custom.volumes import Volume, open_volume
from custom.zarr_metadata import read_node

logger = logging.getLogger(__name__)

ON_GRID = 1e-3
MADE_WITH = ("segmentation", "classes", "model_sha256")  # attributes
LARGEST_SIDE = 1024  # voxels of a section that is shown


def comparable(entries: Sequence[DatalistEntry]) -> Sequence[DatalistEntry]:
    """Entries with labels or skeletons, if there are any."""
    return [e for e in entries if e.truth is not None or e.skeletons is not None] or entries


@dataclass(frozen=True)
class Cut:
    """One section of all that is compared; the arrays have one voxel across it.

    Args:
        raw: (D, H, W) grey values.
        truth: (D, H, W) labels, 0 where there is no truth; class ids, ``UNKNOWN`` there.
        segmentation: (D, H, W) labels or class ids.
        written: the same voxels as a ROI of the arrays that inference wrote.
    """

    raw: NDArray[np.number]
    truth: NDArray[np.integer]
    segmentation: NDArray[np.integer]
    written: Roi


@dataclass(frozen=True)
class Comparison:
    """An entry and its segmentation, to be read box by box; boxes are in voxels of the latter.

    Args:
        opened: the entry.
        segmentation: what inference wrote.
        shift: raw voxel of the segmentation's first one.
        written: the voxels that are compared.
        attributes: of the segmentation.
        output_dir: folder that inference wrote to.
    """

    opened: OpenEntry
    segmentation: Volume
    shift: Coordinate
    written: Roi
    attributes: Mapping[str, Any]
    output_dir: Path

    @property
    def voxel_size_nm(self) -> tuple[float, float, float]:
        """Zyx."""
        return self.opened.voxel_size_nm

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes, the background's first; empty for objects."""
        return self.attributes["classes"]["names"] if "classes" in self.attributes else ()

    @property
    def per_section(self) -> bool:
        """Every section has segments of its own."""
        return self.attributes.get("dimensions") == 2

    def read_labels(self, box: Roi) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Labels of a box and where they count; of objects, background does not."""
        labels, known = self.opened.read_labels(box + self.shift)
        return labels, known if self.classes else known & (labels != 0)

    def read_segmentation(self, box: Roi) -> NDArray[np.uint64]:
        """Segments, or class ids, of a box."""
        return self.segmentation.read(box).astype(np.uint64)

    def classes_of(self, ids: NDArray[np.integer]) -> NDArray[np.int64]:
        """Class of every label id, which means what it meant in the training.

        Raises:
            InputError: an id is no class.
        """
        meant = self.attributes["classes"]
        settings = ClassSettings(
            len(self.classes), meant.get("ignore_label"), meant.get("class_of_labels", "ids")
        )
        return settings.table(ids, f"labels of entry '{self.opened.entry.id}'")

    def middle(self, plane: str) -> Cut:
        """The middle section of a plane, "xy", "xz" or "yz"; of a large one the middle."""
        whole = np.asarray(self.written.shape)
        shape = np.minimum(whole, LARGEST_SIDE)
        shape[NORMAL_AXIS[plane]] = 1
        return self.cut(Roi(self.written.offset + Coordinate((whole - shape + 1) // 2), shape))

    def cut(self, box: Roi) -> Cut:
        """All that is known of a box."""
        raw = self.opened.read_raw(box + self.shift)
        return Cut(raw, self._truth(box), self.segmentation.read(box), box)

    def provenance(self) -> dict[str, Any]:
        """Which output was compared with which truth, what made it and with which settings."""
        entry, path = self.opened.entry, self.segmentation.path
        output = self.output_dir / f"{entry.id}.zarr"
        truth = {} if entry.truth is None else {"truth": truth_identity(self.opened)}
        return {
            "path": path,
            "files": file_stamp(path),
            "inference": _attributes(output).get(MARKER),
            **made_with(output),
            **truth,
        }

    def identity(self) -> dict[str, Any]:
        """What the truth is, and which of its voxels are compared with which of the segmentation.

        Of values that JSON keeps.
        """
        opened, box = self.opened, self.written
        starts = self.shift, opened.labels_offset, opened.mask_offset
        return {
            "truth": truth_identity(opened),
            "starts": [list(start) for start in starts],
            "voxels": [list(box.offset), list(box.shape)],
        }

    def _truth(self, box: Roi) -> NDArray[np.integer]:
        labels, known = self.read_labels(box)
        if not self.classes:
            return np.where(known, labels, 0)
        ids, index = np.unique(labels, return_inverse=True)
        return np.where(known, self.classes_of(ids)[index.reshape(labels.shape)], UNKNOWN)


def compared(entry: DatalistEntry, output_dir: Path) -> Comparison:
    """An entry and its segmentation, on the voxels that both have.

    Raises:
        InputError: as ``segmentation_of``.
    """
    comparison = _comparison(open_entry(entry), output_dir)
    roi, whole = comparison.written + comparison.shift, comparison.opened.roi
    if roi != whole:
        logger.warning("%s: the segmentation covers %s of the ROI %s", entry.id, roi, whole)
    return comparison


def comparison_of(
    datalist: str | os.PathLike[str], section: str, entry_id: str, output_dir: Path
) -> Comparison:
    """As ``compared``, of an entry by its id, without looking for labels that are not 0."""
    (entry,) = (entry for entry in entries_in(Path(datalist), section) if entry.id == entry_id)
    return _comparison(place_entry(entry), output_dir)


def _comparison(opened: OpenEntry, output_dir: Path) -> Comparison:
    path = _path_of_segmentation(opened.entry, output_dir)
    segmentation, shift, roi = segmentation_of(opened, output_dir)
    return Comparison(
        opened,
        segmentation,
        shift,
        roi - shift,
        {**_attributes(path), **_attributes(path / "s0")},
        output_dir.absolute(),
    )


def made_with(output: Path) -> dict[str, Any]:
    """``MADE_WITH`` of an ``<id>.zarr``, as far as inference wrote it there."""
    segmentation = output / SEGMENTATION
    arrays = output / "affinities", output / "probabilities"
    known: dict[str, Any] = {}
    for place in (*arrays, output, segmentation, segmentation / "s0"):
        known |= _attributes(place)
    return {name: known[name] for name in MADE_WITH if name in known}


def segmentation_of(opened: OpenEntry, output_dir: Path) -> tuple[Volume, Coordinate, Roi]:
    """An entry's segmentation, as far as its metadata.

    Returns:
        the segmentation; the raw voxel of its first one; the voxels that it shares with the entry's
        ROI, in raw voxels.

    Raises:
        InputError: no labels or skeletons, no segmentation, an unfinished one, one that holds no
            integers, another voxel size or grid, no overlap.
    """
    entry = opened.entry
    path = _path_of_segmentation(entry, output_dir)
    _refuse_unfinished(path.parents[1], entry.id)
    segmentation = open_volume(str(path), field=f"segmentation of entry '{entry.id}'")
    if np.dtype(segmentation.metadata.dtype).kind not in "iu":
        raise InputError(
            f"the segmentation {path} holds {segmentation.metadata.dtype}, which may have rounded "
            "ids; write it with an integer type"
        )
    shift = _shift(entry, opened, segmentation)
    roi = opened.roi.intersect(Roi(shift, segmentation.metadata.shape))
    if roi.empty:
        raise InputError(
            f"the segmentation {path} covers none of the ROI of entry '{entry.id}'; "
            "run inference on this entry again"
        )
    return segmentation, shift, roi


def _path_of_segmentation(entry: DatalistEntry, output_dir: Path) -> Path:
    """Where the segmentation of an entry that has labels or skeletons lies; it must be there."""
    if entry.truth is None and entry.skeletons is None:
        raise InputError(
            f"entry '{entry.id}' has no labels to compare with; name them in the datalist's field "
            "'labels' or 'classes', or 'skeletons', or leave the entry out"
        )
    path = output_dir / f"{entry.id}.zarr" / SEGMENTATION
    if not path.exists():
        raise InputError(
            f"there is no segmentation of entry '{entry.id}' at {path}; run inference first"
        )
    return path


def _refuse_unfinished(output: Path, entry_id: str) -> None:
    """An output says of itself whether inference came to its end."""
    if is_result(output) and not is_complete(output):
        raise InputError(
            f"inference of entry '{entry_id}' has not finished writing {output}; give the command "
            "of the inference again, which goes on where it stopped"
        )


def _attributes(path: Path) -> Mapping[str, Any]:
    """Attributes of a Zarr group or array; none where there is neither."""
    node = read_node(Location(str(path.absolute())))
    return {} if node is None else node.attributes


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
