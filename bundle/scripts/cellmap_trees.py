"""Annotated crops of CellMap trees.

::

    <tree>/recon-1/em/<em>/s0, s1, ...                              raw, from fine to coarse
    <tree>/recon-1/labels/groundtruth/<crop>/<class>/s0, s1, ...    labels of one class
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from custom.datalist import open_entry
from custom.datalist_entry import DatalistEntry
from custom.errors import InputError
from custom.json_fields import hint
from custom.locations import Location
from custom.volumes import open_volume
from custom.voxel_grid import Triple
from custom.zarr_metadata import children, read_node
from scripts.splits import entry_id

EM = "recon-1/em"
CROPS = "recon-1/labels/groundtruth"
SAME_SIZE = 1e-3  # relative: what is rounded away when a voxel size is typed


def cellmap_entries(
    trees: Sequence[Path],
    label_classes: Sequence[str],
    size: Triple,
    em: str = "",
    raw_size: Triple | None = None,
) -> tuple[list[DatalistEntry], list[str]]:
    """Annotated crops of CellMap trees.

    Args:
        trees: folders with ``recon-1`` in them.
        label_classes: one class, whose instances are the labels; or several in order, which are
            merged (``classes`` of a datalist), null where a crop does not have one.
        size: voxel size of labels, zyx, in nm.
        em: name of raw; "" where there is only one.
        raw_size: voxel size of raw, which may be finer; None for that of labels.

    Returns:
        The entries, and for every crop with such a class that cannot be used a sentence why.

    Raises:
        InputError: no raw or no crop of this voxel size, or no such class.
    """
    entries, left_out = [], []
    crops = _annotated(trees, label_classes)
    found = dict.fromkeys(tree for tree, _ in crops)
    raws = {tree: _level(_em(tree, em), raw_size or size) for tree in found}
    for tree, crop in crops:
        name = entry_id(f"{tree.name.removesuffix('.zarr')}-{crop.name}")
        try:
            entry = _entry(name, raws[tree], crop, label_classes, size)
            open_entry(entry)
        except InputError as reason:
            left_out.append(str(reason))
        else:
            entries.append(entry)
    if not entries:
        named = "' or '".join(label_classes)
        raise InputError(f"no crop with '{named}' can be used: {'; '.join(left_out)}")
    return entries, left_out


def _entry(
    name: str, raw: Path, crop: Path, label_classes: Sequence[str], size: Triple
) -> DatalistEntry:
    """Entry of one crop."""
    levels = {c: _level(crop / c, size) for c in label_classes if c in children(crop)}
    for level in levels.values():
        _check_known(level)
    if len(label_classes) > 1:
        paths = {c: str(levels[c]) if c in levels else None for c in label_classes}
        return DatalistEntry(name, str(raw), classes=paths)
    (level,) = levels.values()
    _check_instances(level)
    return DatalistEntry(name, str(raw), str(level))


def _annotated(trees: Sequence[Path], label_classes: Sequence[str]) -> list[tuple[Path, Path]]:
    """Every tree and crop that has one of the classes."""
    crops = [(tree, crop, children(crop)) for tree in trees for crop in _crops(tree)]
    known = {name for *_, names in crops for name in names}
    for name in label_classes:
        if name not in known:
            raise InputError(f"no crop is annotated for '{name}'{hint(name, sorted(known))}")
    return [(tree, crop) for tree, crop, names in crops if set(names) & set(label_classes)]


def _crops(tree: Path) -> list[Path]:
    """Crops of a tree, in natural order."""
    folder = tree / CROPS
    found = [folder / name for name in children(folder)] if folder.is_dir() else []
    if not found:
        raise InputError(f"{tree} has no crops in {CROPS}; is it a CellMap tree?")
    return sorted(found, key=lambda crop: (len(crop.name), crop.name))


def _em(tree: Path, em: str) -> Path:
    """The raw volume of a tree."""
    folder = tree / EM
    names = children(folder) if folder.is_dir() else []
    if em in names or (len(names) == 1 and not em):
        return folder / (em or names[0])
    if em:
        raise InputError(f"{folder} has no '{em}'{hint(em, names)}")
    raise InputError(f"{folder} holds {', '.join(names) or 'nothing'}; choose one with --em")


def _level(group: Path, size: Triple) -> Path:
    """The array of a multiscale group whose voxels have this size."""
    sizes = {}
    for name in children(group):
        if (node := read_node(Location(str(group / name)))) is not None and node.array is not None:
            sizes[name] = open_volume(group / name, field="level").metadata.voxel_size_nm
    for name, found in sizes.items():
        if np.allclose(found, size, rtol=SAME_SIZE, atol=0):
            return group / name
    there = ", ".join(" x ".join(f"{s:g}" for s in found) for found in sizes.values())
    raise InputError(
        f"{group} has no level with voxels of {' x '.join(f'{s:g}' for s in size)} nm, "
        f"but {there or 'no levels at all'}; name one with --voxel_size_nm (of raw alone: "
        f"--raw_voxel_size_nm)"
    )


def _check_instances(level: Path) -> None:
    """Refuse what CellMap's own metadata say are no instances."""
    if _at(_annotation(level), "annotation_type", "type") == "semantic_segmentation":
        raise InputError(f"{level} has one id for all objects (semantic segmentation)")


def _check_known(level: Path) -> None:
    """Refuse what CellMap's own metadata say is only partly known."""
    if unknown := _at(_annotation(level), "complement_counts", "unknown"):
        raise InputError(
            f"{level} has {unknown} voxels of unknown class, for which a datalist has no word"
        )


def _annotation(level: Path) -> Any:
    """CellMap's own metadata of labels."""
    node = read_node(Location(str(level)))
    return _at(node.attributes if node else {}, "cellmap", "annotation")


def _at(value: Any, *keys: str) -> Any:
    """What lies under nested keys, None if something on the way is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
