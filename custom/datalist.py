"""The datalist: which volumes belong to which split, checked; and its entries opened."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from funlib.geometry import Coordinate, Roi
from numpy.typing import NDArray

from custom.datalist_entry import DatalistEntry, parse_entry
from custom.errors import InputError
from custom.json_fields import (
    check_keys,
    hint,
    read_object,
    sequence,
)
from custom.label_classes import (
    Classes,
    is_partial,
    open_labels,
    refuse_other_classes,
)
from custom.locations import Location
from custom.volumes import Volume, open_volume
from custom.voxel_grid import Triple
from custom.working_grid import (
    ON_GRID,
    RawAxes,
    axes_of,
    common_voxels,
    on_working_grid,
    same_size,
    source_of,
    start_in,
)

SECTIONS = ("training", "validation", "test")
SLAB_VOXELS = 2**24  # labels looked through at once


@dataclass(frozen=True)
class Datalist:
    """A checked datalist.

    Args:
        name: name of the data set.
        training: entries to learn from.
        validation: entries to choose the model by; they do not overlap ``training``.
        test: entries to segment.
    """

    name: str
    training: tuple[DatalistEntry, ...] = ()
    validation: tuple[DatalistEntry, ...] = ()
    test: tuple[DatalistEntry, ...] = ()

    def section(self, name: str) -> tuple[DatalistEntry, ...]:
        """Entries of "training", "validation" or "test".

        Raises:
            InputError: there is no such section.
        """
        sections = {"training": self.training, "validation": self.validation, "test": self.test}
        if name not in sections:
            raise InputError(f"a datalist has no section '{name}'{hint(str(name), SECTIONS)}")
        return sections[name]

    def entries(self) -> tuple[DatalistEntry, ...]:
        """Entries of all sections."""
        return (*self.training, *self.validation, *self.test)


@dataclass(frozen=True)
class OpenEntry:
    """An entry's volumes, and where they lie in each other.

    ::

        raw     |--------------------------|      raw index 0 at its left end
        labels        |--------|                  label index 0 at raw index labels_offset
        roi              |---|                    in raw voxels

    All is counted on the working grid: that of labels, extended over raw. Where the file's raw is
    finer, ``raw`` is resampled onto it when it is read. Picklable; reads may come from any process.

    Args:
        entry: what was opened.
        raw: raw volume, on the working grid; "raw" below.
        labels: labels on the voxel grid of raw, or None.
        mask: mask on the voxel grid of raw, or None.
        roi: box in raw voxels.
        labels_offset: raw index = label index + labels_offset, zyx.
        mask_offset: raw index = mask index + mask_offset, zyx.
    """

    entry: DatalistEntry
    raw: Volume
    labels: Volume | None
    mask: Volume | None
    roi: Roi
    labels_offset: tuple[int, int, int] = (0, 0, 0)
    mask_offset: tuple[int, int, int] = (0, 0, 0)

    @property
    def voxel_size_nm(self) -> Triple:
        """Voxel size of the working grid, zyx."""
        return self.raw.metadata.voxel_size_nm

    @property
    def source(self) -> Volume:
        """Raw as the file has it."""
        return source_of(self.raw)

    @property
    def raw_axes(self) -> RawAxes:
        """Axes of ``source``, seen from the working grid."""
        return axes_of(self.raw)

    def offset_nm(self, roi: Roi) -> Triple:
        """Position of the centre of a box's first voxel, zyx; the box is in raw voxels."""
        origin, first = self.raw.metadata.offset_nm, roi.offset
        z, y, x = (o + f * v for o, f, v in zip(origin, first, self.voxel_size_nm, strict=True))
        return z, y, x

    def read_raw(self, roi: Roi) -> NDArray[Any]:
        """Raw voxels of a box inside the raw volume, (D, H, W) in the file's data type.

        Raises:
            InputError: they are not all finite.
        """
        values = self.raw.read(roi)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise InputError(
                f"raw of entry '{self.entry.id}' ('{self.entry.raw}') holds NaN or infinite values "
                f"in {roi}; replace them first"
            )
        return values

    def read_labels(self, roi: Roi) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Labels of a box, which may stick out of the label volume.

        Args:
            roi: box in raw voxels, zyx.

        Returns:
            labels: (D, H, W); 0 outside the label volume.
            annotated: (D, H, W), True where labels count: inside the label volume, where the mask
                (if there is one) is not 0, and, if a class is not annotated, where another one is.

        Raises:
            InputError: a label is negative.
            ValueError: the entry has no labels.
        """
        if self.labels is None:
            raise ValueError(f"entry '{self.entry.id}' has no labels")
        labels, annotated = _read_padded(self.labels, roi, self.labels_offset)
        if labels.dtype.kind == "i" and labels.min(initial=0) < 0:
            raise InputError(
                f"labels of entry '{self.entry.id}' hold the negative id {labels.min()}; "
                f"ids are 0 (background) or positive"
            )
        if is_partial(self.entry.classes):
            annotated &= labels != 0
        if self.mask is not None:
            annotated &= _read_padded(self.mask, roi, self.mask_offset)[0] != 0
        return labels.astype(np.uint64), annotated

    def read_mask(self, roi: Roi) -> NDArray[np.bool_] | None:
        """Where there is something to segment in a box, (D, H, W); None for everywhere.

        A mask beside labels says where these count, not where to segment.

        Args:
            roi: box in raw voxels, zyx.
        """
        if self.mask is None or self.labels is not None:
            return None
        mask: NDArray[np.bool_] = _read_padded(self.mask, roi, self.mask_offset)[0] != 0
        return mask

    def label_ids(self) -> NDArray[np.uint64]:
        """All ids in the ROI, ascending, 0 first: the place of an id is its consecutive id.

        Of several classes the ids of all, so that an id means the same in every entry.
        """
        if self.entry.classes is not None and len(self.entry.classes) > 1:
            return np.arange(len(self.entry.classes) + 1, dtype=np.uint64)
        found = [np.unique(self.read_labels(slab)[0]) for slab in _slabs(self.roi)]
        return np.unique(np.concatenate([np.zeros(1, np.uint64), *found]))


def parse_datalist(path: str | Path) -> Datalist:
    """Read and check a datalist.

    Every volume is opened as far as its metadata. Paths in it are relative to its folder, URLs
    are not.

    Args:
        path: JSON file: ``name``, and lists of entries ``training``, ``validation`` and ``test``.

    Raises:
        InputError: anything that is not as the datalist's contract says; names file and field.
    """
    path = Path(path).expanduser().absolute()
    return datalist_from(read_object(path, f"datalist '{path}'"), path)


def datalist_from(found: Mapping[str, Any], path: Path) -> Datalist:
    """Check a datalist before it is written; else as ``parse_datalist``.

    Args:
        found: content of the JSON file.
        path: absolute path that the file has or will have.
    """
    where = f"datalist '{path}'"
    check_keys(found, ("name", *SECTIONS), where)
    sections = {
        name: tuple(
            parse_entry(entry, path.parent, f"{where}, {name}[{i}]")
            for i, entry in enumerate(sequence(found.get(name, []), f"{where}, {name}"))
        )
        for name in SECTIONS
    }
    datalist = Datalist(str(found.get("name", path.stem)), **sections)
    if not datalist.entries():
        raise InputError(f"{where} has no entries; add some under {', '.join(SECTIONS)}")
    _check_ids(datalist, where)
    truths = {e.id: e.classes for e in datalist.entries() if e.truth is not None}
    refuse_other_classes(truths, where)
    _check_split(datalist, where)
    return datalist


def entries_in(path: str | Path, section: str) -> tuple[DatalistEntry, ...]:
    """Entries of a datalist's section, of which there must be some.

    Raises:
        InputError: as ``parse_datalist``, or there are none.
    """
    entries = parse_datalist(path).section(section)
    if not entries:
        raise InputError(
            f"datalist '{path}' has no entries in its section '{section}'; choose another section "
            f"or add entries to it"
        )
    return entries


def open_entry(entry: DatalistEntry) -> OpenEntry:
    """Open the volumes of an entry and check that they fit together.

    Raises:
        InputError: labels are not integers, do not overlap raw, are on another voxel grid, or are
            all 0 in the ROI, or wherever the mask lets them count; the ROI sticks out.
    """
    opened = place_entry(entry)
    if opened.labels is not None:
        _refuse_nothing_to_learn(opened, entry.labels or opened.labels.path)
    return opened


def _refuse_nothing_to_learn(opened: OpenEntry, labels: str) -> None:
    """Somewhere in the ROI an object must count; else a validation would find nothing at fault."""
    labelled = False
    for slab in _slabs(opened.roi):
        values, annotated = opened.read_labels(slab)
        if values[annotated].any():
            return
        labelled = labelled or bool(values.any())
    entry = opened.entry
    where = f"where mask '{entry.mask}' is not 0, " if labelled else ""
    raise InputError(
        f"labels of entry '{entry.id}' ('{labels}') are all 0 {where}in the ROI {opened.roi}; "
        f"there is nothing to learn from or to score"
    )


def place_entry(entry: DatalistEntry) -> OpenEntry:
    """As ``open_entry``, without looking into the labels."""
    return _place(entry, f"entry '{entry.id}'")


def overlap(one: OpenEntry, other: OpenEntry) -> Roi | None:
    """What the ROIs of two entries have in common, in voxels of the file's raw; None if nothing."""
    here, there = Location(one.raw.path).identity(), Location(other.raw.path).identity()
    if here != there:
        return None
    return common_voxels(one.raw_axes, one.roi, other.raw_axes, other.roi)


