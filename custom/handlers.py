"""What happens around training steps: clipping, validation, history, progress."""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator, IterationEvents
from monai.handlers import ValidationHandler
from numpy.typing import NDArray
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from custom.files import write_atomically
from custom.scores import KeyMetric


class GradientClipping:
    """Scale gradients down to a largest norm, before the optimizer's step.

    Args:
        network: its parameters' gradients are clipped.
        max_norm: largest L2 norm of all gradients together.
    """

    def __init__(self, network: nn.Module, max_norm: float) -> None:
        self.network = network
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        """Run after every backward pass."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Clip."""
        nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)


class TensorBoard:
    """Curves and pictures for TensorBoard; nothing is written before there is something to write.

    Args:
        log_dir: folder of the event files.
    """

    def __init__(self, log_dir: str) -> None:
        self.log_dir = log_dir
        self._writer: SummaryWriter | None = None

    def add_scalars(self, values: Mapping[str, float], epoch: int) -> None:
        """One point on each of several curves."""
        for name, value in values.items():
            self._open().add_scalar(name, value, epoch)
        self._open().flush()

    def add_image(self, name: str, image: NDArray[np.uint8], epoch: int) -> None:
        """An image (H, W, 3)."""
        self._open().add_image(name, image, epoch, dataformats="HWC")
        self._open().flush()

    def _open(self) -> SummaryWriter:
        if self._writer is None:
            self._writer = SummaryWriter(self.log_dir)
        return self._writer


class Validation(ValidationHandler):
    """MONAI's handler, which also validates after the last epoch, whatever the interval.

    Args:
        interval: epochs between validations.
        validator: the evaluator.
    """

    def __init__(self, interval: int, validator: Evaluator) -> None:
        super().__init__(interval, validator, epoch_level=True)

    def attach(self, engine: Engine) -> None:
        """Run after every ``interval`` epochs and after the last one."""

        def due(engine: Engine, epoch: int) -> bool:
            return epoch % self.interval == 0 or epoch == engine.state.max_epochs

        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=due), self)


class History:
    """One line per epoch: losses and validation scores, as JSON, in TensorBoard and in the log.

    Attach to the trainer after the validation handler, so that an epoch's scores are there.

    Args:
        path: JSON file, a list with one mapping per epoch: ``epoch``, ``train_loss``, the loss's
            components, ``lr``, and after a validation its scores.
        loss: its ``components`` are logged.
        optimizer: its learning rate is logged.
        writer: TensorBoard.
        evaluator: its metrics are logged in epochs with a validation.
    """

    def __init__(
        self,
        path: str,
        loss: nn.Module,
        optimizer: torch.optim.Optimizer,
        writer: TensorBoard,
        evaluator: Engine,
    ) -> None:
        self.path = Path(path)
        self.loss = loss
        self.optimizer = optimizer
        self.writer = writer
        self.evaluator = evaluator
        self.entries: list[dict[str, Any]] = []
        self._sums: dict[str, float] = defaultdict(float)
        self._steps = 0

    def attach(self, engine: Engine) -> None:
        """Add up every step, write every epoch."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _add(self, engine: Engine) -> None:
        self._steps += 1
        self._sums["train_loss"] += _loss(engine)
        for name, value in getattr(self.loss, "components", {}).items():
            self._sums[f"loss_{name}"] += value.item()

    def __call__(self, engine: Engine) -> None:
        """Write the epoch."""
        epoch = engine.state.epoch
        entry = {name: total / self._steps for name, total in self._sums.items()}
        entry["lr"] = self.optimizer.param_groups[0]["lr"]
        if self.evaluator.state.epoch == epoch:
            entry |= {name: float(v) for name, v in self.evaluator.state.metrics.items()}
        self.writer.add_scalars(entry, epoch)
        self._sums.clear()
        self._steps = 0
        self.entries.append({"epoch": epoch, **entry})
        self.write()

    def write(self) -> None:
        """Write all entries."""
        write_atomically(self.path, json.dumps(self.entries, indent=1).encode())

    def state_dict(self) -> dict[str, Any]:
        """Entries so far, for the checkpoint."""
        return {"entries": self.entries}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Entries of the run that is taken up."""
        self.entries = list(state["entries"])


def _loss(engine: Engine) -> float:
    """Loss of the trainer's last step."""
    output: Any = engine.state.output
    return float(output["loss"].detach())


class TrainingProgress:
    """A progress bar over all steps of training with loss, validation score and time left.

    Attach to the trainer.

    Args:
        evaluator: its last score is shown.
        key: which score.
    """

    def __init__(self, evaluator: Engine, key: KeyMetric) -> None:
        self.evaluator = evaluator
        self.key = key
        self.bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        """Start with training, end with it, however it ends."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED | Events.EXCEPTION_RAISED, self._end)

    def _start(self, engine: Engine) -> None:
        if self.bar is None:
            state: Any = engine.state
            total = state.max_epochs * state.epoch_length
            self.bar = tqdm(total=total, initial=state.iteration, unit="step", desc="training")

    def __call__(self, engine: Engine) -> None:
        """Advance."""
        assert self.bar is not None
        self._describe(self.bar, engine)
        self.bar.update()

    def _describe(self, bar: tqdm, engine: Engine) -> None:
        """The figures behind the bar, drawn with its next step or its end."""
        shown = {"epoch": engine.state.epoch, "loss": f"{_loss(engine):.3f}"}
        if (name := self.key.name) in self.evaluator.state.metrics:
            shown[name] = f"{self.evaluator.state.metrics[name]:.3f}"
        bar.set_postfix(shown, refresh=False)

    def _end(self, engine: Engine, error: BaseException | None = None) -> None:
        if self.bar is not None:
            if error is None and self.bar.n > self.bar.initial:
                # the last validation came after the last step
                self._describe(self.bar, engine)
            self.bar.close()
            self.bar = None
        if error is not None:
            raise error
