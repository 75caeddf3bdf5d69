"""What inference has written, and the raw and truth that it belongs to."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from custom.datalist import OpenEntry, parse_datalist, place_entry
from custom.datalist_entry import DatalistEntry
from custom.errors import InputError
from custom.json_fields import hint
from custom.locations import Location, resolve
from custom.outputs.images import SEGMENTATION, is_complete, is_result
from custom.zarr_metadata import find_array, read_node

AFFINITIES, LSDS, PROBABILITIES = "affinities", "lsds", "probabilities"
FRAGMENTS = ("fragments", "labels/fragments")


@dataclass(frozen=True)
class FinishedOutput:
    """One ``<id>.zarr`` of inference.

    Args:
        path: of the OME-Zarr.
        entry: of the datalist, placed; None where no datalist is known.
    """

    path: Path
    entry: OpenEntry | None = None

    @property
    def id(self) -> str:
        """Id of the entry that was segmented."""
        return self.path.name.removesuffix(".zarr")

    def has(self, name: str) -> bool:
        """Whether there is such an image."""
        return (self.path / name).is_dir()

    @property
    def fragments(self) -> str | None:
        """Name of the image of fragments, if there is one."""
        return next((name for name in FRAGMENTS if self.has(name)), None)

    def attributes(self, name: str) -> Mapping[str, Any]:
        """What inference wrote beside an image of its own: offsets, classes, dimensions."""
        where = f"output '{self.path / name}'"
        node = read_node(Location(str(self.path / name)))
        if node is None:
            raise InputError(f"{where} does not exist; run inference again")
        array, _ = find_array(node, where)
        return {**node.attributes, **array.attributes}

    @property
    def per_section(self) -> bool:
        """Whether every section has segments of its own."""
        return self.attributes(SEGMENTATION).get("dimensions") == 2

    @property
    def classes(self) -> Sequence[str]:
        """Names of classes, the background's first; empty for objects."""
        found = self.attributes(SEGMENTATION).get("classes")
        return found["names"] if found else ()


def find_outputs(
    given: Sequence[str],
    output_dir: str,
    datalist: str | None = None,
    raw: str | None = None,
    truth: str | None = None,
) -> list[FinishedOutput]:
    """The outputs that a user names.

    Args:
        given: paths of ``<id>.zarr``, folders of such, or ids; none is all of ``output_dir``.
        output_dir: where ids are looked for.
        datalist: where raw and truth are named; without it the one that the run's record names.
        raw: path or URL of the raw volume, wins over the datalist's.
        truth: path or URL of labels, wins over the datalist's.

    Raises:
        InputError: nothing there, not a finished output, an id that the datalist does not have, or
            a volume that cannot be opened.
    """
    paths = [path for one in given or [output_dir] for path in _paths(str(one), Path(output_dir))]
    unique = list(dict.fromkeys(paths))
    for path in unique:
        refuse_unfinished(path)
    return [FinishedOutput(path, _entry(path, datalist, raw, truth)) for path in unique]


def refuse_unfinished(path: Path) -> None:
    """An output must be one of inference, and whole.

    Raises:
        InputError: it is not.
    """
    if not is_result(path):
        raise InputError(
            f"'{path}' is not an output of inference; name an <id>.zarr in its output_dir, or the "
            f"folder"
        )
    if not is_complete(path):
        raise InputError(
            f"output '{path}' is not finished; run the same inference again, it goes on where it "
            f"was"
        )
    if not (path / SEGMENTATION).is_dir():
        raise InputError(f"output '{path}' has no {SEGMENTATION}; run inference again")


def _paths(given: str, output_dir: Path) -> list[Path]:
    """The outputs that one word names."""
    path = Path(given).expanduser().absolute()
    for candidate in (path, output_dir.absolute() / f"{given}.zarr"):
        if read_node(Location(str(candidate))) is not None:
            return [candidate]
    if path.is_dir():
        found = [p for p in sorted(path.glob("*.zarr")) if not p.name.startswith(".")]
        found = [p for p in found if is_result(p)]
        if not found:
            raise InputError(f"folder '{path}' holds no output of inference; run inference first")
        return found
    ids = sorted(p.name.removesuffix(".zarr") for p in output_dir.glob("*.zarr"))
    held = f"; '{output_dir}' holds {', '.join(ids) or 'none'}{hint(given, ids)}"
    raise InputError(f"there is no output '{given}', neither a path nor an id{held}")


def _entry(
    path: Path, datalist: str | None, raw: str | None, truth: str | None
) -> OpenEntry | None:
    """The datalist's entry of an output, with what was given instead."""
    id_ = path.name.removesuffix(".zarr")
    found = _named_entry(id_, datalist) if datalist else None
    if found is None and raw is None:
        found = recorded_entry(path)
    here = Path.cwd()
    if raw is not None:
        kept = DatalistEntry(id_, "") if found is None else replace(found, raw_voxel_size_nm=None)
        found = replace(kept, raw=resolve(raw, here), intensity_window=None)
    if truth is not None:
        bare = found or DatalistEntry(id_, str(path / SEGMENTATION))
        found = replace(bare, labels=resolve(truth, here), classes=None, roi=None, mask=None)
    return None if found is None else place_entry(found)


def _named_entry(id_: str, datalist: str) -> DatalistEntry:
    entries = parse_datalist(datalist).entries()
    for entry in entries:
        if entry.id == id_:
            return entry
    ids = [entry.id for entry in entries]
    raise InputError(f"datalist '{datalist}' has no entry '{id_}'{hint(id_, ids)}")


def recorded_entry(path: Path) -> DatalistEntry | None:
    """The entry of an output by the latest record of a run that segmented it, if there is one.

    A datalist that was moved or changed since is as good as none.
    """
    id_ = path.name.removesuffix(".zarr")
    for record in records_of(path.parent, "inference"):
        parts = [part for parts in record.get("split", {}).values() for part in parts]
        if id_ not in [part["id"] for part in parts]:
            continue
        for folder in (Path.cwd(), path.parent.parent, path.parent):
            found = folder / Path(str(record["values"].get("datalist"))).expanduser()
            if found.is_file():
                try:
                    return _named_entry(id_, str(found))
                except InputError:
                    return None
    return None


def records_of(folder: Path, run: str) -> list[dict[str, Any]]:
    """Records of a folder's runs of one kind, the latest first."""
    paths = sorted((folder / "runs").glob(f"{run}_*.json"), reverse=True)
    return [json.loads(path.read_text()) for path in paths]
