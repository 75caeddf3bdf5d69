"""Counting which objects and segments share voxels, block by block."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import daisy
import numpy as np
from funlib.geometry import Coordinate, Roi

from custom.blockwise.tracked import ProcessBlock, Tracked
from custom.comparison import Comparison, comparison_of
from custom.contingency import COLUMNS, Table, Tally, added, table_of
from custom.files import write_atomically

ARRAYS = ("keys", "counts", "positions", "extents")


class CountOverlaps(Tracked):
    """Writes ``<state_dir>/<name>/tables/<block>.npz``, the ``Table`` of every block with truth.

    Positions are voxels of the segmentation.

    Args:
        datalist: path of the datalist.
        section: of it.
        entry_id: of the entry, which has labels.
        output_dir: folder that inference wrote to.
        offset: of the voxels to count, in voxels of the segmentation.
        shape: of these voxels.
        block_size: of a block.
        per_section: sections have objects and segments of their own.
        faces: count faces, too.
    """

    datalist: Path
    section: str
    entry_id: str
    output_dir: Path
    offset: tuple[int, int, int]
    shape: tuple[int, int, int]
    block_size: tuple[int, int, int]
    per_section: bool = False
    faces: bool = True
    fit: Literal["shrink"] = "shrink"
    read_write_conflict: Literal[False] = False

    @property
    def write_roi(self) -> Roi:
        """All voxels to count, moved to 0: volara wants whole blocks from there on."""
        return Roi((0, 0, 0), self.shape)

    @property
    def write_size(self) -> Coordinate:
        """Of a block, no larger than all."""
        return Coordinate(map(min, self.block_size, self.shape))

    @property
    def context_size(self) -> tuple[Coordinate, Coordinate]:
        """Faces are looked at from their lower voxel."""
        return Coordinate(0, 0, 0), Coordinate(1, 1, 1)

    @property
    def tables(self) -> Path:
        """Folder of the tables."""
        return self.meta_dir / "tables"

    def drop_artifacts(self) -> None:
        """The tables lie in the state's folder, which goes away with all that is in it."""

    @contextmanager
    def process_block_func(self) -> Iterator[ProcessBlock]:
        """Count one block."""
        comparison = comparison_of(self.datalist, self.section, self.entry_id, self.output_dir)

        def process(block: daisy.Block) -> None:
            table = self._count(comparison, block)
            if table is not None:
                save_table(self.tables / f"{block.block_id[1]}.npz", table)

        yield process

    def _count(self, comparison: Comparison, block: daisy.Block) -> Table | None:
        """The table of a block, None where no voxel counts."""
        box = block.read_roi.intersect(self.write_roi) + Coordinate(self.offset)
        labels, known = comparison.read_labels(box)
        shape = block.write_roi.shape
        if not known[tuple(slice(0, length) for length in shape)].any():
            return None
        segments = comparison.read_segmentation(box)
        return table_of(labels, segments, known, shape, box.offset, self.per_section, self.faces)

    def merged(self) -> Table:
        """The table of all blocks, once they are done."""
        paths = sorted(self.tables.glob("*.npz"))
        return Table(
            **{
                name: added((load_tally(path, name) for path in paths), columns)
                for name, columns in COLUMNS.items()
            }
        )


def save_table(path: Path, table: Table) -> None:
    """Write a table, whole or not at all."""
    content = io.BytesIO()
    tallies = {name: getattr(table, name) for name in COLUMNS}
    np.savez_compressed(
        content,
        **{f"{name}_{array}": getattr(t, array) for name, t in tallies.items() for array in ARRAYS},
    )
    write_atomically(path, content.getvalue())


def load_tally(path: Path, name: str) -> Tally:
    """One of the tallies of a table that ``save_table`` wrote."""
    with np.load(path) as file:
        return Tally(*(file[f"{name}_{array}"] for array in ARRAYS))
