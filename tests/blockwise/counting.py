"""A small blockwise task for tests: every block leaves a file, and fails where it is told to."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import daisy
from funlib.geometry import Coordinate, Roi
from pydantic import Field

from custom.blockwise.tracked import ProcessBlock, Tracked


class Counting(Tracked):
    """Writes ``<folder>/<block>`` with the process that did it, a line for every time."""

    folder: Path
    shape: tuple[int, int, int] = (20, 30, 40)
    block: tuple[int, int, int] = (10, 20, 20)
    failing: list[int] = Field(default_factory=list)
    fit: Literal["shrink"] = "shrink"
    read_write_conflict: Literal[False] = False

    @property
    def write_roi(self) -> Roi:
        """All."""
        return Roi((0, 0, 0), self.shape)

    @property
    def write_size(self) -> Coordinate:
        """Of a block."""
        return Coordinate(self.block)

    @property
    def context_size(self) -> Coordinate:
        """None."""
        return Coordinate(0, 0, 0)

    def drop_artifacts(self) -> None:
        """Forget what was written."""
        for path in self.folder.glob("*"):
            path.unlink()

    @contextmanager
    def process_block_func(self) -> Iterator[ProcessBlock]:
        """Leave a file."""
        self.folder.mkdir(parents=True, exist_ok=True)

        def process(block: daisy.Block) -> None:
            if block.block_id[1] in self.failing:
                raise ValueError(f"block {block.block_id[1]} was told to fail")
            with (self.folder / str(block.block_id[1])).open("a") as file:
                file.write(f"{os.getpid()}\n")

        yield process