def _place(entry: DatalistEntry, where: str) -> OpenEntry:
    """Open the volumes of an entry as far as their metadata, and place them."""
    raw = _open_raw(entry, where)
    size = entry.labels_voxel_size_nm
    labels, offset = _open_beside(raw, entry.truth, size, where, entry.truth_field)
    mask_size = entry.raw_voxel_size_nm if labels is None and size is None else size
    mask, mask_offset = _open_beside(raw, entry.mask, mask_size, where, "mask")
    if labels is None:
        if entry.beyond_labels:
            raise InputError(f"{where}, roi says beyond_labels, but there are no labels; remove it")
        roi = _inside(entry.roi or raw.metadata.roi, raw.metadata.roi, f"{where}, roi", "raw")
        return OpenEntry(entry, raw, None, mask, roi, mask_offset=mask_offset)
    extent = labels.metadata.roi
    if entry.roi is None:
        roi = (extent + Coordinate(offset)).intersect(raw.metadata.roi)
    else:
        if not entry.beyond_labels:
            _inside(entry.roi, extent, f"{where}, roi", "labels")
        roi = entry.roi + Coordinate(offset)
        _inside(roi, raw.metadata.roi, f"{where}, roi moved to raw voxels", "raw")
    return OpenEntry(entry, raw, labels, mask, roi, offset, mask_offset)


