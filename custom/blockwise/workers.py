"""Workers of blockwise tasks: what starts them, here as processes of this machine."""

import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from types import FrameType

from volara.workers import Worker

ROOT = Path(__file__).resolve().parents[2]


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


class BlockWorker(Worker, ABC):
    """Where a worker process runs."""

    @abstractmethod
    def run(self, task_file: Path) -> None:
        """Start a worker process and wait for its end; it ends with the one that waits.

        Args:
            task_file: what ``Tracked.worker_func`` wrote.

        Raises:
            SystemExit: it ended with another status than 0; daisy starts another then.
        """


class LocalWorker(BlockWorker):
    """A process of this machine."""

    def run(self, task_file: Path) -> None:
        """As of ``BlockWorker``, which SIGTERM ends."""
        environment = {**os.environ, "PYTHONPATH": worker_paths()}
        process = subprocess.Popen(worker_command(task_file), env=environment)

        def end(number: int, frame: FrameType | None) -> None:
            process.terminate()

        signal.signal(signal.SIGTERM, end)  # daisy's way to stop a worker
        if process.wait():
            raise SystemExit(1)
