"""The feature cache as preprocessing sees it: a volume is written once, slab by slab."""

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorstore
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from custom.features.cache_files import (
    FORMAT,
    TOKEN_CHUNK,
    VOXEL_CHUNK,
    Json,
    Selection,
    VolumeFiles,
    create_array,
    create_group,
    described,
    read_array,
    read_json,
    slabs,
    token_array,
    write_array,
    write_json,
    writing,
)
from custom.features.quantisation import channel_scales, largest, quantise

VOXEL_COMPRESSION = "zstd"  # labels become a hundredth, raw somewhat less

Box = tuple[slice, ...]


class VolumeWriter:
    """Writes one volume of a cache, slab by slab, and takes up an interrupted one.

    Every array grows along one axis; after each slab a marker says how far it is, so that a run
    that was killed goes on where it stood. ``finish`` makes the volume exist.

    Features of dtype int8 are kept as float16 until a plane is complete, because only then are the
    channels' largest magnitudes known that their scales follow from.

    Args:
        files: where the volume lies.
        request: all that decides what is written, plain JSON values; work of an interrupted run
            counts only if it had the same request.
        compression: of the features, one of ``COMPRESSIONS``; part of what is requested.

    Raises:
        ValueError: the volume is finished.
        InputError: here and in all methods: the disk is full, or the folder may not be written.
    """

    def __init__(
        self, files: VolumeFiles, request: Mapping[str, Any], compression: str = "none"
    ) -> None:
        if files.finished:
            raise ValueError(f"{files.arrays} is finished")
        self.files = files
        self._compression = compression
        asked = {**request, "compression": compression}
        self._progress: Json = {"format": FORMAT, "request": asked, "written": {}, "details": {}}
        found = read_json(files.progress)
        self.resumed = all(found.get(key) == self._progress[key] for key in ("format", "request"))
        self.resumed = self.resumed and any(found["written"])
        if self.resumed:
            self._progress = found
        else:  # the marker first: if this is killed, the next run does not trust what is left
            write_json(files.progress, self._progress)
            files.remove_arrays()
        create_group(files.arrays)
        self._arrays: dict[str, tensorstore.TensorStore] = {}

    def create_tokens(self, plane: str, shape: Sequence[int], dtype: str) -> int:
        """Array (C, slices, h, w) of a plane; returns how many slices are there already."""
        name, chunks = token_array(plane), (shape[0], *TOKEN_CHUNK)
        done = self._create(name, shape, dtype, chunks, self._compression)
        if dtype != "int8" or done == shape[1]:
            return done
        return self._create(_staged(name), shape, "float16", chunks, "none")

    def create_voxels(self, name: str, shape: Sequence[int], dtype: DTypeLike) -> int:
        """Array (D, H, W) of voxels; returns how many sections are there already."""
        return self._create(name, shape, dtype, VOXEL_CHUNK, VOXEL_COMPRESSION)

    def _create(
        self,
        name: str,
        shape: Sequence[int],
        dtype: DTypeLike,
        chunks: Sequence[int],
        compression: str,
    ) -> int:
        self._arrays[name] = create_array(self._path(name), shape, dtype, chunks, compression)
        return int(self._progress["written"].get(name, 0))

    def write_table(self, name: str, values: NDArray[Any]) -> None:
        """A one-dimensional array, whole."""
        digest = hashlib.sha256(values.tobytes()).hexdigest()
        self._progress["details"][name] = {"sha256": digest}
        self._create(name, values.shape, values.dtype, values.shape, VOXEL_COMPRESSION)
        self._write(name, (slice(None),), values, len(values))

    def write_tokens(self, plane: str, begin: int, values: Tensor) -> None:
        """Features (C, slices, h, w), float, of the slices from ``begin`` on."""
        name, end = token_array(plane), begin + values.shape[1]
        into = _staged(name) if _staged(name) in self._arrays else name
        self._write(into, (slice(None), slice(begin, end)), values.numpy(), end)

    def complete_tokens(self, plane: str) -> None:
        """To be called when all slices of a plane are written: features become int8 where asked."""
        name, staged = token_array(plane), _staged(token_array(plane))
        if staged in self._arrays:
            self._quantise(name, staged)
            del self._arrays[staged]
        if self._path(staged).exists():
            with writing(self._path(staged)):
                shutil.rmtree(self._path(staged))

    def _quantise(self, name: str, staged: str) -> None:
        """Write an int8 array from its features as float16."""
        parts = [largest(self._features(staged, box)) for box, _ in self._boxes(name, 0)]
        scales = channel_scales(torch.stack(parts).amax(0))
        self._progress["details"][name] = {"scales": scales.tolist()}
        for box, done in self._boxes(name, int(self._progress["written"].get(name, 0))):
            steps = quantise(self._features(staged, box), scales)
            self._write(name, box, steps.numpy(), done)

    def _boxes(self, name: str, first: int) -> Iterator[tuple[Box, int]]:
        """Whole chunks of a plane from a slice on, and the slices that are done after each."""
        _, slices, rows, _ = self._arrays[name].shape
        for begin, end in slabs(slices, TOKEN_CHUNK[0], first):
            for top, bottom in slabs(rows, TOKEN_CHUNK[1]):
                box = (slice(None), slice(begin, end), slice(top, bottom))
                yield box, end if bottom == rows else begin

    def _features(self, staged: str, box: Selection) -> Tensor:
        return torch.from_numpy(read_array(self._arrays[staged], self._path(staged), box))

    def write_voxels(self, name: str, begin: int, values: NDArray[Any]) -> None:
        """Sections (sections, H, W) from ``begin`` on."""
        end = begin + len(values)
        self._write(name, (slice(begin, end),), values, end)

    def _write(self, name: str, place: Box, values: NDArray[Any], end: int) -> None:
        write_array(self._arrays[name], self._path(name), place, values)
        self._progress["written"][name] = end
        write_json(self.files.progress, self._progress)

    def finish(self, metadata: Mapping[str, Any]) -> None:
        """Write the metadata, with the arrays' shapes and sizes: from now on the volume exists."""
        details = self._progress["details"]
        arrays = {n: {**described(self._path(n)), **details.get(n, {})} for n in self._arrays}
        everything = {"format": FORMAT, **self._progress["request"], **metadata, "arrays": arrays}
        write_json(self.files.metadata, everything)
        self.files.remove_progress()

    def _path(self, name: str) -> Path:
        return self.files.arrays / name


def _staged(name: str) -> str:
    """Name of the array that holds features as float16 until they become int8."""
    return f"{name}_float16"
