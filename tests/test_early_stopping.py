import logging
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from torch.optim.lr_scheduler import ExponentialLR

from custom.after_validation import AfterValidation
from custom.early_stopping import EarlyStopping
from custom.errors import InputError
from custom.scores import DICE, VOI, KeyMetric

SCORES = {1: 3.0, 2: 2.0, 3: 2.0, 5: 2.1, 6: 1.9, 8: 1.9, 9: 2.0, 11: 1.95, 12: 1.0}


def trained(
    patience: int | None,
    scores: dict[int, float],
    key: KeyMetric = VOI,
    state: dict[str, Any] | None = None,
    start: int = 0,
) -> tuple[list[int], EarlyStopping]:
    """Epochs that ran of 14, and the handler; other handlers of an epoch come after it."""
    evaluator, trainer = Engine(lambda engine, batch: None), Engine(lambda engine, batch: None)
    stopping, seen = EarlyStopping(patience, key), []
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate(engine: Engine) -> None:
        epoch = engine.state.epoch
        if epoch in scores:
            evaluator.state.epoch, evaluator.state.metrics = epoch, {key.name: scores[epoch]}

    AfterValidation(evaluator, key, ExponentialLR(optimizer, 0.5), stopping).attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda e: seen.append(e.state.epoch))
    if state:
        stopping.load_state_dict(state)
        trainer.state.epoch, trainer.state.max_epochs = start, 14
        trainer.state.epoch_length, trainer.state.iteration = 1, start
    trainer.run([0], max_epochs=14)
    return seen, stopping


@pytest.mark.parametrize(("patience", "last"), [(1, 3), (2, 5), (3, 11), (4, 14), (None, 14)])
def test_training_ends_after_so_many_validations_without_a_better_score(
    patience: int | None, last: int
) -> None:
    seen, _ = trained(patience, SCORES)
    assert seen == list(range(1, last + 1))


def test_a_score_that_grows_has_its_own_direction() -> None:
    seen, _ = trained(3, {epoch: -score for epoch, score in SCORES.items()}, DICE)
    assert seen[-1] == 11


@pytest.mark.parametrize("stopped", [2, 3, 5, 6, 8, 10])
def test_a_training_that_is_taken_up_ends_where_it_would_have(stopped: int) -> None:
    _, first = trained(3, {e: s for e, s in SCORES.items() if e <= stopped})
    seen, _ = trained(3, SCORES, state=first.state_dict(), start=stopped)
    assert seen == list(range(stopped + 1, 12))


def test_a_training_that_has_ended_stays_so_until_patience_is_raised(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, ended = trained(2, SCORES)
    with caplog.at_level(logging.INFO):
        assert trained(2, SCORES, state=ended.state_dict(), start=5)[0] == []
    assert "stopped early after epoch 5: 2 validations without a better VOI than 2.000" in (
        caplog.text
    )
    assert trained(3, SCORES, state=ended.state_dict(), start=5)[0] == [6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("patience", [0, -1, 2.5, "3", True])
def test_another_patience_is_refused(patience: Any) -> None:
    with pytest.raises(InputError, match=r"early_stopping, if not null, must be a whole number"):
        EarlyStopping(patience, VOI)
