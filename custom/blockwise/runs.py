"""A chain of blockwise tasks: run, resumed, or begun anew where its settings changed."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import daisy
import volara.logging

from custom.blockwise.tracked import FAILED, Tracked, describe
from custom.blockwise.workers import worker_paths
from custom.errors import InputError
from custom.files import write_atomically

logger = logging.getLogger(__name__)

IDENTITY = "identity.json"
TASKS_FILE, RESULT_FILE = "tasks.json", "result.json"


@dataclass(frozen=True)
class Outcome:
    """What became of a task's blocks.

    Args:
        name: of the task.
        total: number of its blocks.
        done: those that are done, earlier ones included.
        failed: those that failed on every try.
        left: those that wait for failed ones.
    """

    name: str
    total: int
    done: int
    failed: int
    left: int


def run_tasks(tasks: Sequence[Tracked], state_dir: Path, workers: int | None = None) -> None:
    """Run tasks, each after the one before it; blocks that are done are not processed again.

    Args:
        tasks: every one reads what those before it wrote.
        state_dir: folder of the run's state.
        workers: None: all in this process, a block after the other; else a server process and
            that many workers for each task, which ``worker_config`` of the tasks starts.

    Raises:
        InputError: blocks failed; with their number, the first one's box and error, and where the
            records lie.
    """
    begin_anew_where_changed(tasks)
    if workers is None:
        outcomes = in_this_process(tasks, state_dir)
    else:
        outcomes = in_processes(tasks, state_dir, workers)
    refuse_failures(outcomes, tasks)


def begin_anew_where_changed(tasks: Sequence[Tracked]) -> None:
    """Drop what was made with other settings, and all that was made from it.

    Args:
        tasks: in their order.
    """
    anew = False
    for task in tasks:
        path = task.meta_dir / IDENTITY
        wanted = json.loads(json.dumps(task.identity))
        before: dict[str, Any] = json.loads(path.read_text()) if path.exists() else wanted
        changed = [key for key in {**before, **wanted} if before.get(key) != wanted.get(key)]
        if changed and not anew:
            logger.warning(
                "%s begins anew, and all after it; changed since the last run: %s",
                task.name,
                ", ".join(changed),
            )
        anew = anew or bool(changed)
        if anew:
            task.drop()
        write_atomically(path, json.dumps(wanted, indent=1).encode())


def in_this_process(tasks: Sequence[Tracked], state_dir: Path) -> list[Outcome]:
    """Run tasks here, without other processes or threads.

    Args:
        tasks: in their order.
        state_dir: folder of the run's state.
    """
    return _run(tasks, state_dir, daisy.SerialServer(), processes=False)


def serve(tasks: Sequence[Tracked], state_dir: Path) -> list[Outcome]:
    """Run tasks with worker processes; the process that calls is forked, and is their server.

    Args:
        tasks: in their order.
        state_dir: folder of the run's state.
    """
    return _run(tasks, state_dir, daisy.Server(), processes=True)


def in_processes(tasks: Sequence[Tracked], state_dir: Path, workers: int) -> list[Outcome]:
    """Run tasks with a server process of their own.

    Args:
        tasks: in their order.
        state_dir: folder of the run's state.
        workers: of each task.

    Raises:
        InputError: the server failed.
    """
    descriptions = [describe(task.model_copy(update={"num_workers": workers})) for task in tasks]
    write_atomically(state_dir / TASKS_FILE, json.dumps(descriptions, indent=1).encode())
    command = [sys.executable, "-m", "custom.blockwise.master", str(state_dir)]
    environment = {**os.environ, "PYTHONPATH": worker_paths()}
    status = subprocess.run(command, env=environment, check=False).returncode
    if status:
        raise InputError(f"the server of the blocks ended with status {status}; see '{state_dir}'")
    return [Outcome(**entry) for entry in json.loads((state_dir / RESULT_FILE).read_text())]


def refuse_failures(outcomes: Sequence[Outcome], tasks: Sequence[Tracked]) -> None:
    """Raise where blocks failed.

    Args:
        outcomes: of the tasks.
        tasks: in the same order.

    Raises:
        InputError: with the first failure of the first such task.
    """
    for outcome, task in zip(outcomes, tasks, strict=True):
        if outcome.failed:
            folder = task.meta_dir / FAILED
            first = json.loads(min(folder.iterdir()).read_text())
            raise InputError(
                f"{outcome.failed} of {outcome.total} blocks of '{task.name}' failed, the first at "
                f"{first['offset']}, shape {first['shape']} (voxels, zyx): {first['error']}; what "
                f"each said is in '{folder}', and the same command tries them again"
            )


def _run(
    tasks: Sequence[Tracked],
    state_dir: Path,
    server: daisy.SerialServer | daisy.Server,
    processes: bool,
) -> list[Outcome]:
    """All tasks, each waiting for the one before it."""
    volara.logging.set_log_basedir(state_dir)
    with ExitStack() as open_tasks:
        chain: list[daisy.Task] = []
        for task in tasks:
            made = task.task(upstream_tasks=chain[-1:] or None, multiprocessing=processes)
            chain.append(open_tasks.enter_context(made))
        states = server.run_blockwise(chain)
    return [_outcome(task.name, states[task.name]) for task in tasks]


def _outcome(name: str, state: Any) -> Outcome:
    kinds = ("total_block", "completed", "failed", "orphaned")
    return Outcome(name, *(int(getattr(state, f"{kind}_count")) for kind in kinds))
