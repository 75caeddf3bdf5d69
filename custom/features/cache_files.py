"""Where a cached volume lies, the arrays in it, and the marker of an unfinished one."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
from numpy.typing import DTypeLike, NDArray

from custom.errors import InputError
from custom.files import disk_fault, write_atomically
from custom.locations import Location

FORMAT = "emseg feature cache 2"
OLDER_FORMATS = ("emseg feature cache 1",)  # Zarr v2, without checksums
COMPRESSIONS = ("none", "lz4", "zstd")
TOKEN_CHUNK = (16, 4, 4)  # slices, patches, patches; of all channels
VOXEL_CHUNK = (64, 64, 64)
DENSE_ARRAY = "features"
DENSE_CHUNK = (16, 16, 16)  # voxels; of all channels
GRID_CHUNK = (4, 16, 16)  # slices, entries, entries; of all channels, while a volume is made
TARGET_ARRAYS = ("target", "boundary_weights")

Json = dict[str, Any]
Selection = tuple[slice | NDArray[np.int64], ...]  # per axis a span, or the entries that are wanted

_FILE_ERROR = re.compile(
    r'local file "([^"]*)":? (?:is )?(.*?)(?:; at byte \d+)?(?: \[\w+=.*)?$', re.DOTALL
)


@dataclass(frozen=True)
class VolumeFiles:
    """The files of one cached volume.

    ::

        volume_000003.zarr/             arrays
        volume_000003_progress.json     which slices are written; there until the volume is finished
        volume_000003_metadata.json     written last: a volume without it does not exist

    Args:
        cache_dir: folder of the cache.
        index: number of the volume: those of a datalist come in its order (training, validation,
            test), copies of training volumes after them.
    """

    cache_dir: Path
    index: int

    @property
    def name(self) -> str:
        """``volume_000003``."""
        return f"volume_{self.index:06d}"

    @property
    def arrays(self) -> Path:
        """Zarr group that holds the arrays."""
        return self.cache_dir / f"{self.name}.zarr"

    @property
    def metadata(self) -> Path:
        """What the volume is; its presence makes the volume exist."""
        return self.cache_dir / f"{self.name}_metadata.json"

    @property
    def progress(self) -> Path:
        """What was asked for and how much of it is written."""
        return self.cache_dir / f"{self.name}_progress.json"

    @property
    def title(self) -> str:
        """Name, entry and copy, for people: ``volume_000003 (cube, copy 1)``."""
        return f"{self.name} ({entry_name(entry_of(self))})"

    @property
    def finished(self) -> bool:
        """Whether the volume exists."""
        return self.metadata.is_file()

    @property
    def parts(self) -> list[Path]:
        """Parts of files whose writing was killed."""
        beside = self.cache_dir.glob(f".{self.name}_*.json.*")
        return sorted([*beside, *self.arrays.glob(".zarr.json.*")])

    @property
    def targets_aside(self) -> Path:
        """Where targets are written before they are put in place."""
        return self.arrays / ".targets"

    @property
    def target_leftovers(self) -> list[Path]:
        """Folders of targets that the metadata do not know: unfinished, replaced or removed."""
        known = read_json(self.metadata).get("targets") is not None
        names = () if known else TARGET_ARRAYS
        folders = [self.targets_aside, *(self.arrays / name for name in names)]
        return [folder for folder in folders if folder.exists()]

    def remove_arrays(self) -> None:
        """Remove what an unfinished volume has left."""
        with writing(self.arrays):
            if self.arrays.exists():
                shutil.rmtree(self.arrays)

    def remove_progress(self) -> None:
        """Remove the marker, and parts of files whose writing was killed."""
        with writing(self.progress):
            for part in self.parts:
                part.unlink(missing_ok=True)
            self.progress.unlink(missing_ok=True)

    def mark_unfinished(self, source: Mapping[str, Any]) -> None:
        """From now on the volume is known to be wanted, and its files to be ours."""
        write_json(self.progress, {"format": FORMAT, "request": dict(source), "written": {}})

    def remove(self) -> None:
        """Remove the volume; killed midway, it is an unfinished one."""
        if self.finished:
            self.mark_unfinished({"entry": read_json(self.metadata)["entry"]})
            with writing(self.metadata):
                self.metadata.unlink()
        self.remove_arrays()
        self.remove_progress()


def volumes_in(cache_dir: Path) -> list[VolumeFiles]:
    """All volumes of a cache, finished or not, in order.

    Raises:
        InputError: ``cache_dir`` is not a folder, or holds a ``volume_*`` that is not a cache's.
    """
    if cache_dir.exists() and not cache_dir.is_dir():
        raise InputError(f"cache_dir '{cache_dir}' is a file; choose another cache_dir")
    found = sorted(cache_dir.glob("volume_*"))
    return [VolumeFiles(cache_dir, index) for index in sorted({_index_of(p) for p in found})]


def _index_of(path: Path) -> int:
    """Index of the volume that a file of a cache belongs to; the file must be a cache's own."""
    digits = path.name[len("volume_") : len("volume_000000")]
    files = VolumeFiles(path.parent, int(digits) if digits.isdigit() else 0)
    ours = path in (files.arrays, files.metadata, files.progress)
    marks = [mark for mark in (files.metadata, files.progress) if mark.is_file()]
    formats = [read_json(mark).get("format") for mark in marks]
    for found in formats:
        refuse_older(found, path.parent)
    if ours and not marks:
        raise InputError(
            f"cache_dir '{path.parent}' holds '{path.name}', which preprocessing did not write or "
            f"whose {files.metadata.name} is lost; put that back, move '{path.name}' away, or "
            f"choose another cache_dir"
        )
    if not ours or any(found != FORMAT for found in formats):
        raise InputError(
            f"cache_dir '{path.parent}' holds '{path.name}', which preprocessing did not write; "
            f"choose another cache_dir"
        )
    return files.index