def _open_raw(entry: DatalistEntry, where: str) -> Volume:
    """Raw on the working grid."""
    source = open_volume(entry.raw, entry.raw_voxel_size_nm, f"{where}, raw")
    size, start = entry.labels_voxel_size_nm, None
    whose = f"{where}, voxel_size_nm.labels"
    if entry.truth is not None:
        labels = open_labels(entry.truth, size, f"{where}, {entry.truth_field}")
        whose = f"{where}, {entry.truth_field} '{entry.labels or labels.path}'"
        size, start = labels.metadata.voxel_size_nm, start_in(labels.metadata, source.metadata)
    if size is None:
        return source
    return on_working_grid(source, size, start, whose)


def _open_beside(
    raw: Volume, source: str | Classes | None, size: Triple | None, where: str, field: str
) -> tuple[Volume | None, tuple[int, int, int]]:
    """Labels or mask, and their offset in voxels of raw."""
    if source is None:
        return None, (0, 0, 0)
    where = f"{where}, {field}"
    volume = open_labels(source, size, where)
    path = source if isinstance(source, str) else volume.path
    here, there = volume.metadata, raw.metadata
    if np.dtype(here.dtype).kind not in "biu":
        raise InputError(f"{where} '{path}' has type {here.dtype}; convert it to integers")
    if not same_size(here.voxel_size_nm, there.voxel_size_nm):
        raise InputError(
            f"{where} '{path}' has voxel size {here.voxel_size_nm} nm, raw and labels are used at "
            f"{there.voxel_size_nm} nm; they must be equal, resample it"
        )
    starts = zip(start_in(here, source_of(raw).metadata), axes_of(raw), strict=True)
    position = np.array([(start - axis.edge(0)) / axis.ratio for start, axis in starts])
    offset = np.round(position)
    if np.abs(position - offset).max() > ON_GRID:
        raise InputError(
            f"{where} '{path}' starts at voxel {position.round(3).tolist()} of raw, which is not a "
            f"whole number; correct its offset or resample it"
        )
    z, y, x = (int(o) for o in offset)
    if not (here.roi + Coordinate(z, y, x)).intersects(there.roi):
        raise InputError(
            f"{where} '{path}' does not overlap raw: it starts at voxel {(z, y, x)} of raw with "
            f"shape {here.shape}, raw has shape {there.shape}; check the offsets"
        )
    return volume, (z, y, x)


