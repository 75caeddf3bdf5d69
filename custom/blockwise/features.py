"""Features of a region of raw, block by block, into a store that prediction reads and then drops.

Every window of the backbone is computed by one block.
"""

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import daisy
import tensorstore
from funlib.geometry import Coordinate, Roi
from pydantic import Field

from custom.blockwise.equipment import Equipment
from custom.blockwise.lattice import Shape
from custom.blockwise.raw_source import Region
from custom.blockwise.tracked import ProcessBlock
from custom.blockwise.volume_task import VolumeTask
from custom.features.backbone import Backbone
from custom.features.cache_files import TOKEN_CHUNK, create_array, token_array, write_array
from custom.features.extraction import SLAB, PlaneExtraction, RawBox
from custom.features.lattice import AxisLattice, PlaneLattice
from custom.features.spec import FeatureSpec
from custom.planes import NORMAL_AXIS

SIDE = 256  # voxels that a block has at least along an axis, where the volume has as many
SIDE_OF_OVERLAPPING = 1024  # the same where windows overlap, so that few are computed twice


@dataclass(frozen=True)
class Extractor:
    """Extracts features of a region, a box at a time.

    Args:
        region: of an entry.
        backbone: the one that ``spec`` was made with.
        spec: of the features.
        windows_at_once: batch size of the forward pass; None for as many as fit into memory.
    """

    region: Region
    backbone: Backbone
    spec: FeatureSpec
    windows_at_once: int | None = None

    def write(self, plane: str, box: Roi, array: tensorstore.TensorStore, path: Path) -> None:
        """Write those patches of a plane that a box owns, slab by slab.

        Args:
            plane: "xy", "xz" or "yz".
            box: of the region, in its voxels.
            array: (C, slices, h, w), of the whole region.
            path: of the array.
        """
        whole = self.region.lattice(self.spec, plane)
        part = owned(whole, self.region.roi, box)
        if part is None:
            return
        starts = [
            own.start - all_.start for own, all_ in zip(part.patches, whole.patches, strict=True)
        ]
        rows, columns = (
            slice(start, start + len(own)) for start, own in zip(starts, part.patches, strict=True)
        )
        first = whole.normal.index(part.normal.start)
        for begin, values in self._extraction(plane, part).slabs():
            slices = slice(first + begin, first + begin + values.shape[1])
            write_array(array, path, (slice(None), slices, rows, columns), values.numpy())

    def _extraction(self, plane: str, part: PlaneLattice) -> PlaneExtraction:
        opened, roi = self.region.opened, self.region.roi
        shape, axes = opened.raw.metadata.shape, opened.raw_axes
        raw = RawBox(opened.source.read, shape, roi, self.region.window, axes)
        return PlaneExtraction(raw, self.backbone, self.spec, plane, self.windows_at_once, part)


