"""What becomes of a chain's blocks: task after task, until one has failures."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from custom.blockwise.block_progress import BlockProgress
from custom.blockwise.records import FAILED, FailedBlocksError, failures
from custom.blockwise.tracked import Tracked
from custom.errors import InputError

RunTask = Callable[[Tracked, BlockProgress], Any]


@dataclass(frozen=True)
class Outcome:
    """What became of a task's blocks.

    Args:
        name: of the task.
        total: number of its blocks.
        done: those that are done, earlier ones included.
        failed: those that failed on every try.
        left: those that were not tried, because others failed or the run was stopped.
    """

    name: str
    total: int
    done: int
    failed: int
    left: int


def run_in_order(tasks: Sequence[Tracked], run_task: RunTask) -> list[Outcome]:
    """Run tasks, each when the one before it is whole; those that are done are left alone.

    Args:
        tasks: in their order.
        run_task: runs one; returns daisy's state of it.
    """
    outcomes: list[Outcome] = []
    for task in tasks:
        total, done = task.total_blocks, task.count_done()
        whole = all(outcome.done == outcome.total for outcome in outcomes)
        if done < total and whole:
            title = f"{task.state_dir.name.removesuffix('.blocks')}, {task.name}"
            with closing(BlockProgress(title, total, done)) as progress:
                state = run_task(task, progress)
            failed = int(state.failed_count)
            done = task.count_done()
            outcomes.append(Outcome(task.name, total, done, failed, total - done - failed))
        else:
            outcomes.append(Outcome(task.name, total, done, 0, total - done))
    return outcomes


def refuse_failures(outcomes: Sequence[Outcome], tasks: Sequence[Tracked]) -> None:
    """Raise where blocks failed.

    Args:
        outcomes: of the tasks.
        tasks: in the same order.

    Raises:
        FailedBlocksError: with the first failure of the first such task.
        InputError: blocks are left though none failed.
    """
    for number, (outcome, task) in enumerate(zip(outcomes, tasks, strict=True)):
        if not outcome.failed:
            continue
        waiting = [f"'{later.name}'" for later in outcomes[number + 1 :]]
        which = f" ({', '.join(waiting)} wait for them)" if waiting else ""
        raise FailedBlocksError(
            f"{outcome.failed} of {outcome.total} blocks of '{task.name}' failed{which}, "
            f"{_first_failure(task)}; what each said is in '{task.meta_dir / FAILED}', and the "
            f"same command tries them again"
        )
    if left := sum(outcome.left for outcome in outcomes):
        raise InputError(
            f"the server of the blocks was stopped while {left} blocks of "
            f"'{tasks[0].state_dir}' were left; the same command goes on with them"
        )


def _first_failure(task: Tracked) -> str:
    records = failures(task.meta_dir)
    if not records:
        return "and nothing is known of why"
    first = records[0]
    return f"the first at {first['offset']}, shape {first['shape']} (voxels, zyx): {first['error']}"
