"""How far the blockwise tasks of a run have come, read from its state, while it runs and after."""

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from custom.blockwise.marks import count_done
from custom.blockwise.presence import is_running
from custom.errors import InputError

CHAIN_FILE = "chain.json"  # the tasks of a run
STATE_SUFFIX = ".blocks"
RECENT_S = 600.0  # rates are those of the last ten minutes of work


@dataclass(frozen=True)
class RunningBlock:
    """A block that a worker is at.

    Args:
        offset: of the block, zyx.
        worker: host and process.
        seconds: since it began.
    """

    offset: Sequence[int]
    worker: str
    seconds: float


@dataclass(frozen=True)
class TaskStatus:
    """How far a task has come.

    Args:
        name: of the task.
        total: number of its blocks.
        done: those that are done.
        failed: those whose last try failed.
        running: those that are being processed.
        voxels_per_s: that were written in the last minutes of work; None before a block was timed.
        seconds_left: None where nothing runs, or nothing was timed.
    """

    name: str
    total: int
    done: int
    failed: int
    running: Sequence[RunningBlock]
    voxels_per_s: float | None
    seconds_left: float | None

    @property
    def left(self) -> int:
        """Number of blocks that are neither done nor being processed."""
        return max(0, self.total - self.done - len(self.running))


@dataclass(frozen=True)
class RunStatus:
    """How far the run on a volume has come.

    Args:
        volume: its id.
        alive: processes are at work.
        tasks: in their order.
    """

    volume: str
    alive: bool
    tasks: Sequence[TaskStatus]


def read_status(output_dir: Path, now: float | None = None) -> list[RunStatus]:
    """Status of all runs of a folder, in the order of their volumes' ids.

    Args:
        output_dir: the configuration's, with ``<id>.blocks`` folders; or one of these.
        now: seconds since the epoch; None for the clock's.

    Raises:
        InputError: there is no such folder, or no state of a run in it.
    """
    if not output_dir.is_dir():
        raise InputError(f"there is no folder '{output_dir}'; give the output_dir of a run")
    folders = [output_dir] if (output_dir / CHAIN_FILE).exists() else sorted(_states(output_dir))
    if not folders:
        raise InputError(
            f"'{output_dir}' has no state of a blockwise run (<id>{STATE_SUFFIX}/{CHAIN_FILE}); "
            f"give the output_dir of a run that has begun"
        )
    return [_run_status(folder, time.time() if now is None else now) for folder in folders]


def _states(output_dir: Path) -> Iterator[Path]:
    return (path.parent for path in output_dir.glob(f"*{STATE_SUFFIX}/{CHAIN_FILE}"))


def _run_status(folder: Path, now: float) -> RunStatus:
    alive = is_running(folder)
    chain = json.loads((folder / CHAIN_FILE).read_text())
    tasks = [_task_status(folder / task["name"], task, alive, now) for task in chain]
    return RunStatus(folder.name.removesuffix(STATE_SUFFIX), alive, tasks)


def _task_status(folder: Path, task: Mapping[str, Any], alive: bool, now: float) -> TaskStatus:
    records = [*_records(folder / "running")] if alive else []
    running = [
        RunningBlock(record["offset"], record["worker"], max(0.0, now - record["since"]))
        for record in records
        if not _known_dead(record["worker"])
    ]
    done, rate = count_done(folder), voxels_per_s(_times(folder / "times"))
    voxels_left = task["voxels"] * (1 - done / max(1, task["blocks"]))
    return TaskStatus(
        task["name"],
        task["blocks"],
        done,
        sum(1 for _ in _records(folder / "failed")),
        running,
        rate,
        voxels_left / rate if running and rate else None,
    )


def voxels_per_s(times: Sequence[Mapping[str, Any]]) -> float | None:
    """Voxels that all workers together have written per second, lately.

    Args:
        times: of blocks, each with ``begin`` and ``end`` in seconds, and ``shape``.
    """
    if not times:
        return None
    last = max(entry["end"] for entry in times)
    lately = [entry for entry in times if entry["end"] >= last - RECENT_S]
    begin = min(entry["begin"] for entry in lately)
    voxels = sum(prod(entry["shape"]) for entry in lately)
    return float(voxels / max(last - begin, 1e-9))


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    """Records of blocks; one may vanish while they are read."""
    for path in sorted(folder.glob("[0-9]*.json")):
        try:
            yield json.loads(path.read_text())
        except FileNotFoundError:
            continue


def _times(folder: Path) -> list[dict[str, Any]]:
    """Timed blocks; a worker that was killed may have left a part of a line."""
    lines = [line for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines if line.endswith("}")]


def _known_dead(worker: str) -> bool:
    """Whether a worker was a process of this machine that is no more."""
    host, _, pid = worker.rpartition("-")
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
