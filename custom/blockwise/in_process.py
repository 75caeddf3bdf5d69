"""A blockwise task in this process: its blocks one after the other, or by threads."""

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import daisy
from daisy.scheduler import Scheduler
from daisy.task_state import TaskState

from custom.blockwise.block_progress import BlockProgress
from custom.blockwise.tracked import Tracked

Submit = Callable[[Callable[[daisy.Block], None], daisy.Block], "Future[None]"]


def process_here(task: Tracked, progress: BlockProgress) -> TaskState:
    """Process all blocks of a task, ``threads`` at a time.

    Args:
        task: prepared.
        progress: is told of every block.

    Returns:
        What became of them.

    Raises:
        EndOfRunError: of a block.
    """
    with task.task(multiprocessing=False) as blocks:
        scheduler = Scheduler([blocks])
        if task.threads == 1:
            _process_all(blocks, scheduler, progress, 1, _at_once)
        else:
            with ThreadPoolExecutor(task.threads) as threads:
                _process_all(blocks, scheduler, progress, task.threads, threads.submit)
    return scheduler.task_states[task.name]


def _process_all(
    blocks: daisy.Task, scheduler: Scheduler, progress: BlockProgress, width: int, submit: Submit
) -> None:
    """Keep ``width`` blocks under way until there are none left."""
    name = blocks.task_id
    running: dict[Future[None], daisy.Block] = {}
    progress.show(scheduler.task_states[name])
    while True:
        while len(running) < width and (block := scheduler.acquire_block(name)) is not None:
            running[submit(blocks.process_function, block)] = block
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            block = running.pop(future)
            future.result()
            scheduler.release_block(block)
            progress.show(scheduler.task_states[name])


def _at_once(function: Callable[[daisy.Block], None], block: daisy.Block) -> Future[None]:
    """Call a function in this thread, which a signal reaches."""
    function(block)
    finished: Future[None] = Future()
    finished.set_result(None)
    return finished
