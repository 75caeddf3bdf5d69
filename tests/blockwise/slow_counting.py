"""A blockwise task for tests that takes its time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import daisy

from tests.blockwise.counting import Counting


class SlowCounting(Counting):
    """Counts, and rests before each block."""

    rest_s: float = 0.2

    @contextmanager
    def process_block_func(self) -> Iterator:  # type: ignore[type-arg]  # as of Counting
        """Rest, then leave a file."""
        with super().process_block_func() as process:

            def rest_and_process(block: daisy.Block) -> None:
                time.sleep(self.rest_s)
                process(block)

            yield rest_and_process
