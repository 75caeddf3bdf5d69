"""A step of training, as MONAI's ``iteration_update``."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from math import inf
from typing import Any

import torch
from monai.engines import IterationEvents, SupervisedTrainer
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler

from custom import distributed
from custom.determinism import explained
from custom.ema import AveragedNetwork
from custom.epochs import Group, group_of
from custom.errors import InputError
from custom.json_fields import whole_number
from custom.non_finite import NonFiniteSteps, cause_in_gradient, cause_in_loss, sample_names
from custom.schedules import step_schedule
from custom.target_shares import target_shares

Batch = Mapping[str, Any]


class TrainingStep:
    """Forward, loss, backward; after a group of batches clipping and a step of the optimizer.

    Given to MONAI's ``SupervisedTrainer`` as ``iteration_update``; it fires the same events at the
    same places as the trainer's own. The gradient of a group is the mean of its batches'. A step
    of the optimizer is followed by one of the schedule and one of the average of the weights.

    A group with a loss or a gradient that is not finite is skipped: weights, buffers, optimizer,
    schedule and average stay as they were. A gradient that overflows in float16 while its loss is
    scaled is what the scaler looks for, and does not count towards the limit.

    ``engine.state.step_info`` says of the last batch: ``lr``, ``target_shares`` if the loss has a
    layout, and, where a group ends, ``skipped`` (0 or 1) and, if it was taken, ``gradient_norm``
    (before clipping) and with float16 ``loss_scale``.

    Args:
        max_gradient_norm: largest L2 norm of all gradients together; None for any.
        scheduler: of the learning rate; goes on by one after every step of the optimizer.
        scaler: of the loss, for float16; None for no scale.
        accumulation_steps: batches of a group.
        averaged: takes in every step's weights.
        max_non_finite_steps: as in ``NonFiniteSteps``.

    Raises:
        InputError: a number is out of range.
    """

    def __init__(
        self,
        max_gradient_norm: float | None,
        scheduler: LRScheduler,
        scaler: GradScaler | None = None,
        accumulation_steps: int = 1,
        averaged: AveragedNetwork | None = None,
        max_non_finite_steps: int = 10,
    ) -> None:
        self.max_gradient_norm = checked_norm(max_gradient_norm)
        self.scheduler = scheduler
        self.scaler = scaler or GradScaler(enabled=False)
        self.accumulation_steps = whole_number(accumulation_steps, 1, "accumulation_steps")
        self.averaged = averaged
        self.non_finite = NonFiniteSteps(max_non_finite_steps)
        self._cause: str | None = None  # of what the group is skipped for
        self._samples: list[str] = []
        self._buffers: list[Tensor] = []

    def __call__(self, engine: SupervisedTrainer, batch: Batch) -> dict[str, Any]:
        """One batch.

        Returns:
            ``image``, ``label``, ``pred`` and ``loss``, as the trainer's own.

        Raises:
            InputError: too many steps in a row are not finite.
        """
        group = self.group(engine)
        if group.begins:
            self._begin(engine)
        info = {"lr": float(engine.optimizer.param_groups[0]["lr"])}
        with _no_sync(engine.network, group), explained():
            self._forward(engine, batch)
            self._backward(engine, batch, group)
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if layout := getattr(engine.loss_function, "layout", None):
            info |= target_shares(engine.state.output[Keys.LABEL], layout)
        engine.state.step_info = info | (self._update(engine) if group.ends else {})
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        output: dict[str, Any] = engine.state.output
        return output

    def group(self, engine: SupervisedTrainer) -> Group:
        """The group of the engine's last batch."""
        state: Any = engine.state
        return group_of(state.iteration, state.epoch_length, self.accumulation_steps)

    def state_dict(self) -> dict[str, Any]:
        """Scale of the loss and counts of what was skipped, for the checkpoint."""
        return {"scaler": self.scaler.state_dict(), "non_finite": self.non_finite.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Those of the run that is taken up; one of another precision had no such scale."""
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.non_finite.load_state_dict(state["non_finite"])

    def _begin(self, engine: SupervisedTrainer) -> None:
        engine.optimizer.zero_grad()
        self._cause, self._samples = None, []
        self._buffers = [buffer.clone() for buffer in engine.network.buffers()]

    def _forward(self, engine: SupervisedTrainer, batch: Batch) -> None:
        """Put image, label, prediction and loss into the engine's output."""
        prepared = engine.prepare_batch(
            batch, engine.state.device, engine.non_blocking, **engine.to_kwargs
        )
        image, label, args, kwargs = prepared if len(prepared) == 4 else (*prepared, (), {})
        engine.state.output = {Keys.IMAGE: image, Keys.LABEL: label}
        engine.network.train()
        prediction = engine.inferer(image, engine.network, *args, **kwargs)
        engine.state.output[Keys.PRED] = prediction
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.state.output[Keys.LOSS] = engine.loss_function(prediction, label).mean()
        engine.fire_event(IterationEvents.LOSS_COMPLETED)

    def _backward(self, engine: SupervisedTrainer, batch: Batch, group: Group) -> None:
        """Add the batch's share to the gradient, unless the group is skipped."""
        if self._cause is not None:
            return
        loss, prediction = engine.state.output[Keys.LOSS], engine.state.output[Keys.PRED]
        if distributed.total((~torch.isfinite(loss)).int()):  # all processes skip, or none
            components = getattr(engine.loss_function, "components", {})
            self._cause = cause_in_loss(loss, components, batch, prediction)
            return
        self._samples += sample_names(batch)
        self.scaler.scale(loss / group.size if group.size > 1 else loss).backward()

    def _update(self, engine: SupervisedTrainer) -> dict[str, float]:
        """Step, or skip the step."""
        if self._cause is not None:
            return self._skip(engine, self._cause)
        self.scaler.unscale_(engine.optimizer)
        parameters = [p for p in engine.network.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not torch.isfinite(norm):
            return self._skip_gradient(engine)
        if self.max_gradient_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.max_gradient_norm, norm)
        scale = {"loss_scale": self.scaler.get_scale()} if self.scaler.is_enabled() else {}
        self.scaler.step(engine.optimizer)
        self.scaler.update()
        step_schedule(self.scheduler)
        if self.averaged is not None:
            self.averaged.update()
        self.non_finite.take()
        return {"skipped": 0.0, "gradient_norm": float(norm), **scale}

    def _skip_gradient(self, engine: SupervisedTrainer) -> dict[str, float]:
        """Skip a step whose gradient is not finite."""
        scale = self.scaler.get_scale()
        self.scaler.update()
        if scale > 1 and self.scaler.get_scale() < scale:
            self._restore(engine)
            return {"skipped": 1.0, "loss_scale": scale}
        return self._skip(engine, cause_in_gradient(engine.network, self._samples))

    def _skip(self, engine: SupervisedTrainer, cause: str) -> dict[str, float]:
        self._restore(engine)
        self.non_finite.skip(engine.state.iteration, cause)
        return {"skipped": 1.0}

    @torch.no_grad()
    def _restore(self, engine: SupervisedTrainer) -> None:
        """Forget the group: its gradient, and what its forward passes left in buffers."""
        engine.optimizer.zero_grad()
        for buffer, before in zip(engine.network.buffers(), self._buffers, strict=True):
            buffer.copy_(before)


def checked_norm(value: float | None) -> float | None:
    """The config's ``max_gradient_norm``.

    Raises:
        InputError: neither None nor a number above 0.
    """
    if value is None or (type(value) in (int, float) and 0 < value < inf):
        return value
    raise InputError(f"max_gradient_norm must be null or a number above 0, got {value!r}")


def _no_sync(network: nn.Module, group: Group) -> AbstractContextManager[None]:
    """Inside a group processes keep their gradients to themselves; its last batch adds them up."""
    if isinstance(network, DistributedDataParallel) and not group.ends:
        found: AbstractContextManager[None] = network.no_sync()
        return found
    return nullcontext()
