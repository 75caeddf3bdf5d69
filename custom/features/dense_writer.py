"""The feature cache in the dense layout as preprocessing sees it."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from funlib.geometry.roi import Roi
from torch import Tensor
from tqdm import tqdm

from custom.features.cache_files import (
    DENSE_ARRAY,
    DENSE_CHUNK,
    GRID_CHUNK,
    VolumeFiles,
    write_json,
    writing,
)
from custom.features.cache_writer import VolumeWriter
from custom.features.dense import tiles
from custom.features.quantisation import channel_scales, largest, quantise
from custom.features.spec import FeatureSpec
from custom.features.stored_grids import read_grid
from custom.features.triplane import Triple, average

Placements = Mapping[str, tuple[Triple, Triple]]


class DenseVolumeWriter(VolumeWriter):
    """Writes one volume of a cache whose features are one vector per voxel.

    The planes' grids are kept beside it, as float, until all of them are complete. ``combine`` then
    makes the voxels' features, box by box, and removes the grids. Killed at any moment, the next
    run goes on.

    Args:
        files: where the volume lies.
        request: as of ``VolumeWriter``, with "features" and "roi".
        compression: of the features, not of the grids.

    Raises:
        ValueError: as ``VolumeWriter``.
        InputError: as ``VolumeWriter``.
    """

    def __init__(
        self, files: VolumeFiles, request: Mapping[str, Any], compression: str = "none"
    ) -> None:
        super().__init__(files, request, compression)
        self._spec = FeatureSpec.from_json(request["features"])
        self._box = tuple(int(size) for size in request["roi"]["shape"])

    def create_tokens(self, plane: str, shape: Sequence[int], dtype: str) -> int:
        """Grid (C, slices, h, w) of a plane; returns how many slices are there already."""
        if self._progress["written"].get(DENSE_ARRAY) == self._box[0]:
            return shape[1]
        kept, chunks = "float16" if dtype == "int8" else dtype, (shape[0], *GRID_CHUNK)
        return self._create(_grid(plane), shape, kept, chunks, "none")

    def write_tokens(self, plane: str, begin: int, values: Tensor) -> None:
        """Features (C, slices, h, w), float, of the slices from ``begin`` on."""
        end = begin + values.shape[1]
        self._write(_grid(plane), (slice(None), slice(begin, end)), values.numpy(), end)

    def complete_tokens(self, plane: str) -> None:
        """Nothing yet: a voxel needs all planes."""

    def combine(self, placements: Placements, show_progress: bool = False) -> None:
        """Make the voxels' features, when all planes are complete.

        Args:
            placements: start and step of every plane's grid, voxels, zyx.
            show_progress: draw a progress bar.
        """
        shape = (self._spec.channels, *self._box)
        chunks = (self._spec.channels, *DENSE_CHUNK)
        done = self._create(DENSE_ARRAY, shape, self._spec.dtype, chunks, self._compression)
        store = self._in_stored_form(placements)
        boxes = list(tiles(self._box, done))
        for box, end in tqdm(boxes, "voxels", unit="box", disable=not show_progress):
            values = store(self._average(placements, box))
            self._write(DENSE_ARRAY, (slice(None), *box.to_slices()), values.numpy(), end)
        for plane in placements:
            self._remove_grid(plane)

    def _in_stored_form(self, placements: Placements) -> Callable[[Tensor], Tensor]:
        """How features are changed before they are written: to the stored type."""
        if self._spec.dtype != "int8":
            return partial(Tensor.to, dtype=getattr(torch, self._spec.dtype))
        details = self._progress["details"]
        if DENSE_ARRAY not in details:  # a first pass, for the channels' largest magnitudes
            parts = [largest(self._average(placements, box)) for box, _ in tiles(self._box)]
            scales = channel_scales(torch.stack(parts).amax(0))
            details[DENSE_ARRAY] = {"scales": scales.tolist()}
            write_json(self.files.progress, self._progress)
        return partial(quantise, scales=torch.tensor(details[DENSE_ARRAY]["scales"]))

    def _average(self, placements: Placements, box: Roi) -> Tensor:
        """Features (C, D, H, W) float32 of a box."""
        grids = {
            plane: read_grid(
                partial(self._features, _grid(plane)),
                self._arrays[_grid(plane)].shape,
                plane,
                placement,
                box,
            )
            for plane, placement in placements.items()
        }
        return average(grids, box.shape)

    def _remove_grid(self, plane: str) -> None:
        path: Path = self._path(_grid(plane))
        self._arrays.pop(_grid(plane), None)
        if path.exists():
            with writing(path):
                shutil.rmtree(path)


def _grid(plane: str) -> str:
    """Name of the array that holds a plane's grid until the voxels' features are made of it."""
    return f"grid_{plane}"
