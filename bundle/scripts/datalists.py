"""Datalists of data whose order is known: CREMI files, pairs of image and labels, CellMap trees.

From inside ``bundle/``, one of::

    python -m scripts.datalists cremi A.hdf B.hdf C.hdf cremi.json --validation C
    python -m scripts.datalists pairs <folder> pairs.json --voxel_size_nm 40,8,8 --validation 0.2
    python -m scripts.datalists cellmap jrc_hela-2.zarr mito.json --label_class mito
        --voxel_size_nm 8 --validation "jrc_hela-2-crop1,jrc_hela-2-crop2?"
    python -m scripts.datalists cellmap jrc_hela-2.zarr three.json --label_class mito,er,nuc
        --voxel_size_nm 8 --validation 0.2
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import fire
import h5py
from fire.decorators import SetParseFn

from custom.datalist import SECTIONS, datalist_from, open_entry
from custom.datalist_entry import DatalistEntry
from custom.errors import InputError
from custom.files import write_atomically
from custom.json_fields import voxel_size
from custom.volumes import open_volume
from custom.voxel_grid import Triple
from scripts.cellmap_trees import cellmap_entries
from scripts.splits import Split, entry_id
from scripts.strict import strict

CREMI_RAW = "volumes/raw"
CREMI_LABELS = "volumes/labels/neuron_ids"


@strict
@SetParseFn(str)
def cremi(*paths: str, validation: str = "", test: str = "", seed: str = "0") -> None:
    """Datalist of CREMI files, volumes/raw and volumes/labels/neuron_ids in each.

    A file's name without its ending is its id. Files without labels can only be for test.

    Args:
        paths: the files, and last the datalist to write.
        validation: ids (with commas; * stands for anything), or a fraction of all.
        test: the same; what is in neither is for training.
        seed: decides which a fraction takes.
    """
    with _one_sentence():
        files, out = _inputs_and_output(paths)
        write_datalist(out, cremi_entries(files), Split(validation, test, seed))


@strict
@SetParseFn(str)
def pairs(
    folder: str,
    out: str,
    images: str = "images/*.tif",
    labels: str = "labels/*.tif",
    voxel_size_nm: str = "",
    raw_voxel_size_nm: str = "",
    validation: str = "",
    test: str = "",
    seed: str = "0",
) -> None:
    """Datalist of the pairs of image and labels in a folder.

    A pair is an image and labels whose paths have the same text where the patterns have their *;
    this text is the id. What lacks its other half is an error.

    Args:
        folder: where both patterns start.
        out: datalist to write.
        images: pattern with one *, such as "*_raw.tif".
        labels: pattern with one *, such as "*_cells.tif".
        voxel_size_nm: one number or z,y,x; needed where the files have none, wins where they do.
        raw_voxel_size_nm: the same for images that are finer than their labels.
        validation: ids (with commas; * stands for anything), or a fraction of all.
        test: the same; what is in neither is for training.
        seed: decides which a fraction takes.
    """
    with _one_sentence():
        size = _voxel_size(voxel_size_nm) if voxel_size_nm else None
        raw_size = size
        if raw_voxel_size_nm:
            raw_size = _voxel_size(raw_voxel_size_nm, "raw_voxel_size_nm")
        entries = pair_entries(_absolute(folder), images, labels, size, raw_size)
        write_datalist(_inputs_and_output((folder, out))[1], entries, Split(validation, test, seed))


@strict
@SetParseFn(str)
def cellmap(
    *paths: str,
    label_class: str,
    voxel_size_nm: str,
    raw_voxel_size_nm: str = "",
    em: str = "",
    validation: str = "",
    test: str = "",
    seed: str = "0",
) -> None:
    """Datalist of the annotated crops of CellMap trees.

    The levels of raw (recon-1/em/<em>) and of a crop's labels
    (recon-1/labels/groundtruth/<crop>/<class>) that have the voxel size go together, or a finer
    level of raw. The ids are <tree>-<crop>. Crops that cannot be used are printed with the reason.

    Args:
        paths: the trees, folders with recon-1 in them, and last the datalist to write.
        label_class: annotated class whose instances are the labels; or several, with commas: their
            voxels get the ids 1, 2, ... in this order, a later class over an earlier one, and where
            a crop lacks a class, voxels that no other one claims count as unknown.
        voxel_size_nm: one number or z,y,x.
        raw_voxel_size_nm: the same for raw, where a finer level of it is wanted.
        em: name of the raw volume where a tree has several.
        validation: ids (with commas; * stands for anything), or a fraction of all.
        test: the same; what is in neither is for training.
        seed: decides which a fraction takes.
    """
    with _one_sentence():
        trees, out = _inputs_and_output(paths)
        classes = _class_names(label_class)
        size = _voxel_size(voxel_size_nm)
        raw_size = (
            _voxel_size(raw_voxel_size_nm, "raw_voxel_size_nm") if raw_voxel_size_nm else None
        )
        entries, left_out = cellmap_entries(trees, classes, size, em, raw_size)
        write_datalist(out, entries, Split(validation, test, seed))
        for reason in left_out:
            print(f"left out: {reason}")


def write_datalist(out: Path, entries: Sequence[DatalistEntry], split: Split) -> None:
    """Check a datalist as the runs will, and write it whole or not at all.

    Args:
        out: the file; if it is there, then with this content.
        entries: with absolute paths.
        split: their sections.

    Raises:
        InputError: the split or an entry is refused, or ``out`` holds something else.
    """
    sections = split.sections([entry.id for entry in entries])
    of_section = {
        name: [_as_json(entry) for entry in entries if entry.id in ids]
        for name, ids in sections.items()
    }
    content = {"name": out.stem, **of_section}
    text = json.dumps(content, indent=2) + "\n"
    if out.exists() and not (out.is_file() and out.read_text() == text):
        raise InputError(f"{out} exists with other content; delete it or choose another name")
    datalist = datalist_from(content, out)
    for entry in (*datalist.training, *datalist.validation):
        if entry.truth is None:
            raise InputError(f"'{entry.id}' has no labels; name it in --test")
    for entry in datalist.entries():
        open_entry(entry)
    write_atomically(out, text.encode())
    print(f"{out} has:")
    for name in SECTIONS:
        ids = [entry.id for entry in datalist.section(name)]
        print(f"  {name}: {', '.join(ids) or 'nothing'}")


def cremi_entries(files: Sequence[Path]) -> list[DatalistEntry]:
    """One entry for every CREMI file; without labels if the file has none."""
    entries = []
    for file in files:
        raw = open_volume(file / CREMI_RAW)
        with h5py.File(file, "r") as found:
            labels = str(file / CREMI_LABELS) if CREMI_LABELS in found else None
        entries.append(DatalistEntry(entry_id(file.stem), raw.path, labels))
    return entries


def pair_entries(
    folder: Path, images: str, labels: str, size: Triple | None, raw_size: Triple | None
) -> list[DatalistEntry]:
    """One entry for every image and the labels that belong to it.

    Args:
        folder: where both patterns start.
        images: pattern with one ``*``.
        labels: the same.
        size: voxel size of the labels; None for that in the files.
        raw_size: the same for the images.

    Raises:
        InputError: none at all, or some lack their other half; a pattern without its one ``*``.
    """
    found = {pattern: _matches(folder, pattern) for pattern in (images, labels)}
    alone = [
        str(path.relative_to(folder))
        for one, other in ((images, labels), (labels, images))
        for key, path in found[one].items()
        if key not in found[other]
    ]
    if alone:
        raise InputError(
            f"these have no other half by '{images}' and '{labels}': {', '.join(alone)}; "
            "change the patterns, or move them elsewhere"
        )
    if not found[images]:
        raise InputError(f"{folder} holds nothing that '{images}' and '{labels}' match")
    return [
        DatalistEntry(
            entry_id(key),
            str(path),
            str(found[labels][key]),
            raw_voxel_size_nm=raw_size,
            labels_voxel_size_nm=size,
        )
        for key, path in found[images].items()
    ]


def _matches(folder: Path, pattern: str) -> dict[str, Path]:
    """Paths that match, by the text at the ``*``; hidden ones are left out."""
    pattern = os.path.normpath(pattern)
    strange = set(pattern) & set("?[]") or ".." in Path(pattern).parts
    if pattern.count("*") != 1 or strange or Path(pattern).is_absolute():
        raise InputError(f"the pattern '{pattern}' must be a path in the folder with exactly one *")
    before, after = pattern.split("*")
    found = {}
    for path in sorted(folder.glob(pattern)):
        name = path.relative_to(folder).as_posix()
        if not path.name.startswith("."):
            found[name[len(before) : len(name) - len(after)]] = path
    return found


def _class_names(text: str) -> list[str]:
    """Names with commas between them, each once."""
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise InputError(f"--label_class must be names with commas, each once, got '{text}'")
    return names


def _voxel_size(text: str, option: str = "voxel_size_nm") -> Triple:
    """One number for all axes, or z,y,x."""
    try:
        numbers = [float(part) for part in text.strip("()[] ").split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise InputError(f"--{option} must be one number or z,y,x, got '{text}'")
    return voxel_size(numbers, f"--{option}")


def _inputs_and_output(paths: Sequence[str]) -> tuple[list[Path], Path]:
    """All paths but the last, and the last, which is a datalist."""
    found = [_absolute(path) for path in paths]
    if len(found) < 2 or found[-1].suffix != ".json":
        raise InputError("give what to read, and last the datalist to write, which ends in .json")
    return found[:-1], found[-1]


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


def _as_json(entry: DatalistEntry) -> dict[str, object]:
    """An entry as it stands in the file."""
    found: dict[str, object] = {"id": entry.id, "raw": entry.raw}
    if entry.truth is not None:
        found["labels" if entry.classes is None else "classes"] = entry.truth
    sizes = {"raw": entry.raw_voxel_size_nm, "labels": entry.labels_voxel_size_nm}
    stated = {field: list(size) for field, size in sizes.items() if size is not None}
    return found | ({"voxel_size_nm": stated} if stated else {})


@contextmanager
def _one_sentence() -> Iterator[None]:
    """What the disk refuses ends in a sentence, too."""
    try:
        yield
    except OSError as error:
        raise SystemExit(f"a file cannot be read or written: {error}") from None


if __name__ == "__main__":
    fire.Fire({"cremi": cremi, "pairs": pairs, "cellmap": cellmap})
