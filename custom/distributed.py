"""The processes of a run; without torchrun it is alone."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import distributed

Value = TypeVar("Value")


def rank() -> int:
    """Number of this process, from 0 on."""
    return distributed.get_rank() if _together() else 0


def world_size() -> int:
    """Number of processes."""
    return distributed.get_world_size() if _together() else 1


def is_writer() -> bool:
    """Whether this process is the one that writes files, log lines, bars and pictures."""
    return rank() == 0


def gathered(values: Sequence[Value]) -> list[Value]:
    """The values of all processes, in the order of their ranks; every process calls it."""
    if world_size() == 1:
        return list(values)
    parts: list[Any] = [None] * world_size()
    distributed.all_gather_object(parts, list(values))
    return [value for part in parts for value in part]


def total(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all processes, a new tensor without a gradient; every process calls it."""
    summed = tensor.detach().clone()
    if world_size() > 1:
        distributed.all_reduce(summed)
    return summed


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()
