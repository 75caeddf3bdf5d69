"""What a training makes of its validations: learning rate, and early end."""

import logging
from typing import Any

from ignite.engine import Engine, Events
from torch.optim.lr_scheduler import LRScheduler

from custom.distributed import is_writer
from custom.early_stopping import EarlyStopping
from custom.schedules import refuse_other_mode, show_score
from custom.scores import KeyMetric

logger = logging.getLogger(__name__)


class AfterValidation:
    """Shows every validation's score to the schedule and to early stopping.

    A training that has been ended stays ended when it is taken up, until ``early_stopping`` is
    raised. Attach to the trainer after the validation handler.

    Args:
        evaluator: whose score counts.
        key: which score.
        scheduler: of the learning rate; only ``ReduceLROnPlateau`` listens.
        early_stopping: ends the training.

    Raises:
        InputError: the schedule's ``mode`` is not the score's direction.
    """

    def __init__(
        self,
        evaluator: Engine,
        key: KeyMetric,
        scheduler: LRScheduler,
        early_stopping: EarlyStopping,
    ) -> None:
        refuse_other_mode(scheduler, key)
        self.evaluator = evaluator
        self.key = key
        self.scheduler = scheduler
        self.early_stopping = early_stopping

    def attach(self, engine: Engine) -> None:
        """Look at the start, for a training that was ended, and after every epoch."""
        engine.add_event_handler(Events.STARTED, self._end_if_due)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Show the epoch's score, if it was validated."""
        state: Any = self.evaluator.state
        if state.epoch != engine.state.epoch:
            return
        score = float(state.metrics[self.key.name])
        show_score(self.scheduler, score)
        self.early_stopping.add(score)
        self._end_if_due(engine)

    def _end_if_due(self, engine: Engine) -> None:
        if reason := self.early_stopping.reason:
            if is_writer():
                logger.info("stopped early after epoch %d: %s", engine.state.epoch, reason)
            engine.terminate()
