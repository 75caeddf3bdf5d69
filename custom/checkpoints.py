"""Checkpoints: all that a stopped training needs to go on."""

import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from ignite.engine import Engine, Events
from torch.optim.lr_scheduler import LRScheduler

from custom.errors import InputError
from custom.files import replacing

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

    Args:
        scheduler: stepped by a handler.
    """

    KEPT = ("last_epoch", "_step_count", "_last_lr")

    def __init__(self, scheduler: LRScheduler) -> None:
        self.scheduler = scheduler

    def state_dict(self) -> dict[str, Any]:
        """Steps so far and the last learning rates."""
        state = self.scheduler.state_dict()
        return {name: state[name] for name in self.KEPT}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the position of the run that is taken up."""
        position = {name: state[name] for name in self.KEPT}
        self.scheduler.load_state_dict({**self.scheduler.state_dict(), **position})


class TrainingCheckpoint:
    """Everything that training needs to go on, in one file, written at the end of every epoch.

    It is written at the start of a new training too: a ``model.pt`` without it beside it is the
    result of another training, and is not overwritten.

    Args:
        path: of the file.
        parts: by name, what is saved and restored: network, optimizer, schedule, history, best
            model.
    """

    def __init__(self, path: str, parts: Mapping[str, Stateful]) -> None:
        self.path = Path(path)
        self.parts = parts

    def attach(self, engine: Engine) -> None:
        """Save at the start and after every epoch."""
        engine.add_event_handler(Events.STARTED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        save_atomically({"epoch": engine.state.epoch, **state}, self.path)

    def resume(self, engine: Engine, iterations_per_epoch: int) -> None:
        """Restore all parts and the engine's epoch, if there is a checkpoint.

        Raises:
            InputError: the file is not such a checkpoint, or of another network; there is none, but
                the model of another training.
        """
        if not self.path.exists():
            self._refuse_other_model()
            return
        state = load_checkpoint(self.path)
        for name, part in self.parts.items():
            try:
                part.load_state_dict(state[name])
            except (KeyError, RuntimeError, ValueError, TypeError) as error:
                raise InputError(
                    f"checkpoint '{self.path}' does not fit this configuration "
                    f"({name}: {first_mismatch(error)}): go back to the one it was made with, or "
                    f"choose another model_dir to train anew."
                ) from error
        engine.state.epoch = state["epoch"]
        engine.state.iteration = state["epoch"] * iterations_per_epoch
        logger.info("going on after epoch %d from %s", state["epoch"], self.path)

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
