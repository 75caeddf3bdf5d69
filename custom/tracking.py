"""What MONAI's experiment tracking (``--tracking mlflow``) asks of a trainer."""

from typing import Any

from ignite.engine import Engine, Events


class ListedOutput:
    """Give a step's output the form of a decollated one, a list of dictionaries.

    MONAI's own settings of MLflow read the loss of such a list, and fail on a dictionary.
    Attach to the trainer as the last of its handlers: MONAI appends the tracking one.
    """

    def attach(self, engine: Engine) -> None:
        """Run after every step."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Put the output into a list."""
        state: Any = engine.state
        state.output = [state.output]
