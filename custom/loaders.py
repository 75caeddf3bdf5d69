"""How training's samples are made beside the training: in processes, or in threads."""

import atexit
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from monai.data import DataLoader
from monai.data.utils import worker_init_fn

from custom.arenas import share_arenas
from custom.datasets import CropDataset, CropSampler
from custom.errors import InputError
from custom.interruption import signals_held_back
from custom.json_fields import whole_number

WORKERS = ("spawn", "threads")
BATCHES_AHEAD = 2  # per worker, as torch has it


class ThreadLoader(DataLoader):
    """A loader whose batches are made by threads of this process, in the sampler's order.

    Never more than ``BATCHES_AHEAD`` batches per thread are waiting or in the making. An error
    is raised where its batch would have come. The threads end with the iteration: when it is
    through, when it fails, and when it is dropped midway.

    Args:
        dataset: of samples; it is read from several threads at once.
        batch_size: samples per batch.
        sampler: numbers of an epoch's samples.
        num_threads: number of them.
    """

    def __init__(
        self, dataset: CropDataset, batch_size: int, sampler: CropSampler, num_threads: int
    ) -> None:
        super().__init__(dataset, batch_size=batch_size, sampler=sampler)
        self.num_threads = num_threads

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch names its own class
        """Batches of an epoch."""
        assert self.batch_sampler is not None, "there is a batch_size"
        torch.get_num_threads()  # settles this thread's own number, before others set theirs
        # each computes alone, as a worker process does: together they have the cores
        pool = ThreadPoolExecutor(self.num_threads, "loader", torch.set_num_threads, (1,))
        ahead: deque[Future[Any]] = deque()
        try:
            for numbers in self.batch_sampler:
                ahead.append(pool.submit(self._batch, numbers))
                if len(ahead) == BATCHES_AHEAD * self.num_threads:
                    yield ahead.popleft().result()
            pool.shutdown(wait=False)  # the threads end with the last batch, not with its reader
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _batch(self, numbers: Sequence[int]) -> Any:
        return self.collate_fn([self.dataset[number] for number in numbers])


class SpawnLoader(DataLoader):
    """A loader whose processes leave SIGINT and SIGTERM to the one that started them."""

    def __iter__(self) -> Any:
        """Batches of an epoch."""
        begun = self._iterator is not None
        with signals_held_back():
            batches: Any = super().__iter__()
        if self.num_workers and not begun:
            for worker in batches._workers:
                worker.terminate = worker.kill  # SIGTERM, by which torch ends it, never arrives
            atexit.register(_end_workers, weakref.ref(batches))  # before Python waits for them
        return batches


def _end_workers(batches: "weakref.ref[Any]") -> None:
    """Tell the processes of an iteration that it is over."""
    if (found := batches()) is not None:
        found._shutdown_workers()


def training_loader(
    dataset: CropDataset,
    batch_size: int,
    sampler: CropSampler,
    num_workers: int = 1,
    workers: str = "spawn",
) -> DataLoader:
    """Batches of samples, made ahead; the samples are the same whoever makes them.

    Args:
        dataset: of samples.
        batch_size: samples per batch.
        sampler: numbers of an epoch's samples.
        num_workers: that make samples while the network trains; 0: it waits for each.
        workers: "spawn": processes, each with its own copy of what it keeps in memory; "threads":
            of this process, which start at once and share what is kept.

    Raises:
        InputError: ``workers`` is neither, or ``num_workers`` is no whole number from 0 on.
    """
    if workers not in WORKERS:
        raise InputError(f"workers must be 'spawn' or 'threads', got {workers!r}.")
    if whole_number(num_workers, 0, "num_workers") and workers == "threads":
        return ThreadLoader(dataset, batch_size, sampler, num_workers)
    return SpawnLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        multiprocessing_context="spawn" if num_workers else None,  # TensorStore and fork: a hang
        persistent_workers=num_workers > 0,
        worker_init_fn=_begin_worker,
    )


def _begin_worker(number: int) -> None:
    """What a worker process does first."""
    share_arenas()
    worker_init_fn(number)
