"""daisy's server of a blockwise task, and what makes it give up."""

import socket
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import daisy
import daisy.logging
from daisy.block import BlockStatus
from daisy.server_observer import ServerObserver
from daisy.task_state import TaskState

from custom.blockwise.block_progress import BlockProgress
from custom.blockwise.clients import WorkerError
from custom.blockwise.outcomes import Outcome, run_in_order
from custom.blockwise.records import EndOfRunError, full_disk_as_end, record_loss
from custom.blockwise.tracked import Tracked
from custom.blockwise.workers import LocalWorker, log_of

LEAST_DEATHS = 3  # in a row, of workers that asked for no block, that end a run
LOSSES = 3  # of a block with its worker, which do not count as tries
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 20, "TCP_KEEPCNT": 6}  # seconds, seconds, times


def serve(tasks: Sequence[Tracked], stop: threading.Event) -> list[Outcome]:
    """Run tasks with worker processes; the process that calls is forked, and is their server.

    Args:
        tasks: prepared, in their order.
        stop: set to end all workers and return.

    Raises:
        EndOfRunError: no block can be processed, or no worker started.
    """
    daisy.logging.set_log_basedir(None)  # daisy refuses folders with "=" or ":", we have our own

    def serve_task(task: Tracked, progress: BlockProgress) -> TaskState:
        left = task.total_blocks - task.count_done()
        fitting = task.model_copy(update={"num_workers": min(task.num_workers, left)})
        server = BlockServer(fitting, stop)
        _Told(server, progress)
        with fitting.task() as blocks:
            return server.run_blockwise([blocks])[task.name]

    with full_disk_as_end():
        return run_in_order(tasks, lambda *one: TaskState() if stop.is_set() else serve_task(*one))


class BlockServer(daisy.Server):  # type: ignore[misc]  # daisy has no types
    """daisy's server, which also ends when it is told to, and when nothing can be done.

    Args:
        task: whose blocks it gives to workers.
        stop: set to end.
    """

    def __init__(self, task: Tracked, stop: threading.Event) -> None:
        local = isinstance(task.worker_config or LocalWorker(), LocalWorker)
        super().__init__(host="127.0.0.1" if local else None)
        self.task, self.stop = task, stop
        self._workers: set[int] = set()
        self._deaths, self._said = 0, ""
        self._losses: Counter[Any] = Counter()
        for listening in self.tcp_server._sockets.values():
            _keep_alive(listening)

    def _event_loop(self) -> None:
        """As daisy's; all workers are told to end at once, where daisy waits for one by one."""
        try:
            super()._event_loop()
        finally:
            for worker in self.worker_pools.worker_pools[self.task.name].workers.values():
                if worker.process is not None:
                    worker.process.terminate()

    def _check_for_lost_blocks(self) -> None:
        """What daisy does in every round of its loop, with a record; and our own checks."""
        for block in self.block_bookkeeper.get_lost_blocks():
            record_loss(self.task.meta_dir, block)
            self._forgive(block)
            block.status = BlockStatus.FAILED
            self._release_block(block)
        self._count_deaths()
        if self.stop.is_set():
            self.stop_event.set()

    def _forgive(self, block: daisy.Block) -> None:
        """A kill is no fault of the block; but one that its workers never survive must fail."""
        self._losses[block.block_id] += 1
        if self._losses[block.block_id] <= LOSSES:
            self.scheduler.task_queues[self.task.name].block_retries[block.block_id] -= 1

    def _count_deaths(self) -> None:
        now = set(self.worker_pools.worker_pools[self.task.name].workers)
        dead = self._workers - now
        self._workers = now
        self._deaths += len(dead)
        if dead and self._deaths >= max(LEAST_DEATHS, 2 * self.task.num_workers):
            log = log_of(self.task.meta_dir / "logs", max(dead))
            said = self._said or _last_line(log) or "nothing"
            raise EndOfRunError(
                f"{self._deaths} workers of '{self.task.name}' ended, one after the other, before "
                f"any had asked for a block; the last one said: {said}; see '{log}'"
            )

    def _handle_acquire_block(self, message: Any) -> None:
        self._deaths = 0
        super()._handle_acquire_block(message)

    def _handle_client_exception(self, message: Any) -> None:
        if isinstance(message.exception, WorkerError):
            self._said = str(message.exception)
        elif isinstance(message.exception, EndOfRunError):
            raise message.exception
        else:
            super()._handle_client_exception(message)


class _Told(ServerObserver):  # type: ignore[misc]
    """Tells a line of progress what a server does."""

    def __init__(self, server: daisy.Server, progress: BlockProgress) -> None:
        super().__init__(server)
        self.progress = progress

    def on_acquire_block(self, task_id: str, task_state: TaskState) -> None:
        """A block has begun."""
        self.progress.show(task_state)

    def on_release_block(self, task_id: str, task_state: TaskState) -> None:
        """A block has ended."""
        self.progress.show(task_state)


def _keep_alive(listening: socket.socket) -> None:
    """Notice within minutes when a worker's machine has vanished; accepted sockets inherit it."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _last_line(log: Any) -> str:
    """The last thing that a log says."""
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
