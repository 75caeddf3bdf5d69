"""What a training has come to, epoch by epoch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from custom.distributed import is_writer
from custom.files import write_atomically
from custom.scores import KeyMetric
from custom.step_values import StepMeans, step_values
from custom.tensorboard import TensorBoard


class History:
    """One line per epoch: losses and validation scores, as JSON and in TensorBoard.

    Only what a training that is taken up ends with, too: nothing of speed or memory. Attach to the
    trainer after the validation handler, so that an epoch's scores are there.

    Args:
        path: JSON file, a list with one mapping per epoch: ``epoch``, the means of
            ``step_values``, ``lr`` of its end, and after a validation its scores, those of every
            volume as ``volume_scores``, and the chosen ``segmentation`` settings.
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
        self.means = StepMeans()

    def attach(self, engine: Engine) -> None:
        """Add up every step, write every epoch."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _add(self, engine: Engine) -> None:
        self.means.add(step_values(engine, self.loss))

    def __call__(self, engine: Engine) -> None:
        """Write the epoch."""
        entry = self.means.take() | {"lr": float(self.optimizer.param_groups[0]["lr"])}
        state: Any = self.evaluator.state
        validated = state.epoch == engine.state.epoch
        if validated:
            entry |= {name: float(v) for name, v in state.metrics.items()}
        self.writer.add_scalars(entry, engine.state.iteration)
        described = {"epoch": engine.state.epoch, **entry}
        if validated:
            kept = ("volume_scores", "segmentation")
            described |= {name: getattr(state, name) for name in kept if hasattr(state, name)}
        self.entries.append(described)
        self.write()

    def write(self) -> None:
        """Write all entries."""
        if is_writer():
            write_atomically(self.path, json.dumps(self.entries, indent=1).encode())

    def best(self, key: KeyMetric) -> dict[str, Any] | None:
        """The entry with the best score, the first of equals; None before a validation."""
        found: dict[str, Any] | None = None
        for entry in self.entries:
            if key.name in entry and (
                found is None or key.better(entry[key.name], found[key.name])
            ):
                found = entry
        return found

    def state_dict(self) -> dict[str, Any]:
        """Entries so far and the sums of the epoch that has begun, for the checkpoint."""
        return {"entries": self.entries, "means": self.means.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Entries and sums of the run that is taken up."""
        self.entries = list(state["entries"])
        self.means.load_state_dict(state.get("means", StepMeans().state_dict()))
