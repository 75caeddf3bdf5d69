"""Schedules of the learning rate: those that count steps, and those that follow a score."""

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from custom.errors import InputError
from custom.scores import KeyMetric


def step_schedule(scheduler: LRScheduler) -> None:
    """Move on by a step of the optimizer; one that follows a score waits for validation."""
    if not isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step()


def show_score(scheduler: LRScheduler, score: float) -> None:
    """Move on by a validation, where the schedule follows a score."""
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(score)


def refuse_other_mode(scheduler: LRScheduler, key: KeyMetric) -> None:
    """A schedule that follows a score must know which direction is the better one.

    Raises:
        InputError: it takes the other one.
    """
    mode = "max" if key.higher_is_better else "min"
    if getattr(scheduler, "mode", mode) != mode:
        raise InputError(
            f"lr_scheduler follows {key.title}, the {'higher' if mode == 'max' else 'lower'} the "
            f"better: set lr_scheduler#mode to '{mode}'."
        )
