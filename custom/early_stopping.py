"""When a training no longer gets better."""

from collections.abc import Mapping
from typing import Any

from custom.json_fields import whole_number
from custom.scores import KeyMetric


class EarlyStopping:
    """Counts validations without a better score, until training is to end.

    MONAI's ``EarlyStopHandler`` takes the trainer and belongs among the evaluator's handlers, which
    the trainer's validation handler holds: a circle, which JSON cannot say.

    Args:
        patience: the config's ``early_stopping``: so many in a row; None to train to the last
            epoch.
        key: the score.

    Raises:
        InputError: ``patience`` is neither None nor a whole number from 1 on.
    """

    def __init__(self, patience: int | None, key: KeyMetric) -> None:
        if patience is not None:
            whole_number(patience, 1, "early_stopping, if not null,")
        self.patience = patience
        self.key = key
        self.best = key.worst
        self.without_better = 0

    def add(self, score: float) -> None:
        """Take in a validation."""
        if self.key.better(score, self.best):
            self.best, self.without_better = score, 0
        else:
            self.without_better += 1

    @property
    def reason(self) -> str | None:
        """Why training is to end; None as long as it is not."""
        if self.patience is None or self.without_better < self.patience:
            return None
        return (
            f"{self.without_better} validations without a better {self.key.title} than "
            f"{self.best:.3f}; raise early_stopping ({self.patience}) to go on"
        )

    def state_dict(self) -> dict[str, Any]:
        """The best score and the validations since, for the checkpoint."""
        return {"best": self.best, "without_better": self.without_better}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Those of the run that is taken up."""
        self.best, self.without_better = state["best"], state["without_better"]
