"""A small blockwise task for tests: every block leaves a file, and fails where it is told to."""

import errno
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import daisy
from funlib.geometry import Coordinate
from pydantic import Field

from custom.blockwise.tracked import ProcessBlock
from custom.blockwise.volume_blocks import VolumeBlocks
from custom.errors import InputError

TWICE = "twice"  # a file that must never be there: a done block was processed again


class Counting(VolumeBlocks):
    """Writes ``<folder>/<block>`` with the process that did it, a line for every time."""

    folder: Path
    shape: tuple[int, int, int] = (20, 30, 40)
    block: tuple[int, int, int] = (10, 20, 20)
    failing: list[int] = Field(default_factory=list)
    failure: Literal["error", "mistake", "disk", "signal"] = "error"
    seconds: float = 0.0
    blind: bool = False
    context: tuple[int, int, int] = (0, 0, 0)

    @property
    def context_size(self) -> Coordinate:
        """As it is told to have."""
        return Coordinate(self.context)

    def drop_artifacts(self) -> None:
        """Forget what was written."""
        for path in self.folder.glob("*"):
            path.unlink()

    def fail(self, number: int) -> None:
        """As ``failure`` says."""
        if self.failure == "signal":
            os.kill(os.getpid(), signal.SIGINT)
        if self.failure == "disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder / "array"))
        if self.failure == "mistake":
            raise InputError(f"block {number} has no mask; give one")
        raise ValueError(f"block {number} was told to fail")

    @contextmanager
    def process_block_func(self) -> Iterator[ProcessBlock]:
        """Leave a file."""
        if self.blind:
            raise InputError(f"there is no folder '{self.folder}' on this machine; mount it")
        self.folder.mkdir(parents=True, exist_ok=True)
        is_done = self.check_block_func()

        def process(block: daisy.Block) -> None:
            if is_done(block):
                (self.folder / TWICE).touch()
            time.sleep(self.seconds)
            if block.block_id[1] in self.failing:
                self.fail(block.block_id[1])
            with (self.folder / str(block.block_id[1])).open("a") as file:
                file.write(f"{os.getpid()}\n")

        yield process
