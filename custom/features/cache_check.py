"""Whether a cache is as preprocessing wrote it: every volume, every array, every chunk."""

import hashlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import tensorstore
from tqdm import tqdm

from custom.channels import channel_layout
from custom.errors import InputError
from custom.features.cache import RUN_PREPROCESSING, CachedVolume
from custom.features.cache_basis import basis_of
from custom.features.cache_files import (
    DENSE_ARRAY,
    Json,
    VolumeFiles,
    bytes_on_disk,
    file_at_fault,
    open_array,
    read_json,
    token_array,
    volumes_in,
)
from custom.features.spec import FeatureSpec

METADATA_KEYS = (
    "entry",
    "roi",
    "voxel_size_nm",
    "offset_nm",
    "features",
    "intensity_window",
    "raw_rule",
    "planes",
    "arrays",
)
VOXELS = {"raw": "uint8", "gt": "uint32", "mask": "bool"}

CHUNKS_AT_ONCE = 16  # a disk answers several reads sooner than one after the other

T = TypeVar("T")
OnChunk = Callable[[int], object]


@dataclass(frozen=True)
class CheckedCache:
    """What a check found.

    Args:
        defects: one line each; none for a sound cache.
        volumes: number of them, finished or not.
        bytes_read: size of all chunks on disk.
        seconds: that reading them took.
    """

    defects: tuple[str, ...]
    volumes: int
    bytes_read: int
    seconds: float


def check_cache(cache_dir: Path, show_progress: bool = True) -> CheckedCache:
    """Read every chunk of a cache and compare what is there with the metadata.

    Args:
        cache_dir: folder of the cache.
        show_progress: draw a progress bar.

    Raises:
        InputError: there is no cache, or the folder holds something else.
    """
    volumes = volumes_in(cache_dir)
    if not volumes:
        raise InputError(f"cache_dir '{cache_dir}' has no volumes: {RUN_PREPROCESSING}")
    chunks = sum(_count_chunks(files) for files in volumes)
    defects: list[str] = []
    started = time.perf_counter()
    with tqdm(total=chunks, unit="chunk", desc="check", disable=not show_progress) as bar:
        for files in volumes:
            defects += [f"{files.title}{what}" for what in _defects(files, bar.update)]
    seconds = time.perf_counter() - started
    defects += _unlike_the_first([files for files in volumes if files.finished])
    size = sum(bytes_on_disk(files.arrays) for files in volumes if files.finished)
    return CheckedCache(tuple(defects), len(volumes), size, seconds)


def _count_chunks(files: VolumeFiles) -> int:
    arrays = read_json(files.metadata).get("arrays", {})
    return sum(len(list(_chunks(a["shape"], a["chunks"]))) for a in arrays.values())


def _chunks(shape: list[int], chunk: list[int]) -> Iterator[tuple[slice, ...]]:
    """Box of every chunk."""
    axes = [range(0, size, step) for size, step in zip(shape, chunk, strict=True)]
    for corner in itertools.product(*axes):
        yield tuple(
            slice(begin, min(begin + step, size))
            for begin, step, size in zip(corner, chunk, shape, strict=True)
        )


def _defects(files: VolumeFiles, on_chunk: OnChunk) -> Iterator[str]:
    """What is wrong with one volume; each begins with what comes after its name."""
    if not files.finished:
        yield f": unfinished: {RUN_PREPROCESSING}"
        return
    metadata = read_json(files.metadata)
    lacking = [key for key in METADATA_KEYS if key not in metadata]
    if lacking:
        yield f": {files.metadata.name} has no {', '.join(lacking)}"
        return
    try:
        spec = CachedVolume(files.arrays).spec
    except InputError as mistake:
        yield f": {mistake}"
        return
    if spec.pca is not None:
        try:
            basis_of(spec, files.cache_dir)
        except InputError as mistake:
            yield f": {mistake}"
    for name, expected in _expected(metadata, spec).items():
        described = metadata["arrays"].get(name)
        if described is None:
            yield f", {name}: not in {files.metadata.name}"
        else:
            for what in _array_defects(files.arrays / name, described, expected, on_chunk):
                yield f", {name}{what}"


