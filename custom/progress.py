"""How far a training has come, for the one who watches it."""

import logging
import sys
import time
from collections import deque
from datetime import timedelta
from typing import Any

from ignite.engine import Engine, Events
from tqdm import tqdm

from custom.distributed import is_writer
from custom.scores import KeyMetric
from custom.step_timing import Clock
from custom.step_values import last_loss
from custom.validation import validations_left

logger = logging.getLogger(__name__)

RECENT = 100  # steps, whose mean time is that of the steps to come
WARM_UP = 2  # steps after a start, which wait for workers, compilation and allocation
ENOUGH = 2  # steps after these, from which there is a time left
SECONDS_BETWEEN_LINES = 60.0
FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


class TrainingProgress:
    """One line with all steps of training, loss, validation score and time left.

    A bar on a terminal; elsewhere, such as in a log file, a line of the log every minute. The time
    left has the validations to come in it, as long as the last one took; before there was one, it
    begins with ">". The first ``WARM_UP`` steps after a start do not count for it, and it is not
    shown until ``ENOUGH`` others are done.

    Attach to the trainer. Only one of several processes shows it.

    Args:
        evaluator: its last score is shown.
        key: which score.
        val_interval: epochs between validations.
        clock: seconds from any moment on.
    """

    def __init__(
        self,
        evaluator: Engine,
        key: KeyMetric,
        val_interval: int = 1,
        clock: Clock = time.monotonic,
    ) -> None:
        self.evaluator = evaluator
        self.key = key
        self.val_interval = val_interval
        self.clock = clock
        self.bar: tqdm | None = None
        self._steps: deque[float] = deque(maxlen=RECENT)
        self._warming = WARM_UP
        self._validation: float | None = None
        self._ticked = self._said = 0.0

    def attach(self, engine: Engine) -> None:
        """Start with training, end with it, however it ends."""
        if not is_writer():
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED | Events.EXCEPTION_RAISED, self._end)
        self.evaluator.add_event_handler(Events.STARTED, self._tick)
        self.evaluator.add_event_handler(Events.COMPLETED, self._time_validation)

    def _tick(self) -> None:
        self._ticked = self.clock()

    def _time_validation(self) -> None:
        self._validation = self.clock() - self._ticked

    def _start(self, engine: Engine) -> None:
        if self.bar is None:
            state: Any = engine.state
            self.bar = tqdm(
                total=state.max_epochs * state.epoch_length,
                initial=state.iteration,
                desc="training",
                bar_format=FORMAT,
                dynamic_ncols=True,
                disable=not sys.stderr.isatty(),
            )
            self._said = float("-inf")
            self._warming = WARM_UP
        self._tick()

    def __call__(self, engine: Engine) -> None:
        """Advance."""
        assert self.bar is not None
        now = self.clock()
        if self._warming:
            self._warming -= 1
        else:
            self._steps.append(now - self._ticked)
        self._ticked = now
        self.bar.set_postfix_str(self._figures(engine), refresh=False)
        self.bar.update()
        if self.bar.disable and now - self._said >= SECONDS_BETWEEN_LINES:
            self._say(engine)
            self._said = now

    def _say(self, engine: Engine) -> None:
        state: Any = engine.state
        steps = f"step {state.iteration} of {state.max_epochs * state.epoch_length}"
        logger.info("%s, %s", steps, self._figures(engine))

    def _figures(self, engine: Engine) -> str:
        """Such as "epoch 3, loss 0.512, voi 1.234, 0:12:34 left"."""
        shown = [f"epoch {engine.state.epoch}", f"loss {last_loss(engine):.3f}"]
        if (name := self.key.name) in self.evaluator.state.metrics:
            shown.append(f"{name} {self.evaluator.state.metrics[name]:.3f}")
        if (left := self._left(engine)) is not None:
            shown.append(f"{left} left")
        return ", ".join(shown)

    def _left(self, engine: Engine) -> str | None:
        """Time to the end of training; None while too few steps were timed."""
        state: Any = engine.state
        steps = state.max_epochs * state.epoch_length - state.iteration
        validations = validations_left(state.epoch, state.max_epochs, self.val_interval)
        validations -= self.evaluator.state.epoch == state.epoch  # that of this epoch is done
        if steps and len(self._steps) < ENOUGH:
            return None
        seconds = steps * sum(self._steps) / max(1, len(self._steps))
        known = self._validation is not None or not validations
        seconds += validations * (self._validation or 0.0)
        return ("" if known else ">") + str(timedelta(seconds=round(seconds)))

    def _end(self, engine: Engine, error: BaseException | None = None) -> None:
        if self.bar is not None:
            if (
                error is None and self._warming < WARM_UP
            ):  # the last validation came after the last step
                self.bar.set_postfix_str(self._figures(engine), refresh=False)
                if self.bar.disable:
                    self._say(engine)
            self.bar.close()
            self.bar = None
        if error is not None:
            raise error
