"""What all blockwise tasks of this project share: where their state lies, threads, records."""

import json
import math
import os
from abc import ABC
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import daisy
import zarr
from daisy.block import BlockStatus
from funlib.geometry import Coordinate
from pydantic import Field
from volara.blockwise import BlockwiseTask

from custom.blockwise.clients import process_served_blocks
from custom.blockwise.lifelines import end_with_server
from custom.blockwise.marks import MARKS, count_done
from custom.blockwise.records import ProcessBlock as ProcessBlock  # tasks import both from here
from custom.blockwise.records import recorded
from custom.blockwise.workers import BlockWorker, LocalWorker, log_here
from custom.files import write_atomically

TASK_FILE = "task.json"  # in the state's folder of a task: what a worker process needs


class Tracked(BlockwiseTask, ABC):
    """A blockwise task that says what it does, and whose workers have threads instead of forks.

    All lies in ``<state_dir>/<name>``: ``blocks_done.zarr`` (as volara's), ``identity.json``,
    ``task.json``, ``running/<block>.json``, ``failed/<block>.json``, ``times/<host>-<pid>.jsonl``
    and ``logs/worker_<n>.log``.

    World units of all tasks are voxels (voxel size 1, offset 0): funlib's are whole numbers, and
    those of a volume need not be.

    A worker may be killed at any moment. So ``process_block_func`` gives a function that returns
    when all that it wrote is on the disk, that may be called again for a block that it was killed
    in, and by ``threads`` threads at a time for different ones; what comes after its ``yield`` may
    never run. It raises ``EndOfRunError`` for what would befall all other blocks, too.

    Args:
        state_dir: folder of the run's state, the same for all tasks of a run.
        name: of the task, unique in the run.
        identity: what its output depends on beside the data that it reads: plain JSON. A run
            with another one starts the task anew, and all after it.
        threads: blocks that one worker, or this process, processes at a time.
        retries: how often a block that failed is tried again.

    Attributes:
        aside: only tasks of the same class read what it makes; the others do not depend on it.
    """

    aside: ClassVar[bool] = False
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

    @property
    def total_blocks(self) -> int:
        """Number of its blocks."""
        rounded = math.floor if self.fit == "valid" else math.ceil
        sizes = zip(self.write_roi.shape, self.write_size, strict=True)
        return math.prod(rounded(length / block) for length, block in sizes)

    @property
    def contexts(self) -> tuple[Coordinate, Coordinate]:
        """What a block reads before and after what it writes."""
        context = self.context_size
        return (context, context) if isinstance(context, Coordinate) else context

    def outputs_exist(self) -> bool:
        """Whether what its done blocks have written is still there; else the task begins anew."""
        return True

    def prepare(self) -> None:
        """Make what its workers write to, before any of them begins."""
        self.init_block_array()  # type: ignore[no-untyped-call]  # of volara, as below
        self.init()  # type: ignore[no-untyped-call]

    @contextmanager
    def task(
        self,
        upstream_tasks: daisy.Task | list[daisy.Task] | None = None,
        multiprocessing: bool = True,
    ) -> Iterator[daisy.Task]:
        """The task as daisy's, once it is prepared.

        Args:
            upstream_tasks: whose blocks those of this task wait for.
            multiprocessing: its function starts a worker; else it processes a block.
        """
        before = [upstream_tasks] if isinstance(upstream_tasks, daisy.Task) else upstream_tasks
        if multiprocessing:
            yield self._for_daisy(self.worker_func(), before)
        else:
            with self.process_block_func() as process:  # type: ignore[no-untyped-call]
                yield self._for_daisy(self._whole(process), before)

    def _for_daisy(
        self, function: Callable[..., None], before: list[daisy.Task] | None
    ) -> daisy.Task:
        low, high = self.contexts
        return daisy.Task(
            self.task_name,
            total_roi=self.write_roi.grow(low, high),
            read_roi=self.block_write_roi.grow(low, high),
            write_roi=self.block_write_roi,
            process_function=function,
            check_function=self.check_block_func(),
            read_write_conflict=self.read_write_conflict,
            fit=self.fit,
            num_workers=self.num_workers,
            max_retries=self.retries,
            upstream_tasks=before,
        )

    def _whole(self, process: ProcessBlock) -> ProcessBlock:
        """Process a block, mark it as done, and record what happened."""
        mark_done = self.mark_block_done_func()

        def process_and_mark(block: daisy.Block) -> None:
            process(block)
            mark_done(block)

        return recorded(process_and_mark, self.meta_dir)

    def check_block_func(self) -> Callable[[daisy.Block], bool]:
        """Whether a block is done: one look for a file, where volara opens an array."""
        marks = f"{self.meta_dir}/{MARKS}"

        def is_done(block: daisy.Block) -> bool:
            return os.path.exists("/".join([marks, *map(str, self._place(block))]))

        return is_done

    def mark_block_done_func(self) -> ProcessBlock:
        """Mark a block as done in volara's array, which is opened once.

        Not with the block's number, as volara does: that counts from where the context begins, and
        may be beyond what the array's dtype holds.
        """
        marks = zarr.open_array(self.block_ds, mode="r+")

        def mark_done(block: daisy.Block) -> None:
            if block.status != BlockStatus.FAILED:
                marks[self._place(block)] = 1
                block.status = BlockStatus.SUCCESS

        return mark_done

    def _place(self, block: daisy.Block) -> tuple[int, ...]:
        """Of a block among all."""
        begin: Coordinate = block.write_roi.offset - self.write_roi.offset
        return tuple(int(b // s) for b, s in zip(begin, self.write_size, strict=True))

    def count_done(self) -> int:
        """Number of its blocks that are done."""
        return count_done(self.meta_dir)

    def worker_func(self) -> Callable[[], None]:
        """What starts a worker; it returns when the worker has ended."""
        path, logs, server = self.meta_dir / TASK_FILE, self.meta_dir / "logs", os.getpid()
        write_atomically(path, json.dumps(describe(self), indent=1).encode())
        worker = self.worker_config or LocalWorker()
        assert isinstance(worker, BlockWorker)  # the type of volara's field is wider

        def run_worker() -> None:
            end_with_server(server)
            log_here(logs)
            worker.run(path)

        return run_worker

    def process_blocks(self) -> None:
        """As a worker: process blocks until there are no more, in ``threads`` threads."""
        with self.process_block_func() as process:  # type: ignore[no-untyped-call]
            whole = self._whole(process)
            with ThreadPoolExecutor(self.threads) as threads:
                running = [
                    threads.submit(process_served_blocks, whole) for _ in range(self.threads)
                ]
            for thread in running:
                thread.result()


def describe(task: Tracked) -> dict[str, Any]:
    """A task as plain JSON, for another process; ``described`` makes it from that."""
    settings = json.loads(task.model_dump_json(exclude={"worker_config"}))
    worker = task.worker_config
    return {
        "class": path_of(task),
        "settings": settings,
        "worker": worker and {"class": path_of(worker), "settings": worker.model_dump(mode="json")},
    }


def described(description: Mapping[str, Any]) -> Tracked:
    """The task that ``describe`` described."""
    task: Tracked = class_at(description["class"]).model_validate(description["settings"])
    if worker := description["worker"]:
        task.worker_config = class_at(worker["class"]).model_validate(worker["settings"])
    return task


def path_of(thing: object) -> str:
    """Module and name of the class of an object."""
    return f"{type(thing).__module__}:{type(thing).__qualname__}"


def class_at(path: str) -> Any:
    """The class that ``path_of`` named."""
    module, name = path.split(":")
    return getattr(import_module(module), name)
