"""The processes of a run; without torchrun it is alone."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

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


def collected(mine: Mapping[str, Value]) -> dict[str, Value]:
    """What all processes have by name; every process calls it.

    In the order in which names were dealt out, one to each process in turn. A name that several
    have is there once.
    """
    if world_size() == 1:
        return dict(mine)
    turns = zip_longest(*gathered([list(mine.items())]))
    return dict(item for turn in turns for item in turn if item is not None)


def total(tensor: Tensor) -> Tensor:
    """The sum over all processes, a new tensor without a gradient; every process calls it."""
    summed = tensor.detach().clone()
    if world_size() > 1:
        distributed.all_reduce(summed)
    return summed


def any_rank(claim: bool) -> bool:
    """Whether a claim is true in any of the processes; every process calls it."""
    return bool(total(torch.tensor(int(claim))) > 0)


def joint(tensor: Tensor) -> Tensor:
    """The sum over all processes, with a gradient; every process calls it.

    For sums that a loss is made of. The loss computed from them is that of the batches of all
    processes together, the same number in each, and the mean of the processes' gradients, which is
    what DistributedDataParallel takes, is its gradient: each process computes ``world_size`` times
    the part that its own batch has in it.
    """
    if world_size() == 1:
        return tensor
    summed: Tensor = _Joint.apply(tensor)  # type: ignore[no-untyped-call]  # torch leaves it open
    return summed


class _Joint(torch.autograd.Function):
    """``joint`` of several processes."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        """The sum."""
        return total(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """As many times the gradient as there are processes: their mean is taken later."""
        return gradients[0] * world_size()


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()
