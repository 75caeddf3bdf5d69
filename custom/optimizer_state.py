"""An optimizer for the checkpoint: what it has gathered is restored, its settings are not."""

import logging
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

logger = logging.getLogger(__name__)

Settings = dict[str, Any]


class OptimizerState:
    """What an optimizer has gathered, beside settings that remain those of the configuration.

    torch restores settings too: a learning rate or weight decay that is changed for a run that is
    taken up would be ignored in silence. Here the new value counts from there on, and the log says
    so. A learning rate in the middle of its schedule is scaled by the change.

    Args:
        optimizer: before its first step.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.settings = [_settings(group) for group in optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's, and the settings that its run began with."""
        return {**self.optimizer.state_dict(), "settings": self.settings, "kind": self._kind}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what was gathered, and with the configuration's settings.

        Raises:
            ValueError: it was gathered by another optimizer.
        """
        given = dict(state)
        if (kind := given.pop("kind", self._kind)) != self._kind:
            raise ValueError(f"trained with {kind}, not {self._kind}")
        settings = given.pop("settings", None) or [_settings(g) for g in given["param_groups"]]
        self.optimizer.load_state_dict(given)
        for group, before, now in zip(
            self.optimizer.param_groups, settings, self.settings, strict=True
        ):
            _renew_(group, before, now)

    @property
    def _kind(self) -> str:
        return type(self.optimizer).__name__


def _settings(group: Mapping[str, Any]) -> Settings:
    """Settings of parameters, the learning rate before its schedule."""
    found = {key: value for key, value in group.items() if key not in ("params", "initial_lr")}
    return {**found, "lr": group.get("initial_lr", group["lr"])}


def _renew_(group: Settings, before: Settings, now: Settings) -> None:
    """Give a group the settings that have changed; others may be what a schedule made of them."""
    changed = [key for key in now if key in before and before[key] != now[key]]
    for key in changed:
        logger.warning("%s of the optimizer is %s now, %s before", key, now[key], before[key])
        if key == "lr" and before["lr"]:
            group["lr"] = group["lr"] * now["lr"] / before["lr"]
            group["initial_lr"] = now["lr"]
        else:
            group[key] = now[key]
