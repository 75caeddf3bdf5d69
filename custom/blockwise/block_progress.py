"""How far a blockwise task has come, for the one who watches it."""

import logging
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from tqdm import tqdm

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 60.0
FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} blocks [{elapsed}{postfix}]"


class BlockProgress:
    """One line with a task's blocks, their rate, the time left, and how many failed.

    A bar on a terminal; elsewhere, such as in a log file, a line of the log every minute and one at
    the end. Rate and time left are those of this run since ``show`` was first called: blocks that
    were done before, and the start of workers, do not count.

    Args:
        title: names volume and task.
        total: number of its blocks.
        done: those that were done before.
        clock: seconds from any moment on.
    """

    def __init__(
        self, title: str, total: int, done: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.title, self.total, self.before = title, total, done
        self.clock = clock
        self._finished = self._failed = 0
        self._began, self._said = float("inf"), clock()
        self.bar = tqdm(
            total=total,
            initial=done,
            desc=title,
            bar_format=FORMAT,
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )

    def show(self, state: Any) -> None:
        """Show daisy's state of the task."""
        self._began = min(self._began, self.clock())
        finished = state.completed_count - state.skipped_count
        self.bar.update(finished - self._finished)
        self._finished, self._failed = finished, state.failed_count
        self.bar.set_postfix_str(self.figures(), refresh=False)
        if self.bar.disable and self.clock() - self._said >= SECONDS_BETWEEN_LINES:
            self._say()

    def figures(self) -> str:
        """Such as "1.9 blocks/s, 0:12:34 left, 1 failed"."""
        tried = self._finished + self._failed
        shown = []
        if self._finished:
            seconds = max(self.clock() - self._began, 1e-9)
            left = (self.total - self.before - tried) * seconds / tried
            shown = [_rate(self._finished / seconds), f"{timedelta(seconds=round(left))} left"]
        return ", ".join([*shown, *([f"{self._failed} failed"] if self._failed else [])])

    def _say(self) -> None:
        done = self.before + self._finished
        figures = self.figures()
        logger.info(
            "%s: %d of %d blocks%s", self.title, done, self.total, figures and f", {figures}"
        )
        self._said = self.clock()

    def close(self) -> None:
        """End the line."""
        if self.bar.disable:
            self._say()
        self.bar.close()


def _rate(blocks_per_s: float) -> str:
    """The way round that gives a number above one."""
    return (
        f"{blocks_per_s:.1f} blocks/s" if blocks_per_s >= 1 else f"{1 / blocks_per_s:.1f} s/block"
    )
