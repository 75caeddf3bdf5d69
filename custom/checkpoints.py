"""Checkpoints: all that a stopped training needs to go on."""

import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from custom.distributed import is_writer
from custom.errors import InputError
from custom.files import replacing
from custom.json_fields import whole_number
from custom.network_weights import load_weights_into

logger = logging.getLogger(__name__)


class Stateful(Protocol):
    """What a checkpoint can hold."""

    def state_dict(self) -> Any:
        """All that is needed to go on."""

    def load_state_dict(self, state: Any) -> Any:
        """Go on from there."""


class SchedulePosition:
    """How far a learning-rate schedule has come, for the checkpoint; its form is the config's.

    A scheduler's own state dict holds its form too, such as the length of a cosine: restored, it
    would overrule ``epochs`` and ``learning_rate`` of the run that goes on.

    Where epochs have become longer or shorter, by new volumes, more processes or
    ``accumulation_steps``, and the schedule with them, it goes on after as many epochs as before.

    Args:
        scheduler: stepped by the training step, or by validation's score.
        steps_per_epoch: of the optimizer; None: not known, so that every epoch counts as alike.
    """

    KEPT = ("last_epoch", "_step_count", "_last_lr", "best", "num_bad_epochs", "cooldown_counter")
    LENGTH = ("t_total", "total_steps")  # of warm-up with cosine, and of one cycle

    def __init__(self, scheduler: LRScheduler, steps_per_epoch: int | None = None) -> None:
        self.scheduler = scheduler
        self.steps_per_epoch = steps_per_epoch

    def state_dict(self) -> dict[str, Any]:
        """Steps so far and the last learning rates; of a plateau, what it waits for."""
        state = self.scheduler.state_dict()
        kept = {name: state[name] for name in self.KEPT if name in state}
        return {**kept, "length": self._length, "steps_per_epoch": self.steps_per_epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the position of the run that is taken up.

        Raises:
            ValueError: only one of the two schedules follows a score.
        """
        form = self.scheduler.state_dict()
        if ("best" in form) != ("best" in state):
            raise ValueError("one follows the score of validation, the other counts steps")
        position = {name: state[name] for name in self.KEPT if name in form}
        before, now = state.get("steps_per_epoch"), self.steps_per_epoch
        if before and now and before != now and state.get("length") != self._length:
            position["last_epoch"] = round(position["last_epoch"] * now / before)
            logger.warning(
                "an epoch has %d steps of the optimizer now, not %d: the schedule goes on at step "
                "%d of %s",
                *(now, before, position["last_epoch"], self._length),
            )
        self.scheduler.load_state_dict({**form, **position})

    @property
    def _length(self) -> int | None:
        """Steps of the whole schedule, of one that has an end."""
        return next((n for name in self.LENGTH if (n := getattr(self.scheduler, name, 0))), None)


class TrainingCheckpoint:
    """Everything that training needs to go on, in one file.

    It is written at the start of a new training, too: a ``model.pt`` without it beside it is the
    result of another training, and is not overwritten. Then, while an epoch runs::

        |---s---s---s---s-|s vvv s|---s---s---s---s-|s|---    |: epoch, s: saved, v: validation

    Args:
        path: of the file.
        parts: by name, what is saved and restored: network, optimizer, schedule, history, best
            model.
        interval: batches between two saves inside an epoch; None: it is saved at the ends alone.
        accumulation_steps: batches that make one step of the optimizer; the file is written only
            between two steps.
        val_interval: epochs between validations, before which the file is written, too.

    Raises:
        InputError: the interval is no whole number from 1 on.
    """

    def __init__(
        self,
        path: str,
        parts: Mapping[str, Stateful],
        interval: int | None = None,
        accumulation_steps: int = 1,
        val_interval: int = 1,
    ) -> None:
        self.path = Path(path)
        self.parts = parts
        self.interval = None if interval is None else whole_number(interval, 1, "save_interval")
        self.accumulation_steps = accumulation_steps
        self.val_interval = val_interval
        self._saved = 0

    def attach(self, engine: Engine) -> None:
        """Save inside epochs and at their ends."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_batch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save at the end of an epoch, when all is done that belongs to it."""
        self.save(engine, engine.state.epoch)

    def _after_batch(self, engine: Engine) -> None:
        state, since = engine.state, engine.state.iteration - self._saved
        due = self.interval is not None and since >= self.interval
        if self._last_of_epoch(engine):
            due = state.epoch % self.val_interval == 0 or state.epoch == state.max_epochs
        if due and self.between_steps(engine):
            self.save(engine, state.epoch - 1)

    def between_steps(self, engine: Engine) -> bool:
        """Whether the optimizer has made its step of the last batch, so that all can be saved."""
        done = _batches_of_epoch(engine)
        return done % self.accumulation_steps == 0 or self._last_of_epoch(engine)

    def _last_of_epoch(self, engine: Engine) -> bool:
        return _batches_of_epoch(engine) == engine.state.epoch_length

    def save(self, engine: Engine, epochs: int) -> None:
        """Write the file, in the process that writes.

        Args:
            engine: the trainer.
            epochs: that have come to their end, validation and all.
        """
        self._saved = engine.state.iteration
        if not is_writer():
            return
        position = {"epoch": epochs, "iteration": engine.state.iteration}
        state = {name: part.state_dict() for name, part in self.parts.items()}
        save_atomically(
            {**position, "iterations_per_epoch": engine.state.epoch_length, **state}, self.path
        )

    def resume(self, engine: Engine, iterations_per_epoch: int) -> int:
        """Restore all parts and the engine's position, if there is a checkpoint; else write one.

        Returns:
            Batches that the epoch under way has had already. If these are all, the end of that
            epoch is still to come, though the engine counts it as done.

        Raises:
            InputError: the file is not such a checkpoint, or of another network; there is none, but
                the model of another training.
        """
        if not self.path.exists():
            self._refuse_other_model()
            self.save(engine, 0)
            return 0
        state = load_checkpoint(self.path)
        self._restore(state)
        epochs, batches = state["epoch"], self._batches_since(state, iterations_per_epoch)
        engine.state.epoch = epochs + batches // iterations_per_epoch
        engine.state.iteration = self._saved = epochs * iterations_per_epoch + batches
        logger.info(
            "going on after epoch %d, batch %d of the next, from %s", epochs, batches, self.path
        )
        return batches

    def _restore(self, state: Mapping[str, Any]) -> None:
        for name in ("epoch", *self.parts):
            if name not in state:
                raise self._refusal(f"it has no '{name}'")
        for name, part in self.parts.items():
            try:
                if isinstance(part, nn.Module):
                    load_weights_into(part, state[name])
                else:
                    part.load_state_dict(state[name])
            except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
                raise self._refusal(f"{name}: {first_mismatch(error)}") from error

    def _refusal(self, reason: str) -> InputError:
        return InputError(
            f"checkpoint '{self.path}' does not fit this configuration ({reason}): go back to the "
            f"one it was made with, or choose another model_dir to train anew."
        )

    def _batches_since(self, state: Mapping[str, Any], iterations_per_epoch: int) -> int:
        """Batches of the epoch that was under way; it begins anew where epochs are others now."""
        before = state.get("iterations_per_epoch") or iterations_per_epoch
        batches = int(state.get("iteration", state["epoch"] * before) - state["epoch"] * before)
        if before == iterations_per_epoch or not batches:
            in_group = batches % self.accumulation_steps  # of steps that had fewer batches
            return batches if batches == before else batches - in_group
        logger.warning(
            "an epoch has %d batches now, not %d: the one under way begins anew",
            iterations_per_epoch,
            before,
        )
        return 0

    def _refuse_other_model(self) -> None:
        model = self.path.with_name("model.pt")
        if model.exists():
            raise InputError(
                f"model_dir '{self.path.parent}' holds model.pt, but no {self.path.name} to go on "
                f"from: choose another model_dir, or move the model away to train anew."
            )


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content; only tensors and plain values are ever loaded.

    Raises:
        InputError: the file cannot be read as such.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler met
        raise InputError(
            f"checkpoint '{path}' is damaged or not a checkpoint ({type(error).__name__}): restore "
            f"it, or choose another model_dir to train anew."
        ) from error
    if not isinstance(state, dict):
        raise InputError(
            f"checkpoint '{path}' is not a checkpoint: restore it, or choose another model_dir to "
            f"train anew."
        )
    return state


def first_mismatch(error: BaseException) -> str:
    """The first of a message's lines that says something in particular, for one sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    found = next((line for line in lines if not line.endswith(":")), type(error).__name__)
    return found.rstrip(".")


def save_atomically(state: Mapping[str, Any], path: Path) -> None:
    """``torch.save`` that leaves either the old or the whole new file."""
    with replacing(path) as part:
        part.write_bytes(state_bytes(state))


def state_bytes(state: Mapping[str, Any]) -> bytes:
    """What ``torch.save`` writes; its own errors do not say that a disk is full."""
    content = io.BytesIO()
    torch.save(dict(state), content)
    return content.getvalue()


def _batches_of_epoch(engine: Engine) -> int:
    """Batches that the running epoch has had."""
    state: Any = engine.state
    return int(state.iteration - (state.epoch - 1) * state.epoch_length)
