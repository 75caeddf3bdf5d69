"""What every loss has in common: masks that hold exactly, precision, components, checks."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from custom.channels import ChannelLayout
from custom.distributed import joint
from custom.errors import InputError

NEEDED_OUTPUT = {
    "affinities": "'affinities_lsds' or 'affinities'",
    "lsds": "'affinities_lsds'",
    "classes": "'labels'",
}
"""Values of ``output_type`` with which a network has such channels."""


class LossTerm(nn.Module, ABC):
    """One number for a prediction and its target, channels as in ``ChannelLayout``.

    What is masked out contributes exactly 0 to the value and to the gradient, even where prediction
    or target is not finite; where nothing counts, both are 0. Computed in float32, under autocast
    too; in float64 for float64 predictions. The batch is that of all processes together: each gets
    the same value, see ``custom.distributed.joint``.

    Args:
        layout: of the channels.
        needs: the property of ``layout`` that must not be empty: a key of ``NEEDED_OUTPUT``.
        factor: the loss is so many times the term's value.

    Attributes:
        components: the value of the last call by name, without factor and detached.

    Raises:
        InputError: the network has no such channels; the factor is not a number from 0 on. On
            call, ``ValueError``: the tensors do not have the channels of ``layout``, or differ in
            size.
    """

    name: str

    def __init__(self, layout: ChannelLayout, needs: str, factor: float = 1.0) -> None:
        super().__init__()
        refuse_missing(layout, needs, type(self).__name__)
        self.layout = layout
        self.factor = in_range(factor, "factor", type(self).__name__)
        self.components: dict[str, Tensor] = {}

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Loss of ``prediction`` (B, outputs, D, H, W), logits, against ``target``."""
        layout = self.layout
        expected = (prediction.shape[0], layout.num_targets, *prediction.shape[2:])
        if prediction.shape[1] != layout.num_outputs or tuple(target.shape) != expected:
            raise ValueError(
                f"prediction must be (B, {layout.num_outputs}, D, H, W) and target "
                f"(B, {layout.num_targets}, D, H, W) of the same size, got "
                f"{tuple(prediction.shape)} and {tuple(target.shape)}"
            )
        with torch.autocast(prediction.device.type, enabled=False):
            dtype = torch.promote_types(prediction.dtype, torch.float32)
            value = self.value(prediction.to(dtype), target.to(dtype))
        self.components = {self.name: value.detach()}
        return self.factor * value

    @abstractmethod
    def value(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The term, without its factor; of float32 or float64 tensors that fit the layout."""

    def counted(self, target: Tensor, boundary_weighted: bool) -> tuple[Tensor, Tensor]:
        """Where targets are valid, and the weight there: the target's or 1; 0 elsewhere."""
        valid = target[:, self.layout.valid] > 0
        weight = target[:, self.layout.weight] if boundary_weighted else target.new_ones(())
        return valid, torch.where(valid, weight, 0.0)


def ratio(amount: Tensor, count: Tensor) -> Tensor:
    """``amount / count``, 0 where nothing counts; each one number, summed over all processes."""
    summed, counted = joint(torch.stack([amount, count.to(amount.dtype)])).unbind()
    return summed / torch.where(counted > 0, counted, 1)


def focused(each: Tensor, log_miss: Tensor, gamma: float) -> Tensor:
    """Focal form of a cross entropy: times ``miss ** gamma``, with a finite gradient at 0.

    Args:
        each: cross entropy.
        log_miss: logarithm of 1 minus the probability of the truth, same shape.
        gamma: 0 for the cross entropy itself.
    """
    return each * torch.exp(gamma * log_miss) if gamma else each


def tversky(
    probability: Tensor, truth: Tensor, weight: Tensor, alpha: float, beta: float, smooth: float
) -> Tensor:
    """One minus the Tversky index of every channel, over the whole batch of all processes.

    Args:
        probability: (B, C, D, H, W), finite.
        truth: likewise, 0 to 1.
        weight: of voxels, broadcast; 0 where nothing counts.
        alpha: weight of false positives.
        beta: weight of false negatives.
        smooth: added to both sides of the fraction.

    Returns:
        (C,).
    """
    voxels = (0, *range(2, probability.ndim))
    true_positive = (weight * probability * truth).sum(voxels)
    false_positive = (weight * probability * (1 - truth)).sum(voxels)
    false_negative = (weight * (1 - probability) * truth).sum(voxels)
    sums = joint(torch.stack([true_positive, false_positive, false_negative]))
    both, false_positive, false_negative = sums.unbind()
    return 1 - (both + smooth) / (both + alpha * false_positive + beta * false_negative + smooth)


def refuse_missing(layout: ChannelLayout, needs: str, loss: str) -> None:
    """Refuse a loss of channels that the network does not have."""
    channels: slice = getattr(layout, needs)
    if channels.stop > channels.start:
        return
    raise InputError(
        f"loss: {loss} needs {needs}, which the network does not predict with output_type "
        f"'{layout.output_type}': set output_type to {NEEDED_OUTPUT[needs]}, or choose another "
        "loss, such as cross_entropy of configs/losses.json"
    )


def in_range(value: float, what: str, loss: str, low: float = 0.0, high: float = inf) -> float:
    """A finite number from ``low`` to ``high``."""
    if type(value) in (int, float) and low <= value <= high and value < inf:
        return float(value)
    limit = f"from {low:g} on" if high == inf else f"from {low:g} to {high:g}"
    raise InputError(f"loss: {what} of {loss} must be a number {limit}, got {value!r}")


def positive_numbers(
    value: float | Sequence[float] | None, count: int, what: str, loss: str
) -> list[float] | None:
    """``count`` numbers above 0, from one for all of them or from a list."""
    if value is None:
        return None
    given: list[Any] = list(value) if isinstance(value, Sequence) else [value] * count
    if len(given) != count or not all(type(v) in (int, float) and 0 < v < inf for v in given):
        raise InputError(
            f"loss: {what} of {loss} must be one positive number or {count} of them, got {value!r}"
        )
    return [float(v) for v in given]
