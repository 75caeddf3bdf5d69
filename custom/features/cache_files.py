"""Where a cached volume lies, the arrays in it, and the marker of an unfinished one."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
from numpy.typing import DTypeLike

from custom.errors import InputError
from custom.files import write_atomically

FORMAT = "emseg feature cache 1"
TOKEN_CHUNK = (16, 4, 4)  # slices, patches, patches; of all channels
VOXEL_CHUNK = (64, 64, 64)

Json = dict[str, Any]


@dataclass(frozen=True)
class VolumeFiles:
    """The files of one cached volume.

    ::

        volume_000003.zarr/             arrays
        volume_000003_progress.json     which slices are written; there until the volume is finished
        volume_000003_metadata.json     written last: a volume without it does not exist

    Args:
        cache_dir: folder of the cache.
        index: place of the volume's entry in the datalist (training, validation, test).
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
    def finished(self) -> bool:
        """Whether the volume exists."""
        return self.metadata.is_file()

    def remove_arrays(self) -> None:
        """Remove what an unfinished volume has left."""
        if self.arrays.exists():
            shutil.rmtree(self.arrays)

    def remove_progress(self) -> None:
        """Remove the marker, and parts of files whose writing was killed."""
        for part in self.cache_dir.glob(f".{self.name}_*.json.*"):
            part.unlink(missing_ok=True)
        self.progress.unlink(missing_ok=True)


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
    if not ours or not marks or any(read_json(mark).get("format") != FORMAT for mark in marks):
        raise InputError(
            f"cache_dir '{path.parent}' holds '{path.name}', which preprocessing did not write; "
            f"choose another cache_dir"
        )
    return files.index


def read_json(path: Path) -> Json:
    """The JSON object in a file of the cache, empty if there is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a file of the cache, whole or not at all."""
    write_atomically(path, (json.dumps(values, indent=2) + "\n").encode())


def token_array(plane: str) -> str:
    """Name of a plane's array."""
    return f"tokens_{plane}"


def create_group(path: Path) -> None:
    """Empty Zarr v2 group."""
    write_json(path / ".zgroup", {"zarr_format": 2})


def open_array(path: Path) -> tensorstore.TensorStore:
    """An array of a finished volume, for reading."""
    return tensorstore.open(_array_spec(path), read=True, write=False).result()


def create_array(
    path: Path, shape: Sequence[int], dtype: DTypeLike, chunks: Sequence[int], compress: bool
) -> tensorstore.TensorStore:
    """A Zarr v2 array for writing; one that is there already with the same metadata is kept."""
    compressor = {"id": "blosc", "cname": "zstd", "clevel": 3, "shuffle": 1} if compress else None
    metadata = {
        "shape": list(shape),
        "chunks": [min(c, s) for c, s in zip(chunks, shape, strict=True)],
        "dtype": np.dtype(dtype).str,
        "compressor": compressor,
        "dimension_separator": "/",
        "fill_value": None,
    }
    spec = {**_array_spec(path), "metadata": metadata}
    return tensorstore.open(spec, create=True, open=True).result()


def bytes_on_disk(path: Path) -> int:
    """Size of all files below a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def slabs(size: int, thickness: int, first: int = 0) -> Iterator[tuple[int, int]]:
    """Half-open spans of ``thickness`` that cover ``[first, size)``."""
    for begin in range(first, size, thickness):
        yield begin, min(begin + thickness, size)


def _array_spec(path: Path) -> Json:
    return {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{path.absolute()}/"}}
