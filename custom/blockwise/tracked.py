"""What all blockwise tasks of this project share: where their state lies, threads, records."""

import json
import logging
import os
import socket
import threading
import time
import traceback
from abc import ABC
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import daisy
from daisy.block import BlockStatus
from pydantic import Field
from volara.blockwise import BlockwiseTask

from custom.blockwise.workers import BlockWorker, LocalWorker
from custom.files import write_atomically

logger = logging.getLogger(__name__)

ProcessBlock = Callable[[daisy.Block], None]

TASK_FILE = "task.json"  # in the state's folder of a task: what a worker process needs
RUNNING, FAILED, TIMES = "running", "failed", "times"  # folders beside it


class Tracked(BlockwiseTask, ABC):
    """A blockwise task that says what it does, and whose workers have threads instead of forks.

    All lies in ``<state_dir>/<name>``: ``blocks_done.zarr`` (volara's), ``task.json``,
    ``running/<block>.json``, ``failed/<block>.json`` and ``times/<host>-<pid>.jsonl``.

    World units of all tasks are voxels (voxel size 1, offset 0): funlib's are whole numbers, and
    those of a volume need not be.

    Args:
        state_dir: folder of the run's state, the same for all tasks of a run.
        name: of the task, unique in the run.
        identity: what its output depends on beside the data that it reads: plain JSON. A run
            with another one starts the task anew, and all after it.
        threads: blocks that one worker processes at a time.
        retries: how often a block that failed is tried again.
    """

    state_dir: Path
    name: str
    identity: dict[str, Any] = Field(default_factory=dict)
    threads: int = 1
    retries: int = 2

    @property
    def task_name(self) -> str:
        """Name of the task."""
        return self.name

    @property
    def meta_dir(self) -> Path:
        """Folder of the task's state."""
        return self.state_dir / self.name

    @contextmanager
    def task(
        self,
        upstream_tasks: daisy.Task | list[daisy.Task] | None = None,
        multiprocessing: bool = True,
    ) -> Iterator[daisy.Task]:
        """The task as daisy's: with our retries; without processes, failures are recorded."""
        with super().task(upstream_tasks, multiprocessing) as task:
            task.max_retries = self.retries
            if not multiprocessing:
                task.process_function = recorded(task.process_function, self.meta_dir)
            yield task

    def worker_func(self) -> Callable[[], None]:
        """What starts a worker; it returns when the worker has ended."""
        path = self.meta_dir / TASK_FILE
        write_atomically(path, json.dumps(describe(self), indent=1).encode())
        worker = self.worker_config or LocalWorker()
        assert isinstance(worker, BlockWorker)  # the type of volara's field is wider

        def run_worker() -> None:
            worker.run(path)

        return run_worker

    def process_blocks(self) -> None:
        """As a worker: process blocks until there are no more, in ``threads`` threads."""
        with self.process_block_func() as process_block:  # type: ignore[no-untyped-call]  # of volara
            process = recorded(process_block, self.meta_dir)
            others = [
                threading.Thread(target=self._loop, args=(process,))
                for _ in range(self.threads - 1)
            ]
            for thread in others:
                thread.start()
            self._loop(process)
            for thread in others:
                thread.join()

    def _loop(self, process: ProcessBlock) -> None:
        """Process one block after the other."""
        client = daisy.Client()
        mark_done = self.mark_block_done_func()  # type: ignore[no-untyped-call]
        while True:
            with client.acquire_block() as block:
                if block is None:
                    return
                process(block)
                mark_done(block)


def describe(task: Tracked) -> dict[str, Any]:
    """A task as plain JSON, for another process; ``described`` makes it from that."""
    settings = json.loads(task.model_dump_json(exclude={"worker_config"}))
    worker = task.worker_config
    return {
        "class": _path_of(task),
        "settings": settings,
        "worker": worker and {"class": _path_of(worker), "settings": worker.model_dump()},
    }


def described(description: Mapping[str, Any]) -> Tracked:
    """The task that ``describe`` described."""
    task: Tracked = _class_at(description["class"]).model_validate(description["settings"])
    if worker := description["worker"]:
        task.worker_config = _class_at(worker["class"]).model_validate(worker["settings"])
    return task


def _path_of(thing: object) -> str:
    return f"{type(thing).__module__}:{type(thing).__qualname__}"


def _class_at(path: str) -> Any:
    module, name = path.split(":")
    return getattr(import_module(module), name)


def recorded(process: ProcessBlock, folder: Path) -> ProcessBlock:
    """A function that notes which blocks run and how long they took, and why one failed.

    A block that fails gets daisy's status for that; no exception leaves the function.

    Args:
        process: processes a block.
        folder: of the task's state.
    """

    def with_records(block: daisy.Block) -> None:
        number = block.block_id[1]
        box = {"offset": list(block.write_roi.offset), "shape": list(block.write_roi.shape)}
        begin, where = time.time(), f"{socket.gethostname()}-{os.getpid()}"
        running, failed = (folder / kind / f"{number}.json" for kind in (RUNNING, FAILED))
        write_atomically(running, json.dumps({**box, "since": begin, "worker": where}).encode())
        try:
            process(block)
        except Exception as error:  # of any kind: the rest of the volume goes on
            block.status = BlockStatus.FAILED
            _record_failure(failed, box | {"worker": where}, error)
        else:
            if block.status != BlockStatus.FAILED:
                failed.unlink(missing_ok=True)
                took = {**box, "begin": begin, "end": time.time()}
                _append(folder / TIMES / f"{where}.jsonl", took)
        finally:
            running.unlink(missing_ok=True)

    return with_records


def _record_failure(path: Path, box: dict[str, Any], error: Exception) -> None:
    before = json.loads(path.read_text())["tries"] if path.exists() else 0
    text = "".join(traceback.format_exception(error))
    described = {"error": f"{type(error).__name__}: {error}", "traceback": text}
    write_atomically(path, json.dumps({**box, **described, "tries": before + 1}, indent=1).encode())


def _append(path: Path, entry: dict[str, Any]) -> None:
    """Add a line to a file that only this process writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")
