"""Fragments replaced by their segments, block by block."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import daisy
import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from volara.lut import LUT

from custom.blockwise.arrays import open_store
from custom.blockwise.chain import FRAGMENTS, ChainTask
from custom.blockwise.graph_database import found_at
from custom.blockwise.tracked import ProcessBlock
from custom.outputs import images
from custom.outputs.images import SEGMENTATION


class Relabel(ChainTask):
    """Writes ``labels/segmentation``.

    Args:
        lut: table from fragments to segments.
        attributes: of the segments, beside the settings of the method.
    """

    lut: LUT
    attributes: dict[str, Any] = Field(default_factory=dict)

    def init(self) -> None:
        """Create what blocks are written to."""
        settings = self.made_method().describe()
        self.create_labels(SEGMENTATION, {"segmentation": settings, **self.attributes})

    def outputs_exist(self) -> bool:
        """Whether the segments are there."""
        return self.array_path(SEGMENTATION).exists()

    def drop_artifacts(self) -> None:
        """Remove the segments."""
        images.remove(self.output, SEGMENTATION)

    @contextmanager
    def process_block_func(self) -> Iterator[ProcessBlock]:
        """Relabel a block."""
        fragments = open_store(self.array_path(FRAGMENTS))
        segments = open_store(self.array_path(SEGMENTATION))

        @cache  # when the first block comes: the table is written after this task is prepared
        def table() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
            rows = self.lut.load()
            assert rows is not None  # the task before this one wrote it
            order = np.argsort(rows[0])
            sources, targets = (np.append(0, row[order]).astype(np.uint64) for row in rows)
            return sources, targets

        def process(block: daisy.Block) -> None:
            box = tuple(block.write_roi.to_slices())
            ids, index = np.unique(fragments[box].read().result(), return_inverse=True)
            if ids.any():
                sources, targets = table()
                found = targets[found_at(sources, ids)]
                segments[box].write(found[index].reshape(block.write_roi.shape)).result()

        yield process
