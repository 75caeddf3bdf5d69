"""Watch a blockwise run: what is done, what failed, who is at which block, and how long it takes.

From inside ``bundle/``: ``python -m scripts.blocks status <output_dir> [--watch]``
"""

import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import fire

from custom.blockwise.status import RunStatus, TaskStatus, read_status
from custom.json_fields import flag
from scripts.strict import strict

REFRESH_S = 2.0
SHOWN = 8  # running blocks of a task
CLEAR = "\x1b[2J\x1b[H"  # a terminal's screen
HEADINGS = ("task", "done", "of", "failed", "running", "left", "voxels/s", "time left")


@strict
def status(output_dir: str, watch: bool = False) -> None:
    """Print a table of a run's tasks, and the blocks that workers are at.

    Args:
        output_dir: of the run.
        watch: again and again, until nothing runs any more or Ctrl-C.
    """
    folder, again = Path(str(output_dir)), flag(watch, "--watch")
    while True:
        runs = read_status(folder)
        text = "\n\n".join(described(run) for run in runs)
        print((CLEAR if again and sys.stdout.isatty() else "") + text, flush=True)
        if not (again and any(run.alive for run in runs)):
            return
        time.sleep(REFRESH_S)


def described(run: RunStatus) -> str:
    """A run as a few lines: a table of its tasks, and who is at which block."""
    whole = all(task.done >= task.total for task in run.tasks)
    state = "running" if run.alive else "done" if whole else "not running"
    rows = [HEADINGS, *(_row(task) for task in run.tasks)]
    lines = [f"{run.volume}: {state}", *_aligned(rows)]
    return "\n".join([*lines, *(line for task in run.tasks for line in _at_work(task))])


def _row(task: TaskStatus) -> tuple[str, ...]:
    rate, left = task.voxels_per_s, task.seconds_left
    return (
        task.name,
        str(task.done),
        str(task.total),
        str(task.failed),
        str(len(task.running)),
        str(task.left),
        "-" if rate is None else f"{rate:,.0f}",
        "-" if left is None else str(timedelta(seconds=round(left))),
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]


def _at_work(task: TaskStatus) -> list[str]:
    longest = sorted(task.running, key=lambda block: -block.seconds)
    lines = [
        f"{task.name}: block at {list(block.offset)} by {block.worker} for "
        f"{timedelta(seconds=round(block.seconds))}"
        for block in longest[:SHOWN]
    ]
    more = len(longest) - SHOWN
    return [*lines, f"{task.name}: and {more} more blocks"] if more > 0 else lines


if __name__ == "__main__":
    fire.Fire({"status": status})