def owned(whole: PlaneLattice, region: Roi, box: Roi) -> PlaneLattice | None:
    """The slices and cells (``AxisLattice.cell``) of a plane that begin in a box.

    What begins before the region counts as beginning with it, so every patch has one owner. Without
    overlap a cell needs no window that another one needs, too.

    Args:
        whole: lattice of the plane over the region.
        region: in voxels of raw.
        box: in voxels of the region.

    Returns:
        None where there are none.
    """
    normal = NORMAL_AXIS[whole.plane]
    inplane = [axis for axis in range(3) if axis != normal]
    slices = [s for s in whole.normal if _begins_in(s - region.offset[normal], normal, region, box)]
    patches = []
    for axis, lattice, wanted in zip(inplane, whole.axes, whole.patches, strict=True):
        cells = range(wanted.start // lattice.cell, -(-wanted.stop // lattice.cell))
        places = ((c, _place(lattice, c) - region.offset[axis]) for c in cells)
        own = [c for c, place in places if _begins_in(place, axis, region, box)]
        if not own:
            return None
        begin, end = own[0] * lattice.cell, (own[-1] + 1) * lattice.cell
        patches.append(range(max(begin, wanted.start), min(end, wanted.stop)))
    if not slices:
        return None
    step = whole.normal.step
    some = range(slices[0], slices[-1] + 1, step)
    return replace(whole, normal=some, patches=(patches[0], patches[1]))


def _place(lattice: AxisLattice, cell: int) -> int:
    """Voxel at which a cell begins, the nearest one."""
    return math.floor(lattice.corner + cell * lattice.cell * lattice.step + 0.5)


def _begins_in(place: int, axis: int, region: Roi, box: Roi) -> bool:
    """Whether a place along an axis of the region, moved into it, is in a box."""
    inside = min(max(place, 0), int(region.shape[axis]) - 1)
    return bool(box.begin[axis] <= inside < box.end[axis])


def feature_block(spec: FeatureSpec, shape: Sequence[int]) -> Shape:
    """Size of blocks: about whole cells along each axis, and whole slabs of slices.

    Memory does not depend on it: a block is extracted slab by slab.

    Args:
        spec: of the features.
        shape: (D, H, W) of the region.
    """
    side = SIDE_OF_OVERLAPPING if spec.overlap else SIDE
    sizes = []
    for length, scale in zip(shape, spec.pixels_per_voxel, strict=True):
        cell = (spec.window - spec.overlap) / scale
        voxels = max(1, round(side / cell)) * cell
        sizes.append(min(length, max(SLAB, round(voxels / SLAB) * SLAB)))
    return sizes[0], sizes[1], sizes[2]


class Features(VolumeTask):
    """Extracts the features of a region of raw into plane grids (C, slices, h, w).

    A block writes the patches that begin in it, which may reach beyond it (``owned``)::

        |-----------------------|   region
        |c       |c       |c        cells
        |bbbbbbbb|bbbbbbb|bbbbb|    blocks; each cell is written by the one in which it begins

    Args:
        spent: whether all that reads the store is done, so that it may be gone.
    """

    spent: bool = Field(default=False, exclude=True)

    @property
    def context_size(self) -> Coordinate:
        """Half a window, whose raw a cell may need on either side."""
        spec = self.feature_spec
        assert spec is not None
        return Coordinate(math.ceil(spec.window / scale) for scale in spec.pixels_per_voxel)

    def outputs_exist(self) -> bool:
        """Whether the store is there, or is not needed any more."""
        return self.spent or self.store.exists()

    def drop_artifacts(self) -> None:
        """Remove the store."""
        shutil.rmtree(self.store, ignore_errors=True)

    @contextmanager
    def process_block_func(self) -> Iterator[ProcessBlock]:
        """Extract the features of a block."""
        extractor = self.live or self._extractor()
        arrays = {plane: self._create(extractor, plane) for plane in extractor.spec.planes}

        def process(block: daisy.Block) -> None:
            for plane, array in arrays.items():
                extractor.write(plane, block.write_roi, array, self.store / token_array(plane))

        yield process

    def _create(self, extractor: Extractor, plane: str) -> tensorstore.TensorStore:
        """A plane's array; several workers may create it at a time."""
        spec = extractor.spec
        shape = (spec.channels, *extractor.region.lattice(spec, plane).shape)
        chunks = (spec.channels, *TOKEN_CHUNK)
        path = self.store / token_array(plane)
        return create_array(path, shape, spec.float_dtype, chunks, "none")

    def _extractor(self) -> Extractor:
        equipment = Equipment(self.config)
        region = self.region(equipment)
        backbone, spec = equipment.backbone()
        self.refuse_changed({"features": spec.to_json()})
        return Extractor(region, backbone, spec, equipment.windows_at_once)


class Forget(VolumeTask):
    """Removes the features once all is predicted; a single block."""

    aside: ClassVar[bool] = True

    def outputs_exist(self) -> bool:
        """Whether there are no features: a later run may have made some, and kept them."""
        return not self.store.exists()

    def drop_artifacts(self) -> None:
        """Nothing is written."""

    @contextmanager
    def process_block_func(self) -> Iterator[ProcessBlock]:
        """Remove the store, which is not at its place any more once a part of it is gone."""

        def process(block: daisy.Block) -> None:
            leaving = self.store.with_name(f".{self.store.name}.old")
            shutil.rmtree(leaving, ignore_errors=True)  # of a run that was killed meanwhile
            if self.store.exists():
                self.store.rename(leaving)
                shutil.rmtree(leaving, ignore_errors=True)

        yield process
