"""Workers of blockwise tasks: what starts them, here as processes of this machine."""

import json
import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from types import FrameType

import daisy
from volara.workers import Worker

from custom.blockwise.lifelines import STARTER
from custom.blockwise.records import forget_running, worker_name

ROOT = Path(__file__).resolve().parents[2]
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def worker_command(task_file: Path) -> list[str]:
    """Command of a worker process.

    Args:
        task_file: what ``Tracked.worker_func`` wrote.
    """
    return [sys.executable, "-m", "custom.blockwise.worker", str(task_file)]


def worker_paths() -> str:
    """PYTHONPATH of a worker process, which may begin in any folder."""
    given = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(ROOT), str(ROOT / "bundle"), *([given] if given else [])])


def log_of(folder: Path, number: int) -> Path:
    """File for what a worker says.

    Args:
        folder: for all of them.
        number: daisy's, of the worker.
    """
    return folder / f"worker_{number}.log"


def log_here(folder: Path) -> None:
    """As the process that waits for a worker: let both say all into the worker's file.

    Args:
        folder: for the files of all workers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = log_of(folder, int(daisy.Context.from_env()["worker_id"]))
    with path.open("w") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)


class BlockWorker(Worker, ABC):
    """Where a worker process runs."""

    @abstractmethod
    def run(self, task_file: Path) -> None:
        """Start a worker process and wait for its end; SIGTERM is the order to end it.

        It runs in a process of its own, whose output goes to the worker's file of logs.

        Args:
            task_file: what ``Tracked.worker_func`` wrote.

        Raises:
            SystemExit: it ended with another status than 0; daisy starts another then.
            InputError: no worker can be started; the run ends with this sentence.
        """


class LocalWorker(BlockWorker):
    """A process of this machine, which uses its share of the cores."""

    def run(self, task_file: Path) -> None:
        """As of ``BlockWorker``."""
        process: subprocess.Popen[bytes] | None = None

        def end(number: int, frame: FrameType | None) -> None:
            if process is None:
                raise SystemExit(1)
            process.terminate()

        signal.signal(signal.SIGTERM, end)
        environment = {**os.environ, **shares(task_file), "PYTHONPATH": worker_paths()}
        environment[STARTER] = str(os.getpid())
        process = subprocess.Popen(worker_command(task_file), env=environment)
        status = process.wait()
        forget_running(task_file.parent, worker_name(process.pid))
        if status:
            raise SystemExit(1)


def shares(task_file: Path) -> dict[str, str]:
    """Numbers of threads of one of a task's workers, where the user has not set them.

    Args:
        task_file: of the task.
    """
    workers = json.loads(task_file.read_text())["settings"]["num_workers"]
    share = str(max(1, usable_cores() // workers))
    return {name: share for name in THREADS if name not in os.environ}


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
