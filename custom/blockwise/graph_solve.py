"""The segment of every fragment, from the graph of the whole volume."""

from collections.abc import Iterator
from contextlib import contextmanager

import daisy
import numpy as np
from funlib.geometry import Coordinate
from numpy.typing import NDArray
from volara.lut import LUT

from custom.blockwise.chain import ChainTask
from custom.blockwise.graph_database import read_graph
from custom.blockwise.tracked import ProcessBlock
from custom.segmentation.method import SegmentationMethod
from custom.segmentation.region_graph import RegionGraph, contracted
from custom.segmentation.settling import numbered, uncut


class Solve(ChainTask):
    """Writes the table from fragments to segments; one block, in memory.

    Args:
        lut: the table.
    """

    lut: LUT

    @property
    def write_size(self) -> Coordinate:
        """The volume."""
        return Coordinate(self.shape)

    def init(self) -> None:
        """Nothing to prepare."""

    def outputs_exist(self) -> bool:
        """Whether the table is there."""
        return bool(self.lut.exists())

    def drop_artifacts(self) -> None:
        """Remove the table."""
        self.lut.drop()  # type: ignore[no-untyped-call]  # of volara

    @contextmanager
    def process_block_func(self) -> Iterator[ProcessBlock]:
        """Solve the graph."""

        def process(block: daisy.Block) -> None:
            with self.connections() as connection:
                graph = read_graph(connection())
            self.lut.file.parent.mkdir(parents=True, exist_ok=True)
            segments = solved(self.made_method(), graph, self.block_of(graph.ids))
            self.lut.save(np.stack([graph.ids.astype(np.int64), segments]))

        yield process


def solved(
    method: SegmentationMethod, pieces: RegionGraph, blocks: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Segments of the pieces of fragments.

    Args:
        method: solves the graph of whole fragments.
        pieces: the graph of pieces, cut by the borders of blocks.
        blocks: (N,) the block of every piece.

    Returns:
        (N,) ids from 1 on without gaps; 0 is background.
    """
    groups = uncut(pieces, blocks)
    return numbered(method.solve(contracted(pieces, groups))[groups - 1])
