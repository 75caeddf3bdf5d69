"""Steps whose loss or gradient is not finite: skipped, counted, and named."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from custom import distributed
from custom.errors import InputError
from custom.json_fields import whole_number

logger = logging.getLogger(__name__)

SHOWN = 8  # samples that a message names


class NonFiniteSteps:
    """What becomes of steps that cannot be taken.

    Args:
        limit: the config's ``max_non_finite_steps``: so many in a row end the training.

    Attributes:
        total: steps that were skipped.
        in_row: those since the last that was taken.

    Raises:
        InputError: ``limit`` is no whole number from 1 on.
    """

    def __init__(self, limit: int) -> None:
        self.limit = whole_number(limit, 1, "max_non_finite_steps")
        self.total = self.in_row = 0

    def skip(self, iteration: int, cause: str) -> None:
        """Count a step that is skipped.

        Args:
            iteration: its number.
            cause: what is not finite, in which samples.

        Raises:
            InputError: it is one too many in a row.
        """
        self.total += 1
        self.in_row += 1
        if self.in_row >= self.limit:
            raise InputError(
                f"training stops at step {iteration}, as {self.in_row} in a row were skipped "
                f"(max_non_finite_steps) since their loss or gradient was not finite, here "
                f"{cause}: check raw and labels there, or lower learning_rate."
            )
        if distributed.is_writer():
            logger.warning("step %d is skipped: %s", iteration, cause)

    def take(self) -> None:
        """Note a step that is taken."""
        self.in_row = 0

    def state_dict(self) -> dict[str, int]:
        """Counts, for the checkpoint."""
        return {"total": self.total, "in_row": self.in_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Counts of the run that is taken up."""
        self.total, self.in_row = state["total"], state["in_row"]


def cause_in_loss(
    loss: Tensor, components: Mapping[str, Tensor], batch: Mapping[str, Any], prediction: Tensor
) -> str:
    """What of a loss that is not finite is to blame, in which samples, on all processes.

    Every process calls it, also one whose own loss is finite.

    Args:
        loss: of this process.
        components: of the loss.
        batch: collated samples.
        prediction: of the network, (B, C, D, H, W).
    """
    parts = {f"loss component '{n}'": v for n, v in components.items()}
    parts["the loss"] = loss.detach()
    broken = [f"{n} is {float(v)}" for n, v in parts.items() if not bool(torch.isfinite(v))]
    suspects = sample_names(batch, _suspects(batch, prediction))
    names = distributed.gathered(suspects) or distributed.gathered(sample_names(batch))
    return f"{distributed.gathered(broken[:1])[0]} in {listed(names)}"


def cause_in_gradient(network: nn.Module, names: Sequence[str]) -> str:
    """Which parameter's gradient is not finite, and the samples of the step, on all processes.

    Args:
        network: after the backward pass.
        names: of this process's samples.
    """
    found = [
        name.removeprefix("module.")  # of DistributedDataParallel
        for name, parameter in network.named_parameters()
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
    ]
    what = f"the gradient of '{found[0]}' is not finite" if found else "the gradient overflows"
    return f"{what} in {listed(distributed.gathered(names))}"


def sample_names(batch: Mapping[str, Any], places: Sequence[int] | None = None) -> list[str]:
    """Number, volume and offset of samples, as ``CropDataset`` gives them.

    Args:
        batch: collated samples.
        places: of the samples in it; None for all.
    """
    chosen = range(_size(batch)) if places is None else places
    if "sample_number" not in batch:
        return [f"number {place + 1} of the batch" for place in chosen]
    numbers, offsets = batch["sample_number"].tolist(), batch["sample_offset"].tolist()
    return [
        f"{numbers[i]} (volume '{batch['sample_volume'][i]}', offset {offsets[i]})" for i in chosen
    ]


def listed(names: Sequence[str]) -> str:
    """Samples in a sentence, not too many."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{'sample' if len(names) == 1 else 'samples'} {', '.join(names[:SHOWN])}{more}"


def _suspects(batch: Mapping[str, Any], prediction: Tensor) -> list[int]:
    """Samples that are not finite themselves; else those whose prediction, or label, is not."""
    size = _size(batch)
    inputs = [v for k, v in batch.items() if k != "label" and _of_samples(v, size)]
    for values in (inputs, [prediction], [batch.get("label")]):
        broken = [i for i in range(size) if any(_not_finite(v, i) for v in values)]
        if broken:
            return broken
    return []


def _not_finite(value: Tensor | None, place: int) -> bool:
    """Whether a sample's part of a tensor is not finite."""
    return value is not None and not bool(torch.isfinite(value[place]).all())


def _of_samples(value: object, size: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == size


def _size(batch: Mapping[str, Any]) -> int:
    return len(batch["image"])
