"""A chain of blockwise tasks: run, resumed, or begun anew where its settings changed."""

import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from custom.blockwise.freshness import begin_anew_where_changed
from custom.blockwise.in_process import process_here
from custom.blockwise.master import TASKS_FILE
from custom.blockwise.outcomes import Outcome, refuse_failures, run_in_order
from custom.blockwise.presence import present, wait_until_alone
from custom.blockwise.records import EndOfRunError, forget_running
from custom.blockwise.status import CHAIN_FILE
from custom.blockwise.tracked import Tracked, describe
from custom.blockwise.workers import worker_paths
from custom.errors import InputError
from custom.files import write_atomically
from custom.folder_lock import sole_writer
from custom.interruption import SIGNALS, STOPPED

logger = logging.getLogger(__name__)


def run_tasks(
    tasks: Sequence[Tracked] | Callable[[], Sequence[Tracked]],
    state_dir: Path,
    workers: int | None = None,
    key: str = "output_dir",
    finish: Callable[[], None] | None = None,
) -> None:
    """Run tasks, each after the one before it; blocks that are done are not processed again.

    Args:
        tasks: every one reads what those before it wrote; or what makes them, called once no other
            run is at work on the state.
        state_dir: folder of the run's state.
        workers: None: all in this process, ``threads`` blocks of a task at a time; else a server
            process and that many workers for a task, which ``worker_config`` of the tasks starts.
        key: the configuration's, that names the folder in which ``state_dir`` lies.
        finish: called once all blocks are done, before another run may begin.

    Raises:
        InputError: blocks failed, with their number, the first one's box and error, and where the
            records lie; no block can be processed; another run is at work on ``state_dir``.
        SystemExit: with status ``STOPPED``: a signal has asked it to stop.
    """
    try:
        with _interruptible(), sole_writer(state_dir, key):
            wait_until_alone(state_dir)
            with present(state_dir):
                chain = tasks() if callable(tasks) else tasks
                refuse_failures(_run(chain, state_dir, workers), chain)
                if finish is not None:
                    finish()
    except KeyboardInterrupt:
        sys.stderr.write(
            f"\nthe run on '{state_dir}' has stopped; the same command goes on with the blocks "
            f"that are not done\n"
        )
        raise SystemExit(STOPPED) from None


def _run(tasks: Sequence[Tracked], state_dir: Path, workers: int | None) -> list[Outcome]:
    begin_anew_where_changed(tasks)
    _describe_chain(tasks, state_dir)
    unfinished = [task for task in tasks if task.count_done() < task.total_blocks]
    for task in unfinished:
        forget_running(task.meta_dir)
        task.prepare()
    if not unfinished:
        logger.info("all blocks of '%s' are done already", state_dir)
    if workers is None or not unfinished:
        return in_this_process(tasks)
    return in_processes(tasks, state_dir, workers)


def _describe_chain(tasks: Sequence[Tracked], state_dir: Path) -> None:
    chain = [
        {"name": t.name, "blocks": t.total_blocks, "voxels": math.prod(t.write_roi.shape)}
        for t in tasks
    ]
    write_atomically(state_dir / CHAIN_FILE, json.dumps(chain, indent=1).encode())


def in_this_process(tasks: Sequence[Tracked]) -> list[Outcome]:
    """Run tasks here, without other processes.

    Args:
        tasks: prepared, in their order.
    """
    return run_in_order(tasks, process_here)


def in_processes(tasks: Sequence[Tracked], state_dir: Path, workers: int) -> list[Outcome]:
    """Run tasks with a server process of their own.

    Args:
        tasks: prepared, in their order.
        state_dir: folder of the run's state.
        workers: of each task.

    Raises:
        InputError: the server gave up, or was killed.
        KeyboardInterrupt: a signal has asked to stop, and the server and its workers have ended.
    """
    descriptions = [describe(task.model_copy(update={"num_workers": workers})) for task in tasks]
    write_atomically(state_dir / TASKS_FILE, json.dumps(descriptions, indent=1).encode())
    command = [sys.executable, "-m", "custom.blockwise.master", str(state_dir), str(os.getpid())]
    with subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": worker_paths()},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is ours: it is for us to end workers in good order
    ) as server:
        try:
            said, _ = server.communicate()
        except KeyboardInterrupt:
            server.terminate()
            server.wait()  # a second Ctrl-C ends us at once, and the server notices
            raise
    if server.returncode:
        raise InputError(_end_of_server(server.returncode, state_dir))
    answer = json.loads(said.splitlines()[-1])
    if mistake := answer.get("mistake"):
        raise EndOfRunError(mistake)
    return [Outcome(**entry) for entry in answer["outcomes"]]


def _end_of_server(status: int, state_dir: Path) -> str:
    if status < 0:
        how = f"was ended by signal {signal.Signals(-status).name}"
    else:
        how = f"ended with status {status}, and has said why above"
    return f"the server of the blocks of '{state_dir}' {how}; the same command goes on from there"


@contextmanager
def _interruptible() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C; outside the main thread, where Python cannot, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
