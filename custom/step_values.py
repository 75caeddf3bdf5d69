"""What there is to say of a training step, and means of it over many."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

from ignite.engine import Engine
from torch import nn

from custom.loss_terms import LossTerm
from custom.losses import SumOfLosses

COUNTED = {"skipped": "skipped_steps"}
"""Values of ``step_info`` that are added up, alike in all processes, and names of their sums."""

LAST = ("lr",)
"""Values of which the last one is shown."""


def step_values(engine: Engine, loss: nn.Module) -> dict[str, float]:
    """Loss, its components (``loss_<name>``) and ``step_info`` of the trainer's last step.

    Args:
        engine: the trainer.
        loss: with ``components``, if it has any.
    """
    state: Any = engine.state
    components = getattr(loss, "components", {})
    return {
        "train_loss": last_loss(engine),
        **{f"loss_{name}": float(value) for name, value in components.items()},
        **getattr(state, "step_info", {}),
    }


def last_loss(engine: Engine) -> float:
    """Loss of the trainer's last step."""
    output: Any = engine.state.output
    found = output[0] if isinstance(output, list) else output
    return float(found["loss"].detach())


def loss_weights(loss: nn.Module) -> dict[str, float]:
    """Factor of every component in the loss, by name."""
    terms = loss.terms.values() if isinstance(loss, SumOfLosses) else [loss]
    found = [term for term in terms if isinstance(term, LossTerm)]
    names = loss.terms if isinstance(loss, SumOfLosses) else [term.name for term in found]
    return {name: term.factor for name, term in zip(names, found, strict=True)}


class StepMeans:
    """Means of steps' values, which are the same in all processes of a run.

    Values that are not finite, such as the loss of a step that was skipped, do not count. Of the
    names in ``COUNTED`` there are sums, of those in ``LAST`` the last value.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, float]) -> None:
        """Take in a step."""
        for name, value in values.items():
            if not isfinite(value):
                continue
            self._sums[name] = value + (0.0 if name in LAST else self._sums.get(name, 0.0))
            self._counts[name] = 1 if name in LAST else self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Means since the last call."""
        found = {
            COUNTED.get(name, name): value if name in COUNTED else value / self._counts[name]
            for name, value in self._sums.items()
        }
        self._sums, self._counts = {}, {}
        return found

    def state_dict(self) -> dict[str, Any]:
        """What has been added so far, for the checkpoint."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])