def _inside(roi: Roi, extent: Roi, where: str, what: str) -> Roi:
    """The ROI, which must lie inside a volume."""
    if not extent.contains(roi):
        raise InputError(
            f"{where} has offset {list(roi.offset)} and shape {list(roi.shape)} and sticks out of "
            f"{what}, whose shape is {list(extent.shape)}"
        )
    return roi


def _read_padded(
    volume: Volume, roi: Roi, offset: Sequence[int]
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Box of a volume placed at ``offset``, and where the volume is; 0 outside."""
    values = np.zeros(tuple(roi.shape), dtype=volume.metadata.dtype)
    inside = np.zeros(values.shape, dtype=np.bool_)
    part = roi.intersect(volume.metadata.roi + Coordinate(offset))
    if not part.empty:
        here = (part - roi.offset).to_slices()
        values[here] = volume.read(part - Coordinate(offset))
        inside[here] = True
    return values, inside


def _slabs(roi: Roi) -> list[Roi]:
    """The box in pieces of at most ``SLAB_VOXELS``: sections, or parts of one where it is larger.

    A few of the first are spread over all of the box, so that a search which may end early does.
    """
    _, height, width = roi.shape
    rows = max(1, SLAB_VOXELS // width)
    size = (max(1, rows // height), min(rows, height), min(SLAB_VOXELS, width))
    corners = list(product(*(range(0, n, step) for n, step in zip(roi.shape, size, strict=True))))
    order = sorted(range(len(corners)), key=lambda number: f"{number:064b}"[::-1])
    pieces = (Roi(roi.offset + Coordinate(corners[number]), size) for number in order)
    return [piece.intersect(roi) for piece in pieces]


def _check_ids(datalist: Datalist, where: str) -> None:
    ids = [entry.id for entry in datalist.entries()]
    for id_ in ids:
        if ids.count(id_) > 1:
            raise InputError(f"{where} has the id '{id_}' more than once; ids name output files")


def _check_split(datalist: Datalist, where: str) -> None:
    """Open all entries as far as their metadata; training and validation must not overlap."""
    placed = {e.id: _place(e, f"{where}, entry '{e.id}'") for e in datalist.entries()}
    for one, other in product(datalist.training, datalist.validation):
        common = overlap(placed[one.id], placed[other.id])
        if common is not None:
            raise InputError(
                f"{where}: the roi of training entry '{one.id}' overlaps that of validation entry "
                f"'{other.id}' in {common} (raw voxels); move one of them"
            )
