"""What a training has come to, epoch by epoch."""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from custom.files import write_atomically
from custom.tensorboard import TensorBoard


class History:
    """One line per epoch: losses and validation scores, as JSON, in TensorBoard and in the log.

    Attach to the trainer after the validation handler, so that an epoch's scores are there.

    Args:
        path: JSON file, a list with one mapping per epoch: ``epoch``, ``train_loss``, the loss's
            components, ``lr``, and after a validation its scores, those of every volume as
            ``volume_scores``.
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
        self._sums["train_loss"] += last_loss(engine)
        for name, value in getattr(self.loss, "components", {}).items():
            self._sums[f"loss_{name}"] += value.item()

    def __call__(self, engine: Engine) -> None:
        """Write the epoch."""
        epoch = engine.state.epoch
        entry = {name: total / self._steps for name, total in self._sums.items()}
        entry["lr"] = self.optimizer.param_groups[0]["lr"]
        of_volumes = {}
        if (state := self.evaluator.state).epoch == epoch:
            entry |= {name: float(v) for name, v in state.metrics.items()}
            of_volumes = {"volume_scores": getattr(state, "volume_scores", {})}
        self.writer.add_scalars(entry, epoch)
        self._sums.clear()
        self._steps = 0
        self.entries.append({"epoch": epoch, **entry, **of_volumes})
        self.write()

    def write(self) -> None:
        """Write all entries."""
        write_atomically(self.path, json.dumps(self.entries, indent=1).encode())

    def state_dict(self) -> dict[str, Any]:
        """Entries so far, and the sums of the epoch under way, for the checkpoint."""
        return {"entries": self.entries, "sums": dict(self._sums), "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Entries and sums of the run that is taken up."""
        self.entries = list(state["entries"])
        self._sums = defaultdict(float, state.get("sums", {}))
        self._steps = state.get("steps", 0)


def last_loss(engine: Engine) -> float:
    """Loss of the trainer's last step."""
    output: Any = engine.state.output
    return float(output["loss"].detach())