def refuse_older(found: object, cache_dir: Path) -> None:
    """Refuse a volume's format that only earlier versions wrote.

    Raises:
        InputError: it is one of ``OLDER_FORMATS``.
    """
    if found in OLDER_FORMATS:
        raise InputError(
            f"cache_dir '{cache_dir}' was written by an earlier version, without checksums: remove "
            f"it or choose another cache_dir, and run preprocessing again"
        )


def entry_of(files: VolumeFiles) -> Json:
    """Entry of the datalist that a volume of ``volumes_in`` is made from, finished or not."""
    found = read_json(files.metadata) or read_json(files.progress)["request"]
    entry: Json = found["entry"]
    return entry


def copy_of(entry: Mapping[str, Any]) -> int:
    """Number of a changed copy of an entry's volume, from 1 on; 0 for the volume as it is."""
    return int(entry.get("copy", 0))


def entry_name(entry: Mapping[str, Any]) -> str:
    """Id of an entry, and which copy of its volume; for people."""
    copy = copy_of(entry)
    return f"{entry['id']}, copy {copy}" if copy else str(entry["id"])


def read_json(path: Path) -> Json:
    """The JSON object in a file of the cache, empty if there is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a file of the cache, whole or not at all."""
    with writing(path):
        write_atomically(path, (json.dumps(values, indent=2) + "\n").encode())


def token_array(plane: str) -> str:
    """Name of a plane's array."""
    return f"tokens_{plane}"


