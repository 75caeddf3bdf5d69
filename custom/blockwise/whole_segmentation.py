"""Segments of a volume whose affinities fit into memory; a single block."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import daisy
import numpy as np
from funlib.geometry import Coordinate

from custom.blockwise.arrays import open_store, write_box
from custom.blockwise.equipment import Equipment
from custom.blockwise.tracked import ProcessBlock
from custom.blockwise.volume_task import VolumeTask
from custom.outputs import images
from custom.outputs.images import SEGMENTATION
from custom.outputs.settings import OutputSettings
from custom.voxel_grid import Triple


class SegmentWhole(VolumeTask):
    """Reads all affinities and writes ``labels/segmentation``.

    Args:
        output: folder of the OME-Zarr.
        voxel_size_nm: zyx.
        offset_nm: position of the centre of voxel (0, 0, 0), zyx.
        written: how arrays are written: the fields of ``OutputSettings``.
        method: settings of the segmenter.
        dimensions: written beside the segments: 2 where every section has its own.
    """

    output: Path
    voxel_size_nm: Triple
    offset_nm: Triple
    written: dict[str, Any]
    method: dict[str, Any]
    dimensions: int

    @property
    def context_size(self) -> Coordinate:
        """None."""
        return Coordinate(0, 0, 0)

    def init(self) -> None:
        """Create the array."""
        images.create(
            self.output,
            SEGMENTATION,
            self.shape,
            np.uint64,
            self.voxel_size_nm,
            self.offset_nm,
            OutputSettings(**self.written),
            {"segmentation": self.method, "dimensions": self.dimensions},
        )

    def outputs_exist(self) -> bool:
        """Whether the array is there."""
        return (self.output / SEGMENTATION / "s0").exists()

    def drop_artifacts(self) -> None:
        """Remove the array."""
        images.remove(self.output, SEGMENTATION)

    @contextmanager
    def process_block_func(self) -> Iterator[ProcessBlock]:
        """Segment the volume."""

        def process(block: daisy.Block) -> None:
            segmenter = self.live or Equipment(self.config).segmenter().with_settings(**self.method)
            affinities = open_store(self.output / "affinities" / "s0").read().result()
            store = open_store(self.output / SEGMENTATION / "s0")
            write_box({"segments": store}, self.write_roi, {"segments": segmenter(affinities)})

        yield process
