"""How far a training has come, for the one who watches it."""

from typing import Any

from ignite.engine import Engine, Events
from tqdm import tqdm

from custom.scores import KeyMetric
from custom.step_values import last_loss


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
        shown = {"epoch": engine.state.epoch, "loss": f"{last_loss(engine):.3f}"}
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
