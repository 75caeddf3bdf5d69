"""Curves of training over its steps: losses, learning rate, gradients, speed, memory."""

from typing import Any

from ignite.engine import Engine, Events
from torch import nn

from custom.distributed import world_size
from custom.json_fields import whole_number
from custom.memory_use import memory_mib
from custom.step_timing import StepTimes, StepTiming
from custom.step_values import StepMeans, loss_weights, step_values
from custom.tensorboard import TensorBoard


class StepCurves:
    """Points on TensorBoard's curves every so many steps, and for speed and memory every epoch.

    ``steps/<name>``: means of ``step_values`` and the figures of ``StepTimes`` over the steps since
    the last point; ``speed/<name>``: these figures of an epoch; ``memory/<name>_mib``: see
    ``memory_mib``; ``loss_weights/<name>``: factors of the loss's components.

    Attach to the trainer after what else runs at the end of a step.

    Args:
        writer: TensorBoard.
        loss: its components are shown.
        interval: steps between points.
        timing: of the trainer's steps; attached here.

    Raises:
        InputError: ``interval`` is no whole number from 1 on.
    """

    def __init__(
        self,
        writer: TensorBoard,
        loss: nn.Module,
        interval: int = 10,
        timing: StepTiming | None = None,
    ) -> None:
        self.writer = writer
        self.loss = loss
        self.interval = whole_number(interval, 1, "log_interval")
        self.timing = timing or StepTiming()
        self.means = StepMeans()
        self._shown = self._epoch = StepTimes()

    def attach(self, engine: Engine) -> None:
        """Run after every step and every epoch."""
        self.timing.attach(engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._complete)

    def __call__(self, engine: Engine) -> None:
        """Take in a step; draw a point when it is due."""
        self.means.add(step_values(engine, self.loss))
        state: Any = engine.state
        if state.iteration % self.interval:
            return
        since = self.timing.total - self._shown
        self._shown = self.timing.total
        values = self.means.take() | since.figures(world_size())
        points = {f"steps/{name}": value for name, value in values.items()}
        self.writer.add_scalars(points | self._memory(engine), state.iteration)

    def _complete(self, engine: Engine) -> None:
        figures = (self.timing.total - self._epoch).figures(world_size())
        self._epoch = self.timing.total
        points = {f"speed/{name}": value for name, value in figures.items()}
        points |= {f"loss_weights/{name}": v for name, v in loss_weights(self.loss).items()}
        if engine.state.iteration % self.interval:  # else a point is there already
            points |= self._memory(engine)
        self.writer.add_scalars(points, engine.state.iteration)

    def _memory(self, engine: Engine) -> dict[str, float]:
        used = memory_mib(getattr(engine.state, "device", "cpu"))
        return {f"memory/{name}_mib": mib for name, mib in used.items()}
