"""Functions run by two processes that know of each other, over gloo."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import distributed

SIZE = 2
PRELOADED = ["tests.processes", "tests.test_scores", "custom.losses", "custom.datasets"]


def in_two(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What a function returns in each of two processes, in the order of their ranks.

    Args:
        function: of a module's top level; ``rank()`` tells it which process it is in.
        arguments: the same for both.
    """
    context = get_context("forkserver")  # modules are imported once for all calls
    context.set_forkserver_preload(PRELOADED)
    with TemporaryDirectory() as folder, ProcessPoolExecutor(SIZE, context) as pool:
        store = str(Path(folder) / "store")
        calls = [pool.submit(_called, function, rank, store, arguments) for rank in range(SIZE)]
        return [call.result(timeout=120) for call in calls]


def _called(function: Callable[..., Any], rank: int, store: str, arguments: tuple[Any, ...]) -> Any:
    torch.set_num_threads(1)
    method = f"file://{store}"
    distributed.init_process_group("gloo", init_method=method, rank=rank, world_size=SIZE)
    try:
        return function(*arguments)
    finally:
        distributed.destroy_process_group()
