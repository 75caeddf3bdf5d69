"""What prediction reads of an entry of a datalist: its raw, and features that a task has stored."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
import torch
from funlib.geometry import Roi
from numpy.typing import NDArray
from torch import Tensor

from custom.blockwise.lattice import slabs_of
from custom.blockwise.sources import LOOK, BlockSource
from custom.datalist import OpenEntry
from custom.features.cache_files import Selection, open_array, read_array, token_array
from custom.features.dense import TILE
from custom.features.intensity import IntensityWindow
from custom.features.lattice import PlaneLattice, plane_lattice
from custom.features.spec import FeatureSpec
from custom.features.stored_grids import read_entries, read_grid
from custom.features.triplane import PlaneGrid, Triple, average
from custom.file_stamps import file_stamp
from custom.samples import image_of
from custom.volumes import Volume


@dataclass(frozen=True)
class Region:
    """What is segmented of an entry.

    Args:
        opened: the entry.
        roi: the box, in voxels of raw.
        window: grey values that are mapped to the ends of the image's range.
    """

    opened: OpenEntry
    roi: Roi
    window: IntensityWindow

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W)."""
        depth, height, width = self.roi.shape
        return int(depth), int(height), int(width)

    def describe(self) -> dict[str, Any]:
        """What its raw is, plain values."""
        mask = self._mask
        stamp = {} if mask is None else {"mask files": file_stamp(mask.path)}
        return {**self.place(), "files": file_stamp(self.opened.source.path), **stamp}

    def place(self) -> dict[str, Any]:
        """Which raw, and what of it: the same on any machine, whatever its files are there."""
        mask, offset = self._mask, self.opened.mask_offset
        return {
            "raw": self.opened.source.path,
            "offset": [int(o) for o in self.roi.offset],
            "voxel_size_nm": list(self.opened.voxel_size_nm),
            "raw_axes": [[axis.ratio, axis.origin] for axis in self.opened.raw_axes],
            "intensity_window": list(self.window),
            "mask": mask and {"path": mask.path, "offset": [int(o) for o in offset]},
        }

    @property
    def _mask(self) -> Volume | None:
        """What says where to segment; None where nothing does."""
        return self.opened.mask if self.opened.labels is None else None

    def lattice(self, spec: FeatureSpec, plane: str) -> PlaneLattice:
        """Where the patches of a plane lie in the region."""
        raw = self.opened.raw.metadata.shape
        return plane_lattice(spec, raw, self.roi, plane, self.opened.raw_axes)


class RawSource(BlockSource):
    """A region of an entry.

    Args:
        region: of the entry.
        spec: of the features; None for raw alone.
        store: folder with the plane grids (C, slices, h, w) of the region, each named as in a
            cache; in the dense layout voxels get theirs when they are read.
    """

    def __init__(self, region: Region, spec: FeatureSpec | None, store: Path) -> None:
        super().__init__(region.shape, spec)
        self.region = region
        self.store = store
        planes = () if spec is None else spec.planes
        self._lattices = {plane: region.lattice(spec, plane) for plane in planes if spec}
        self._arrays: dict[str, tensorstore.TensorStore] = {}

    def image(self, roi: Roi) -> Tensor:
        """As of ``BlockSource``."""
        raw = self.region.opened.read_raw(roi + self.region.roi.offset)
        return image_of(raw, self.region.window)

    def empty(self, roi: Roi) -> bool:
        """As of ``BlockSource``; also where the entry's mask is 0 everywhere."""
        masks = (self.inside(slab) for slab in slabs_of(roi, LOOK))
        if all(mask is not None and not mask.any() for mask in masks):
            return True
        return super().empty(roi)

    def inside(self, roi: Roi) -> NDArray[np.bool_] | None:
        """As of ``BlockSource``: where the entry's mask is not 0."""
        return self.region.opened.read_mask(roi + self.region.roi.offset)

    @property
    def mask(self) -> tuple[str | None, tuple[int, int, int]]:
        """Path of the mask of where to segment, and its voxel at the region's first one."""
        opened, (z, y, x) = self.region.opened, self.region.roi.offset
        if opened.mask is None or opened.labels is not None:
            return None, (0, 0, 0)
        a, b, c = opened.mask_offset
        return opened.mask.path, (int(z) - a, int(y) - b, int(x) - c)

    def placement(self, plane: str) -> tuple[Triple, Triple]:
        """As of ``BlockSource``."""
        return self._lattices[plane].start, self._lattices[plane].step

    def entries(self, plane: str, entries: Roi) -> Tensor:
        """As of ``BlockSource``."""
        return read_entries(partial(self._read, plane), self._shape(plane), plane, entries)

    def features(self, roi: Roi) -> Tensor:
        """As of ``BlockSource``: the tiles of ``dense_features``, those that the box touches."""
        assert self.spec is not None
        dtype = getattr(torch, self.spec.float_dtype)
        result = torch.empty((self.spec.channels, *roi.shape), dtype=dtype)
        whole = Roi((0, 0, 0), self.shape)
        for tile in _tiles(roi):
            box = tile.intersect(whole)
            common = box.intersect(roi)
            values = average(
                {plane: self._grid(plane, box) for plane in self.spec.planes}, box.shape
            )
            into, taken = (common - start.begin for start in (roi, box))
            result[(slice(None), *into.to_slices())] = values[(slice(None), *taken.to_slices())]
        return result

    def _grid(self, plane: str, box: Roi) -> PlaneGrid:
        """What interpolation in a box needs."""
        placement = self.placement(plane)
        return read_grid(partial(self._read, plane), self._shape(plane), plane, placement, box)

    def _shape(self, plane: str) -> tuple[int, ...]:
        assert self.spec is not None
        return (self.spec.channels, *self._lattices[plane].shape)

    def _read(self, plane: str, box: Selection) -> Tensor:
        path = self.store / token_array(plane)
        if plane not in self._arrays:  # two threads may both open it; either handle will do
            self._arrays[plane] = open_array(path)
        return torch.from_numpy(read_array(self._arrays[plane], path, box))


def _tiles(roi: Roi) -> Iterator[Roi]:
    """Tiles of the volume that share voxels with a box."""
    spans = (
        range(int(b) // t * t, int(e), t) for b, e, t in zip(roi.begin, roi.end, TILE, strict=True)
    )
    for corner in product(*spans):
        yield Roi(corner, TILE)
