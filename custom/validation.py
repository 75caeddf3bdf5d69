"""When a training is validated."""

from typing import Any

from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.handlers import ValidationHandler


class Validation(ValidationHandler):
    """MONAI's handler, which also validates after the last epoch, whatever the interval.

    The evaluator learns the trainer's iteration, see ``trained_iterations``.

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

    def __call__(self, engine: Engine) -> None:
        """Validate."""
        assert self.validator is not None  # given to the constructor
        self.validator.state.trained_iterations = engine.state.iteration
        super().__call__(engine)


def trained_iterations(evaluator: Engine) -> int:
    """The trainer's iteration when this validation began; 0 where none has trained."""
    state: Any = evaluator.state
    return getattr(state, "trained_iterations", 0)


def validations_left(epoch: int, epochs: int, interval: int) -> int:
    """Validations of a training from this epoch on, its own included.

    Args:
        epoch: from 1 on.
        epochs: of the whole training.
        interval: epochs between validations; the last epoch is validated in any case.
    """
    at_interval = epochs // interval - (epoch - 1) // interval
    return max(0, at_interval) + (epochs % interval != 0 and epoch <= epochs)
