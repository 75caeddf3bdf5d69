"""What the tasks from affinities to segments share: method, blocks, ids and arrays."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from funlib.geometry import Roi
from funlib.persistence.graphs.sql_graph_database import SQLGraphDataBase
from numpy.typing import NDArray
from pydantic import Field

from custom.blockwise.graph_database import Graph
from custom.blockwise.tracked import class_at, path_of
from custom.blockwise.volume_blocks import VolumeBlocks
from custom.outputs import images
from custom.outputs.settings import CHUNK, OutputSettings
from custom.segmentation.method import SegmentationMethod, Triple
from custom.volumes import declare_ome_zarr_array

FRAGMENTS, AFFINITIES = "fragments", "affinities"
SEAMS = "seams"


class ChainTask(VolumeBlocks):
    """A task of the chain from affinities to segments.

    Args:
        method: class and settings of the segmentation method (``described_method``).
        output: folder of the OME-Zarr, with ``affinities`` (K, D, H, W) uint8.
        graph: where the graph of the fragments lies.
        voxel_size_nm: voxel size, zyx, for what is written.
        offset_nm: position of the centre of voxel (0, 0, 0), zyx.
        written: ``OutputSettings`` as plain JSON.
    """

    method: dict[str, Any]
    output: Path
    graph: Graph
    voxel_size_nm: tuple[float, float, float]
    offset_nm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    written: dict[str, Any] = Field(default_factory=dict)

    def made_method(self) -> SegmentationMethod:
        """The method itself."""
        return method_described(self.method)

    def array_path(self, name: str) -> Path:
        """Place of an array of the output."""
        return self.output / name / "s0"

    @contextmanager
    def connections(self) -> Iterator[Callable[[], SQLGraphDataBase]]:
        """What gives the graph's database, opened once in every thread."""
        own, opened = threading.local(), list[SQLGraphDataBase]()

        def connection() -> SQLGraphDataBase:
            if not hasattr(own, "database"):
                own.database = self.graph.open("r+")
                opened.append(own.database)
            database: SQLGraphDataBase = own.database
            return database

        try:
            yield connection
        finally:
            for database in opened:
                self.graph.release(database)

    def first_id(self, roi: Roi) -> int:
        """The number below the ids of a block's fragments, which are unique in the volume.

        Args:
            roi: of the block.
        """
        counts = [-(-n // b) for n, b in zip(self.shape, self.block, strict=True)]
        place = [int(begin) // b for begin, b in zip(roi.begin, self.block, strict=True)]
        return int(np.ravel_multi_index(place, counts)) * int(np.prod(self.block))

    def block_of(self, ids: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The block of every fragment, in the order of ``first_id``."""
        return (ids.astype(np.int64) - 1) // int(np.prod(self.block))

    def has_begun(self) -> bool:
        """Whether a block is done."""
        marks = self.block_ds / "c"
        return marks.exists() and any(path.is_file() for path in marks.rglob("*"))

    def create_labels(self, name: str, attributes: Mapping[str, Any]) -> None:
        """An empty array (D, H, W) uint64 of the output, unless blocks of this run lie there.

        No two blocks share a file of it, for they may be written at a time: where blocks are not
        whole files of the output's usual ones, chunks are smaller.
        """
        if not self.has_begun():
            images.remove(self.output, name)
        settings = OutputSettings(**self.written)
        place = self.voxel_size_nm, self.offset_nm
        units = zip(self.block, self.shape, strict=True)
        if all(size % settings.unit == 0 or size >= length for size, length in units):
            images.create(
                self.output, name, self.shape, np.uint64, *place, settings, dict(attributes)
            )
        elif not self.array_path(name).exists():
            chunks = block_chunks(self.block, self.shape)
            attributes = {**attributes, "voxel_size_nm": list(self.voxel_size_nm)}
            declare_ome_zarr_array(
                self.output, name, self.shape, np.uint64, "zyx", *place, chunks, attributes,
                settings.version,
            )  # fmt: skip


def block_chunks(block: Triple, shape: Triple) -> Triple:
    """The largest chunks up to ``CHUNK`` voxels whose borders are among those of blocks.

    Args:
        block: (D, H, W) of a block.
        shape: (D, H, W) of the volume; a block that spans it needs no borders.
    """
    z, y, x = (
        CHUNK if size >= length else max(c for c in range(1, CHUNK + 1) if size % c == 0)
        for size, length in zip(block, shape, strict=True)
    )
    return z, y, x


def described_method(method: SegmentationMethod) -> dict[str, Any]:
    """A method as plain JSON."""
    return {"class": path_of(method), "settings": method.describe()}


def method_described(description: dict[str, Any]) -> SegmentationMethod:
    """The method that ``described_method`` described."""
    method: SegmentationMethod = class_at(description["class"])(**description["settings"])
    return method
