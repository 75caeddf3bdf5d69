"""A step of training, as MONAI's ``iteration_update``."""

from collections.abc import Mapping
from typing import Any

from monai.engines import IterationEvents, SupervisedTrainer
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

Batch = Mapping[str, Tensor]


class TrainingStep:
    """Forward, loss, backward, clipping, and a step of the optimizer and of its schedule.

    Given to MONAI's ``SupervisedTrainer`` as ``iteration_update``; it fires the same events at the
    same places as the trainer's own. ``engine.state.step_info`` says of the last step:
    ``gradient_norm`` (before clipping) and ``lr``.

    Args:
        max_gradient_norm: largest L2 norm of all gradients together.
        scheduler: of the learning rate; goes on by one after every step of the optimizer.
    """

    def __init__(self, max_gradient_norm: float, scheduler: LRScheduler) -> None:
        self.max_gradient_norm = max_gradient_norm
        self.scheduler = scheduler

    def __call__(self, engine: SupervisedTrainer, batch: Batch) -> dict[str, Any]:
        """One batch.

        Returns:
            ``image``, ``label``, ``pred`` and ``loss``, as the trainer's own.
        """
        self._forward(engine, batch)
        info = {"lr": float(engine.optimizer.param_groups[0]["lr"])}
        engine.optimizer.zero_grad()
        engine.state.output[Keys.LOSS].backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        norm = nn.utils.clip_grad_norm_(engine.network.parameters(), self.max_gradient_norm)
        engine.optimizer.step()
        self.scheduler.step()
        engine.state.step_info = info | {"gradient_norm": float(norm)}
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        output: dict[str, Any] = engine.state.output
        return output

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
