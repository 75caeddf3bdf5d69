"""What a truth is, so that it is noticed when that is no longer what it was."""

from typing import Any

from custom.datalist import OpenEntry
from custom.datalist_entry import DatalistEntry
from custom.file_stamps import file_stamp
from custom.volumes import open_volume


def truth_identity(opened: OpenEntry) -> dict[str, Any]:
    """Which labels count where: changes when they or the mask are renamed, moved or written.

    Args:
        opened: with labels.

    Returns:
        Of values that JSON keeps.
    """
    entry = opened.entry
    return {
        "fields": _described(entry),
        "files": [file_stamp(path) for path in _sources(entry)],
        "grids": [_grid(path, entry) for path in _sources(entry)],
    }


def _described(entry: DatalistEntry) -> dict[str, str]:
    """Those of an entry's fields that say which labels count where."""
    names = ("labels", "classes", "mask", "roi", "labels_voxel_size_nm", "beyond_labels")
    return {name: repr(getattr(entry, name)) for name in names}


def _sources(entry: DatalistEntry) -> list[str]:
    """Where an entry's labels and mask lie."""
    classes = [] if entry.classes is None else list(entry.classes.values())
    return [path for path in (entry.labels, *classes, entry.mask) if path is not None]


def _grid(path: str, entry: DatalistEntry) -> str:
    """Voxel size and position, which may stand outside of what the path names."""
    where = f"entry '{entry.id}', '{path}'"
    return repr(open_volume(path, entry.labels_voxel_size_nm, where).metadata)
