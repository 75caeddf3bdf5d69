"""The datalist: which volumes belong to which split, checked; and its entries opened."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from funlib.geometry import Coordinate, Roi
from numpy.typing import NDArray

from custom.errors import InputError
from custom.json_fields import (
    check_keys,
    hint,
    interval,
    mapping,
    read_object,
    sequence,
    voxel_size,
    whole_numbers,
)
from custom.locations import Location, resolve
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

T = TypeVar("T")
SECTIONS = ("training", "validation", "test")
ENTRY_KEYS = (
    "id",
    "raw",
    "labels",
    "mask",
    "roi",
    "voxel_size_nm",
    "intensity_window",
    "classes",
)
SLAB_VOXELS = 2**24  # labels looked through at once


@dataclass(frozen=True)
class DatalistEntry:
    """One volume of a datalist.

    Args:
        id: unique in the datalist; names output files.
        raw: path or URL of the raw volume, as in ``volumes.open_volume``, here and below.
        labels: path of instance labels.
        mask: path of a mask, non-zero where labels count.
        roi: box in voxels of labels (of the working grid without labels); None is all of it.
        raw_voxel_size_nm: zyx; wins over the file's own.
        labels_voxel_size_nm: zyx, for labels and mask; wins over the file's own. Without labels it
            is the voxel size of the working grid.
        intensity_window: raw values that become 0 and 1.
        classes: free-form description of the classes that are annotated.
    """

    id: str
    raw: str
    labels: str | None = None
    mask: str | None = None
    roi: Roi | None = None
    raw_voxel_size_nm: Triple | None = None
    labels_voxel_size_nm: Triple | None = None
    intensity_window: tuple[float, float] | None = None
    classes: Mapping[str, Any] | None = None


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
            raise InputError(f"a datalist has no section '{name}'{hint(name, SECTIONS)}")
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
            annotated: (D, H, W), True where labels count: inside the label volume, and where the
                mask (if there is one) is not 0.

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
        if self.mask is not None:
            annotated &= _read_padded(self.mask, roi, self.mask_offset)[0] != 0
        return labels.astype(np.uint64), annotated

    def label_ids(self) -> NDArray[np.uint64]:
        """All ids in the ROI, ascending, 0 first: the place of an id is its consecutive id."""
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
            _parse_entry(entry, path.parent, f"{where}, {name}[{i}]")
            for i, entry in enumerate(sequence(found.get(name, []), f"{where}, {name}"))
        )
        for name in SECTIONS
    }
    datalist = Datalist(str(found.get("name", path.stem)), **sections)
    if not datalist.entries():
        raise InputError(f"{where} has no entries; add some under {', '.join(SECTIONS)}")
    _check_ids(datalist, where)
    _check_split(datalist, where)
    return datalist


def open_entry(entry: DatalistEntry) -> OpenEntry:
    """Open the volumes of an entry and check that they fit together.

    Raises:
        InputError: labels are not integers, do not overlap raw, are on another voxel grid, or are
            all 0 in the ROI; the ROI sticks out.
    """
    opened = _place(entry, f"entry '{entry.id}'")
    if opened.labels is not None and not any(
        opened.read_labels(slab)[0].any() for slab in _slabs(opened.roi)
    ):
        raise InputError(
            f"labels of entry '{entry.id}' ('{entry.labels}') are all 0 in the ROI {opened.roi}; "
            f"there is nothing to learn from or to score"
        )
    return opened


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
    labels, offset = _open_beside(raw, entry.labels, size, where, "labels")
    mask_size = entry.raw_voxel_size_nm if labels is None and size is None else size
    mask, mask_offset = _open_beside(raw, entry.mask, mask_size, where, "mask")
    if labels is None:
        roi = _inside(entry.roi or raw.metadata.roi, raw.metadata.roi, f"{where}, roi", "raw")
        return OpenEntry(entry, raw, None, mask, roi, mask_offset=mask_offset)
    extent = labels.metadata.roi
    if entry.roi is None:
        roi = (extent + Coordinate(offset)).intersect(raw.metadata.roi)
    else:
        roi = _inside(entry.roi, extent, f"{where}, roi", "labels") + Coordinate(offset)
        _inside(roi, raw.metadata.roi, f"{where}, roi moved to raw voxels", "raw")
    return OpenEntry(entry, raw, labels, mask, roi, offset, mask_offset)


def _open_raw(entry: DatalistEntry, where: str) -> Volume:
    """Raw on the working grid."""
    source = open_volume(entry.raw, entry.raw_voxel_size_nm, f"{where}, raw")
    size, start = entry.labels_voxel_size_nm, None
    whose = f"{where}, voxel_size_nm.labels"
    if entry.labels is not None:
        whose = f"{where}, labels '{entry.labels}'"
        labels = open_volume(entry.labels, size, f"{where}, labels").metadata
        size, start = labels.voxel_size_nm, start_in(labels, source.metadata)
    if size is None:
        return source
    return on_working_grid(source, size, start, whose)


def _open_beside(
    raw: Volume, path: str | None, size: Triple | None, where: str, field: str
) -> tuple[Volume | None, tuple[int, int, int]]:
    """Labels or mask, and their offset in voxels of raw."""
    if path is None:
        return None, (0, 0, 0)
    where = f"{where}, {field}"
    volume = open_volume(path, size, where)
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


def _slabs(roi: Roi) -> Iterator[Roi]:
    """The box in pieces of whole sections."""
    depth, height, width = roi.shape
    step = max(1, SLAB_VOXELS // (height * width))
    for z in range(0, depth, step):
        shape = (min(step, depth - z), height, width)
        yield Roi(roi.offset + Coordinate(z, 0, 0), shape)


def _parse_entry(value: object, folder: Path, where: str) -> DatalistEntry:
    """One entry, its paths made absolute."""
    entry = mapping(value, where)
    if isinstance(entry.get("id"), str):
        where = f"{where} ('{entry['id']}')"
    check_keys(entry, ENTRY_KEYS, where)
    if entry.get("raw") is None:
        raise InputError(f"{where} has no 'raw'; add the path of its raw volume")
    sizes = mapping(entry.get("voxel_size_nm", {}), f"{where}, voxel_size_nm")
    check_keys(sizes, ("raw", "labels"), f"{where}, voxel_size_nm")

    def optional(
        key: str, parse: Callable[[object, str], T], of: Mapping[str, Any] = entry
    ) -> T | None:
        return None if of.get(key) is None else parse(of[key], f"{where}, {key}")

    def path(value: object, where: str) -> str:
        return _path(value, folder, where)

    return DatalistEntry(
        id=_id(entry.get("id"), where),
        raw=path(entry["raw"], f"{where}, raw"),
        labels=optional("labels", path),
        mask=optional("mask", path),
        roi=optional("roi", _roi),
        raw_voxel_size_nm=optional("raw", voxel_size, sizes),
        labels_voxel_size_nm=optional("labels", voxel_size, sizes),
        intensity_window=optional("intensity_window", interval),
        classes=optional("classes", mapping),
    )


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


def _id(value: object, where: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", value):
        raise InputError(
            f"{where}, id must be letters, digits and . _ - (it names output files), got {value!r}"
        )
    return value


def _path(value: object, folder: Path, where: str) -> str:
    """A URL, or the absolute path of one that is relative to a folder."""
    if not isinstance(value, str) or not value:
        raise InputError(f"{where} must be a path or a URL, got {value!r}")
    return resolve(value, folder)


def _roi(value: object, where: str) -> Roi:
    """A box from its offset and shape."""
    found = mapping(value, where)
    check_keys(found, ("offset", "shape"), where)
    offset = whole_numbers(found.get("offset"), 3, 0, f"{where}.offset")
    shape = whole_numbers(found.get("shape"), 3, 1, f"{where}.shape")
    return Roi(offset, shape)
