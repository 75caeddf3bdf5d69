"""What a truth is, so that it is noticed when that is no longer what it was."""

from typing import Any

from custom.datalist import OpenEntry
from custom.datalist_entry import DatalistEntry
from custom.file_stamps import file_stamp


def truth_identity(opened: OpenEntry) -> dict[str, Any]:
    """Which labels count where: changes when they or the mask are named otherwise or written again.

    Args:
        opened: with labels.

    Returns:
        Of values that JSON keeps.
    """
    entry = opened.entry
    return {"fields": _described(entry), "files": [file_stamp(path) for path in _sources(entry)]}


def _described(entry: DatalistEntry) -> dict[str, str]:
    """Those of an entry's fields that say which labels count where."""
    names = ("labels", "classes", "mask", "roi", "labels_voxel_size_nm", "beyond_labels")
    return {name: repr(getattr(entry, name)) for name in names}


def _sources(entry: DatalistEntry) -> list[str]:
    """Where an entry's labels and mask lie."""
    classes = [] if entry.classes is None else list(entry.classes.values())
    return [path for path in (entry.labels, *classes, entry.mask) if path is not None]
