"""One entry of a datalist: what it names, and how it is read from JSON."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from funlib.geometry import Roi

from custom.errors import InputError
from custom.json_fields import check_keys, interval, mapping, voxel_size, whole_numbers
from custom.label_classes import Classes, class_ids, parse_classes
from custom.locations import resolve
from custom.voxel_grid import Triple

T = TypeVar("T")
ENTRY_KEYS = (
    "id",
    "raw",
    "labels",
    "mask",
    "roi",
    "voxel_size_nm",
    "intensity_window",
    "classes",
    "skeletons",
)


@dataclass(frozen=True)
class DatalistEntry:
    """One volume of a datalist.

    Args:
        id: unique in the datalist; names output files.
        raw: path or URL of the raw volume, as in ``volumes.open_volume``, here and below.
        labels: path of instance labels.
        classes: instead of ``labels``, classes in order and the paths of their labels, None for one
            that is not annotated: see ``label_classes.open_labels``.
        mask: path of a mask, non-zero where labels count.
        roi: box in voxels of labels (of the working grid without labels); None is all of it.
        raw_voxel_size_nm: zyx; wins over the file's own.
        labels_voxel_size_nm: zyx, for labels and mask; wins over the file's own. Without labels it
            is the voxel size of the working grid.
        intensity_window: raw values that become 0 and 1.
        beyond_labels: ``roi`` may stick out of the labels; no voxel is annotated there.
        skeletons: path of an SWC file, or of a folder with such files: see ``skeletons``.
    """

    id: str
    raw: str
    labels: str | None = None
    mask: str | None = None
    roi: Roi | None = None
    raw_voxel_size_nm: Triple | None = None
    labels_voxel_size_nm: Triple | None = None
    intensity_window: tuple[float, float] | None = None
    classes: Classes | None = None
    beyond_labels: bool = False
    skeletons: str | None = None

    @property
    def truth(self) -> str | Classes | None:
        """Labels or classes, whichever there are."""
        return self.classes if self.labels is None else self.labels

    @property
    def truth_field(self) -> str:
        """The datalist's field that ``truth`` comes from."""
        return "labels" if self.classes is None else "classes"

    @property
    def class_ids(self) -> dict[str, int | str] | None:
        """What the labels of every class are (``label_classes.class_ids``), None without."""
        return None if self.classes is None else class_ids(self.classes)


def parse_entry(value: object, folder: Path, where: str) -> DatalistEntry:
    """One entry of the JSON file.

    Args:
        value: what stands there.
        folder: that relative paths start at.
        where: names the entry in messages.

    Raises:
        InputError: anything that is not as the datalist's contract says.
    """
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

    if entry.get("labels") is not None and entry.get("classes") is not None:
        raise InputError(f"{where} has both 'labels' and 'classes'; keep one of them")
    roi, beyond_labels = optional("roi", _roi) or (None, False)
    return DatalistEntry(
        id=_id(entry.get("id"), where),
        raw=path(entry["raw"], f"{where}, raw"),
        labels=optional("labels", path),
        mask=optional("mask", path),
        roi=roi,
        raw_voxel_size_nm=optional("raw", voxel_size, sizes),
        labels_voxel_size_nm=optional("labels", voxel_size, sizes),
        intensity_window=optional("intensity_window", interval),
        classes=optional("classes", lambda value, name: parse_classes(value, path, name)),
        beyond_labels=beyond_labels,
        skeletons=optional("skeletons", path),
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


def _roi(value: object, where: str) -> tuple[Roi, bool]:
    """A box from its offset and shape, and whether it may stick out of the labels."""
    found = mapping(value, where)
    check_keys(found, ("offset", "shape", "beyond_labels"), where)
    beyond = found.get("beyond_labels", False)
    if not isinstance(beyond, bool):
        raise InputError(f"{where}.beyond_labels must be true or false, got {beyond!r}")
    offset = whole_numbers(found.get("offset"), 3, None if beyond else 0, f"{where}.offset")
    shape = whole_numbers(found.get("shape"), 3, 1, f"{where}.shape")
    return Roi(offset, shape), beyond