def create_group(path: Path) -> None:
    """Empty Zarr v3 group."""
    write_json(path / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": {}})


def open_array(path: Path) -> tensorstore.TensorStore:
    """An array of a volume, for reading; a chunk that is missing is an error, not zeros.

    Raises:
        InputError: it cannot be opened.
    """
    spec = {**_array_spec(path), "fill_missing_data_reads": False}
    with _reading(path):
        return tensorstore.open(spec, read=True, write=False).result()


def read_array(array: tensorstore.TensorStore, path: Path, box: Selection = ()) -> NDArray[Any]:
    """A box of an array that ``open_array`` opened at ``path``; each axis is indexed for itself.

    Raises:
        InputError: one of its chunks is missing or not as it was written.
    """
    with _reading(path):
        values: NDArray[Any] = array.oindex[box].read().result()
    return values


def create_array(
    path: Path, shape: Sequence[int], dtype: DTypeLike, chunks: Sequence[int], compression: str
) -> tensorstore.TensorStore:
    """A Zarr v3 array for writing; one that is there already with the same metadata is kept.

    Every chunk ends in a checksum, and every chunk is stored, zeros too: so a chunk that is missing
    or damaged is noticed when it is read.

    Args:
        path: of the array.
        shape: of the array.
        dtype: of the array.
        chunks: at most this large.
        compression: one of ``COMPRESSIONS``.
    """
    chunk_shape = [min(c, s) for c, s in zip(chunks, shape, strict=True)]
    metadata = {
        "shape": list(shape),
        "data_type": np.dtype(dtype).name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk_shape}},
        "codecs": _codecs(compression),
        "fill_value": np.zeros((), dtype).item(),
    }
    spec = {**_array_spec(path), "metadata": metadata, "store_data_equal_to_fill_value": True}
    with writing(path):
        return tensorstore.open(spec, create=True, open=True).result()


def write_array(
    array: tensorstore.TensorStore, path: Path, box: tuple[slice, ...], values: NDArray[Any]
) -> None:
    """Write a box of an array that ``create_array`` made at ``path``."""
    with writing(path):
        array[box].write(values).result()


def _codecs(compression: str) -> list[Json]:
    """From values to the bytes of a chunk; the checksum is of what lies on the disk."""
    blosc = {"cname": compression, "clevel": 3, "shuffle": "shuffle"}
    return [
        {"name": "bytes", "configuration": {"endian": "little"}},
        *([] if compression == "none" else [{"name": "blosc", "configuration": blosc}]),
        {"name": "crc32c"},
    ]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one sentence why a file of the cache cannot be written, if the disk is the reason.

    Raises:
        InputError: the disk is full, or the folder may not be written.
    """
    try:
        yield
    except (OSError, ValueError) as error:  # TensorStore's errors are ValueErrors
        fault = disk_fault(error)
        if fault is None:
            raise
        raise InputError(
            f"cache file '{path}' {fault} or choose another cache_dir; what is written is kept, "
            f"the same command goes on from there"
        ) from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name the volume, the array and the file when an array at ``path`` cannot be read."""
    try:
        yield
    except ValueError as error:
        file, reason = file_at_fault(error, path)
        name = path.parent.name.removesuffix(".zarr")
        raise InputError(
            f"cached volume '{path.parent}': file '{file}' of array '{path.name}' is missing or "
            f"damaged ({reason}); remove {name}* from the cache and run preprocessing again"
        ) from error


def file_at_fault(error: ValueError, path: Path) -> tuple[str, str]:
    """What TensorStore could not read of an array.

    Args:
        error: that TensorStore raised; one that is about no file is raised again.
        path: of the array.

    Returns:
        The file's path inside the array's folder, such as "c/0/3/1", and the reason.
    """
    found = _FILE_ERROR.search(str(error))
    if found is None:
        raise error
    return os.path.relpath(found[1], path), found[2]


def described(path: Path) -> Json:
    """What the metadata say of an array, read from the disk."""
    array = open_array(path)
    return {
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "chunks": list(array.chunk_layout.read_chunk.shape or ()),
        "bytes": bytes_on_disk(path),
    }


def bytes_on_disk(path: Path) -> int:
    """Size of all files below a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def slabs(size: int, thickness: int, first: int = 0) -> Iterator[tuple[int, int]]:
    """Half-open spans of ``thickness`` that cover ``[first, size)``."""
    for begin in range(first, size, thickness):
        yield begin, min(begin + thickness, size)


def _array_spec(path: Path) -> Json:
    return {"driver": "zarr3", "kvstore": Location(str(path)).kvstore()}
