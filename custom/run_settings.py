"""What TensorBoard's page HPARAMS compares trainings by."""

from collections.abc import Mapping

from ignite.engine import Engine, Events

from custom.history import History
from custom.scores import KeyMetric
from custom.tensorboard import TensorBoard


class RunSettings:
    """Settings of a training, and the best score so far as the curve ``best/<score>``.

    Attach to the trainer after the history.

    Args:
        writer: TensorBoard.
        settings: numbers and texts, from ``compared_settings``.
        history: has the scores.
        key: the score that counts.
    """

    def __init__(
        self,
        writer: TensorBoard,
        settings: Mapping[str, str | float],
        history: History,
        key: KeyMetric,
    ) -> None:
        self.writer = writer
        self.settings = settings
        self.history = history
        self.key = key

    def attach(self, engine: Engine) -> None:
        """Tell the settings when training begins, the best score after every validation."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    @property
    def _curve(self) -> str:
        return f"best/{self.key.name}"

    def _begin(self) -> None:
        self.writer.add_settings(self.settings, {self._curve: 0.0})

    def __call__(self, engine: Engine) -> None:
        """Draw a point, if this epoch was validated."""
        best = self.history.best(self.key)
        if best is not None and self.key.name in self.history.entries[-1]:
            self.writer.add_scalars({self._curve: best[self.key.name]}, engine.state.iteration)
