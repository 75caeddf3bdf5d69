"""Functions run by two processes that know of each other, over gloo."""

import os
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
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
    with TemporaryDirectory() as folder:
        return _in_two(partial(_joined, function), str(Path(folder) / "store"), *arguments)


def begun_in_two(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Likewise, of processes that torchrun has begun, and that have not met yet."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return _in_two(partial(_begun, function), str(port), *arguments)


def _in_two(function: Callable[..., Any], place: str, *arguments: Any) -> list[Any]:
    context = get_context("forkserver")  # modules are imported once for all calls
    context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(SIZE, context) as pool:
        calls = [pool.submit(_called, function, rank, place, arguments) for rank in range(SIZE)]
        return [call.result(timeout=600) for call in calls]


def _called(function: Callable[..., Any], rank: int, place: str, arguments: tuple[Any, ...]) -> Any:
    torch.set_num_threads(1)
    try:
        return function(rank, place, *arguments)
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _joined(function: Callable[..., Any], rank: int, place: str, *arguments: Any) -> Any:
    method = f"file://{place}"
    distributed.init_process_group("gloo", init_method=method, rank=rank, world_size=SIZE)
    return function(*arguments)


def _begun(function: Callable[..., Any], rank: int, place: str, *arguments: Any) -> Any:
    os.environ |= {
        **dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)),
        **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(SIZE)),
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": place},
    }
    return function(*arguments)