def _expected(metadata: Json, spec: FeatureSpec) -> dict[str, Json]:
    """Arrays that a volume must have, with all that is known of them without looking."""
    truth = (metadata["entry"].get(name) for name in ("labels", "classes"))
    labelled = any(t is not None for t in truth) or "gt" in metadata["arrays"]
    shape = metadata["roi"]["shape"]
    expected: dict[str, Json] = {
        name: {"shape": shape, "dtype": dtype}
        for name, dtype in VOXELS.items()
        if name == "raw" or labelled
    }
    if labelled:
        expected["gt_ids"] = {"dtype": "uint64"}
    targets = metadata.get("targets")
    if targets is not None:
        channels = _target_channels(targets)
        expected["target"] = {"shape": [channels, *shape], "dtype": "uint8"}
        expected["boundary_weights"] = {"shape": shape, "dtype": "float16"}
    if spec.layout == "dense":
        dense = {"shape": [spec.channels, *shape], "dtype": spec.dtype}
        return {**expected, DENSE_ARRAY: dense}
    for plane in spec.planes:
        expected[token_array(plane)] = {"dtype": spec.dtype, "channels": spec.channels}
    return expected


def _target_channels(targets: Json) -> int:
    """Channels of cached targets; earlier versions stored neither output_type nor dimensions."""
    offsets, sigma = targets["affinity_offsets"], targets["lsd_sigma_nm"]
    usual = "affinities_lsds" if sigma else "affinities"
    output_type, dimensions = targets.get("output_type", usual), targets.get("dimensions", 3)
    return channel_layout(output_type, offsets, sigma, dimensions=dimensions).num_outputs


def _array_defects(path: Path, described: Json, expected: Json, on_chunk: OnChunk) -> Iterator[str]:
    """What is wrong with one array."""
    try:
        array = open_array(path)
    except InputError as mistake:
        yield f": {mistake}"
        return
    found = {
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "chunks": list(array.chunk_layout.read_chunk.shape or ()),
        "channels": array.shape[0],
    }
    wrong = [*_unequal(found, described, "the metadata"), *_unequal(found, expected, "its volume")]
    damaged = [] if wrong else list(_damaged_chunks(array, path, described, on_chunk))
    yield from wrong + damaged
    if not wrong and not damaged:
        yield from _wrong_content(array, path, described)


def _unequal(found: Json, wanted: Json, source: str) -> list[str]:
    return [
        f": {key} {found[key]}, not {wanted[key]} as {source} has it"
        for key in found.keys() & wanted.keys()
        if found[key] != wanted[key]
    ]


def _damaged_chunks(
    array: tensorstore.TensorStore, path: Path, described: Json, on_chunk: OnChunk
) -> Iterator[str]:
    """File and reason of every chunk that cannot be read; checksums are verified on reading."""
    boxes = _chunks(described["shape"], described["chunks"])
    for read in _ahead((array[box].read() for box in boxes), CHUNKS_AT_ONCE):
        try:
            read.result()
        except ValueError as error:
            file, reason = file_at_fault(error, path)
            yield f", {file}: {reason}"
        on_chunk(1)


def _ahead(items: Iterator[T], at_once: int) -> Iterator[T]:
    """Items in order; while one is handed out, the next ``at_once - 1`` have been made."""
    made = deque(itertools.islice(items, at_once))
    while made:
        yield made.popleft()
        made.extend(itertools.islice(items, 1))


def _wrong_content(array: tensorstore.TensorStore, path: Path, described: Json) -> Iterator[str]:
    """Whole chunks that are not those that preprocessing wrote, or more than those."""
    size = bytes_on_disk(path)
    if size != described["bytes"]:
        yield f": {size} bytes on disk, not {described['bytes']} as the metadata has it"
    if "sha256" in described:
        values = array.read().result()
        if hashlib.sha256(values.tobytes()).hexdigest() != described["sha256"]:
            yield ": not the table that the metadata's sha256 belongs to"
    if described["dtype"] == "int8" and len(described.get("scales", [])) != array.shape[0]:
        yield ": the metadata does not have one scale per channel"


def _unlike_the_first(volumes: list[VolumeFiles]) -> Iterator[str]:
    """Volumes whose features are not comparable with the first one's."""
    specs = {}
    for files in volumes:
        try:
            specs[files] = CachedVolume(files.arrays).spec
        except (InputError, KeyError):  # reported as the volume's own defect
            continue
    for files, spec in specs.items():
        first = next(iter(specs))
        difference = spec.difference(specs[first])
        if difference:
            yield f"{files.title}: features unlike those of {first.name}: {', '.join(difference)}"
