"""What prediction reads of a volume, box by box; as ``CropDataset`` has it of crops."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from funlib.geometry import Roi
from numpy.typing import NDArray
from torch import Tensor

from custom.blockwise.lattice import slabs_of
from custom.features.cache import CachedVolume
from custom.features.spec import FeatureSpec
from custom.features.triplane import PlaneGrid, Triple, entries_for, placed_at
from custom.file_stamps import file_stamp
from custom.model_folder import file_digest
from custom.samples import Sample, add_grid, image_tensor

LOOK = 32  # sections that are looked at at once


class BlockSource(ABC):
    """A volume's raw and features; boxes are in voxels of the region that is predicted.

    Args:
        shape: (D, H, W) of the region.
        spec: of the features; None for raw alone.
    """

    def __init__(self, shape: tuple[int, int, int], spec: FeatureSpec | None) -> None:
        self.shape = shape
        self.spec = spec

    @abstractmethod
    def image(self, roi: Roi) -> Tensor:
        """Raw (1, D, H, W) float32 in [-1, 1] of a box."""

    @abstractmethod
    def placement(self, plane: str) -> tuple[Triple, Triple]:
        """Start and step of a plane's whole grid, voxels, zyx."""

    @abstractmethod
    def entries(self, plane: str, entries: Roi) -> Tensor:
        """Entries (C, d, h, w) of a plane's grid; beyond its border it repeats."""

    @abstractmethod
    def features(self, roi: Roi) -> Tensor:
        """Features (C, D, H, W) of a box, of the dense layout."""

    def inside(self, roi: Roi) -> NDArray[np.bool_] | None:
        """Where there is something to predict in a box, (D, H, W); None for everywhere."""
        return None

    def empty(self, roi: Roi) -> bool:
        """Whether there is nothing to predict in a box: raw has one value everywhere."""
        seen: set[float] = set()
        for slab in slabs_of(roi, LOOK):
            image = self.image(slab)
            seen |= {float(image.min()), float(image.max())}
            if len(seen) > 1:
                return False
        return True

    @property
    def dense(self) -> bool:
        """Whether there are ``features``."""
        return self.spec is not None and self.spec.layout == "dense"

    @property
    def planes(self) -> tuple[str, ...]:
        """Planes with grids."""
        return () if self.spec is None or self.dense else self.spec.planes

    def placed(self, plane: str) -> tuple[Triple, Triple]:
        """As ``placement``, rounded as a network is given that of a whole volume."""
        start, step = torch.tensor(self.placement(plane), dtype=torch.float32).tolist()
        return (start[0], start[1], start[2]), (step[0], step[1], step[2])

    def around(self, offset: Sequence[int], shape: Sequence[int]) -> Sample:
        """What a window is given beside raw and context, by the network's argument names.

        Bit for bit what it is given where the whole volume is in memory.

        Args:
            offset: corner of the window.
            shape: (D, H, W) of the window.
        """
        part: Sample = {}
        for plane in self.planes:
            start, step = self.placed(plane)
            first, count = entries_for(start, step, offset, shape)
            values = self.entries(plane, Roi(first, count))
            grid: PlaneGrid = placed_at(values, start, step, first, offset)
            add_grid(part, plane, grid)
        if self.dense:
            part["features"] = self.features(Roi(offset, shape))
        return part


class CachedSource(BlockSource):
    """A volume of the preprocessed cache.

    Args:
        volume: cached.
        use_tokens: read the features; False for raw-only networks.
    """

    def __init__(self, volume: CachedVolume, use_tokens: bool) -> None:
        super().__init__(volume.shape, volume.spec if use_tokens else None)
        self.volume = volume
        self._metadata = volume.path.with_name(f"{volume.path.stem}_metadata.json")

    def describe(self) -> dict[str, Any]:
        """What it is, plain values: a cached volume is written once, its metadata last."""
        return {**self.place(), "files": file_stamp(str(self._metadata))}

    def place(self) -> dict[str, Any]:
        """Which volume: the same on any machine, whatever its files are there."""
        return {"cache": str(self.volume.path), "metadata": file_digest(self._metadata)}

    def image(self, roi: Roi) -> Tensor:
        """As of ``BlockSource``."""
        return image_tensor(self.volume.read_raw(roi), self.volume.raw_window)

    def placement(self, plane: str) -> tuple[Triple, Triple]:
        """As of ``BlockSource``."""
        return self.volume.placement(plane)

    def entries(self, plane: str, entries: Roi) -> Tensor:
        """As of ``BlockSource``."""
        return self.volume.read_entries(plane, entries)

    def features(self, roi: Roi) -> Tensor:
        """As of ``BlockSource``."""
        return self.volume.read_features(roi)
