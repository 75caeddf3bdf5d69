"""The average of a network's weights over the steps of its training."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from custom.errors import InputError


class AveragedNetwork:
    """Exponential moving average (EMA) of a network's weights, for validation and ``model.pt``.

    After step n, counted from 1, every weight is ``d_n average + (1 - d_n) weight`` with
    ``d_n = min(decay, n / (n + 9))``: the first steps, of weights that are still random, are soon
    forgotten. The average begins as the network itself. Floating buffers (running statistics of
    batch normalisation) are averaged alike, counters are copied.

    Args:
        network: that is trained; what is inside ``DistributedDataParallel`` counts.
        decay: largest ``d_n``, above 0 and below 1, such as 0.999; None for no average.

    Attributes:
        network: the average, in evaluation mode; without a decay, the trained network itself.

    Raises:
        InputError: another decay.
    """

    def __init__(self, network: nn.Module, decay: float | None = None) -> None:
        if isinstance(network, DistributedDataParallel):
            network = network.module
        self.trained = self.network = network
        self.decay = None if decay is None else _checked(decay)
        self.updates = 0
        if self.decay is not None:
            self.network = deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights that a step has led to."""
        if self.decay is None:
            return
        self.updates += 1
        share = 1 - min(self.decay, self.updates / (self.updates + 9))
        _move_(self.network.parameters(), self.trained.parameters(), share)
        _move_(self.network.buffers(), self.trained.buffers(), share)

    def state_dict(self) -> dict[str, Any]:
        """The average and its number of steps, for the checkpoint; empty without a decay."""
        if self.decay is None:
            return {}
        return {"updates": self.updates, "weights": self.network.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The average of the run that is taken up, after its network.

        One that had none begins anew, at the network's weights. The average stays the same object:
        validation and the best model have it already.
        """
        if self.decay is None:
            return
        self.network.load_state_dict(state["weights"] if state else self.trained.state_dict())
        self.updates = state["updates"] if state else 0


def _checked(decay: float) -> float:
    if type(decay) is float and 0 < decay < 1:
        return decay
    raise InputError(
        f"ema_decay must be null or a number above 0 and below 1, such as 0.999, got {decay!r}"
    )


def _move_(averages: Any, values: Any, share: float) -> None:
    """Move averages towards values by a share of the way; whole numbers are copied."""
    for average, value in zip(averages, values, strict=True):
        if average.is_floating_point():
            average.lerp_(value, share)
        else:
            average.copy_(value)
