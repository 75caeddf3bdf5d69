"""How long an epoch is, and where the optimizer steps within it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

from custom.json_fields import whole_number
from custom.live import FeatureVolume


@dataclass(frozen=True)
class Group:
    """A batch's part in the step of the optimizer that it counts towards.

    Args:
        begins: it is the first.
        ends: it is the last; the optimizer steps.
        size: how many batches the step has.
    """

    begins: bool
    ends: bool
    size: int


def group_of(iteration: int, epoch_length: int, accumulation_steps: int) -> Group:
    """The group of a batch; epochs begin with a new one, so their last may be smaller.

    Args:
        iteration: number of the batch, counted from 1 over all epochs.
        epoch_length: batches of an epoch.
        accumulation_steps: batches of a group.
    """
    place = (iteration - 1) % epoch_length
    within = place % accumulation_steps
    size = min(accumulation_steps, epoch_length - (place - within))
    return Group(within == 0, within == size - 1, size)


def optimizer_steps(epochs: int, epoch_length: int, accumulation_steps: int = 1) -> int:
    """Steps of the optimizer in a whole training, and so the length of its schedule.

    Raises:
        InputError: an argument is no whole number from 1 on.
    """
    whole_number(accumulation_steps, 1, "accumulation_steps")
    return whole_number(epochs, 1, "epochs") * ceil(epoch_length / accumulation_steps)


def epoch_length(
    iterations: int | None,
    volumes: Sequence[FeatureVolume],
    crop_size: Sequence[int],
    batch_size: int,
    processes: int = 1,
) -> int:
    """Batches of an epoch, in each process.

    Args:
        iterations: the config's ``iterations_per_epoch``; None for one pass: as many crops as
            fill the training volumes, rounded up to whole batches of all processes.
        volumes: of the training, each with its copies.
        crop_size: (D, H, W).
        batch_size: crops per batch.
        processes: that train together, each with batches of its own.

    Raises:
        InputError: ``iterations`` is neither None nor a whole number from 1 on.
    """
    if iterations is not None:
        return whole_number(iterations, 1, "iterations_per_epoch, if not null,")
    crops = sum(prod(volume.shape) for volume in volumes) / prod(crop_size)
    return max(1, ceil(crops / (batch_size * processes)))
