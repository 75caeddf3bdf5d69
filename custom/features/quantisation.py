"""Features as int8: one scale per channel; arrays in, arrays out."""

import torch
from torch import Tensor

LARGEST = 127
CHANNELS_AT_ONCE = 32  # so few that their float32 values stay in the processor's cache


def largest(values: Tensor) -> Tensor:
    """Largest magnitude of every channel of (C, ...), (C,) float32."""
    return values.float().abs().flatten(1).amax(1)


def channel_scales(magnitudes: Tensor) -> Tensor:
    """Step of every channel, so that its largest magnitude becomes 127; (C,) float32.

    A channel that is zero everywhere has the step 1.
    """
    return torch.where(magnitudes > 0, magnitudes / LARGEST, 1.0)


def quantise(values: Tensor, scales: Tensor) -> Tensor:
    """(C, ...) float as int8: the nearest whole number of steps, at most 127 of them."""
    steps = values.float() / _along_channels(scales, values)
    return steps.round().clamp(-LARGEST, LARGEST).to(torch.int8)


def restore(steps: Tensor, scales: Tensor) -> Tensor:
    """(C, ...) int8 as float16; within half a step, and float16's rounding, of what it was."""
    values = torch.empty_like(steps, dtype=torch.float16)
    parts = (torch.split(tensor, CHANNELS_AT_ONCE) for tensor in (values, steps, scales))
    for value, some, scale in zip(*parts, strict=True):
        value.copy_(some * _along_channels(scale, some))
    return values


def _along_channels(scales: Tensor, values: Tensor) -> Tensor:
    return scales.view(-1, *[1] * (values.ndim - 1))
