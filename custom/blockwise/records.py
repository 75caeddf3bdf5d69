"""Which blocks run and how long they took, and why one failed: a small file for each."""

import json
import os
import shutil
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import daisy
from daisy.block import BlockStatus

from custom.errors import InputError
from custom.files import disk_fault, file_of, no_room, write_atomically

ProcessBlock = Callable[[daisy.Block], None]

RUNNING, FAILED, TIMES = "running", "failed", "times"  # folders in that of a task's state


class EndOfRunError(InputError):
    """A mistake that no block can get around: the run ends at once, with this sentence."""


class FailedBlocksError(InputError):
    """Blocks of a volume failed; those of other volumes may not."""


def here() -> str:
    """This process, in a record."""
    return worker_name(os.getpid())


def worker_name(pid: int) -> str:
    """A process of this machine, in a record.

    Args:
        pid: of the process.
    """
    return f"{socket.gethostname()}-{pid}"


def recorded(process: ProcessBlock, folder: Path) -> ProcessBlock:
    """A function that notes which blocks run and how long they took, and why one failed.

    A block that fails gets daisy's status for that; of exceptions, only those that end the run
    leave the function.

    Args:
        process: processes a block.
        folder: of the task's state.

    Raises:
        EndOfRunError: of the block, or because the disk is full.
    """

    def with_records(block: daisy.Block) -> None:
        running = _path(folder, RUNNING, block)
        entry = {**_box(block), "worker": here()}
        try:
            with full_disk_as_end():
                begin = time.time()
                write_atomically(running, json.dumps({**entry, "since": begin}).encode())
                try:
                    process(block)
                except EndOfRunError:
                    raise
                except Exception as error:  # of any kind: the rest of the volume goes on
                    if _full_disk(error):
                        raise
                    block.status = BlockStatus.FAILED
                    text = "".join(traceback.format_exception(error))
                    record_failure(folder, block, {"error": told(error), "traceback": text})
                else:
                    _record_success(folder, block, begin)
        except Exception:
            block.status = BlockStatus.FAILED
            raise
        finally:
            running.unlink(missing_ok=True)

    return with_records


@contextmanager
def full_disk_as_end() -> Iterator[None]:
    """Make an error that says that a disk is full the end of the run."""
    try:
        yield
    except Exception as error:
        cause = _full_disk(error)
        if cause is None:
            raise
        fault = disk_fault(cause) or "cannot be written (database or disk is full): make room"
        said = str(error) if isinstance(error, InputError) else f"{file_of(cause)} {fault}"
        raise EndOfRunError(f"{said}; the same command goes on with what is not done") from error


def _full_disk(error: BaseException | None) -> BaseException | None:
    """The one of an error and its causes that says that a disk is full."""
    while error is not None and not no_room(error):
        error = error.__cause__
    return error


def told(error: BaseException) -> str:
    """An error as the middle of a sentence; a user's mistake is one already."""
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def record_failure(folder: Path, block: daisy.Block, why: dict[str, Any]) -> None:
    """Note that a block failed once more.

    Args:
        folder: of the task's state.
        block: which.
        why: "error", and what else is known.
    """
    path = _path(folder, FAILED, block)
    before = json.loads(path.read_text())["tries"] if path.exists() else 0
    entry = {**_box(block), "worker": here(), **why, "tries": before + 1}
    write_atomically(path, json.dumps(entry, indent=1).encode())


def record_loss(folder: Path, block: daisy.Block) -> None:
    """Note that a block's worker ended while it processed it.

    Args:
        folder: of the task's state.
        block: which.
    """
    running = _path(folder, RUNNING, block)
    worker = json.loads(running.read_text())["worker"] if running.exists() else "unknown"
    running.unlink(missing_ok=True)
    error = "its worker ended while it processed it (killed, or out of memory)"
    record_failure(folder, block, {"error": error, "worker": worker})


def forget_running(folder: Path, worker: str | None = None) -> None:
    """Remove the records of running blocks of a worker that has ended.

    Args:
        folder: of the task's state.
        worker: as in its records; None for all, of a run that has ended.
    """
    if worker is None:
        shutil.rmtree(folder / RUNNING, ignore_errors=True)
        return
    for path in (folder / RUNNING).glob("[0-9]*.json"):
        if json.loads(path.read_text())["worker"] == worker:
            path.unlink(missing_ok=True)


def failures(folder: Path) -> list[dict[str, Any]]:
    """Records of the blocks that failed, in the order of their names.

    Args:
        folder: of the task's state.
    """
    return [json.loads(path.read_text()) for path in sorted((folder / FAILED).glob("[0-9]*.json"))]


def _record_success(folder: Path, block: daisy.Block, begin: float) -> None:
    if block.status != BlockStatus.FAILED:
        _path(folder, FAILED, block).unlink(missing_ok=True)
        took = {**_box(block), "begin": begin, "end": time.time()}
        _append(folder / TIMES / f"{here()}.jsonl", took)


def _path(folder: Path, kind: str, block: daisy.Block) -> Path:
    return folder / kind / f"{block.block_id[1]}.json"


def _box(block: daisy.Block) -> dict[str, Any]:
    roi = block.write_roi
    return {"offset": [int(i) for i in roi.offset], "shape": [int(i) for i in roi.shape]}


def _append(path: Path, entry: dict[str, Any]) -> None:
    """Add a line to a file that only this process writes; its threads take turns by the line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")
