from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.optimizers import WarmupCosineSchedule
from torch.optim.lr_scheduler import ReduceLROnPlateau

from custom.after_validation import AfterValidation
from custom.checkpoints import SchedulePosition, load_checkpoint, save_atomically
from custom.early_stopping import EarlyStopping
from custom.errors import InputError
from custom.schedules import refuse_other_mode, step_schedule
from custom.scores import DICE, VOI, KeyMetric


def optimizer(rate: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)


def plateau(steps: torch.optim.Optimizer, **changes: Any) -> ReduceLROnPlateau:
    return ReduceLROnPlateau(steps, **{"factor": 0.5, "patience": 1, "threshold": 0.0, **changes})


def rates(
    scheduler: Any, scores: dict[int, float], epochs: int, key: KeyMetric = VOI, start: int = 0
) -> list[float]:
    """Learning rate after every epoch, with validations of these scores after some of them."""
    evaluator, trainer = Engine(lambda engine, batch: None), Engine(lambda engine, batch: None)
    found: list[float] = []

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate(engine: Engine) -> None:
        epoch = engine.state.epoch
        if epoch in scores:
            evaluator.state.epoch, evaluator.state.metrics = epoch, {key.name: scores[epoch]}

    AfterValidation(evaluator, key, scheduler, EarlyStopping(None, key)).attach(trainer)
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED,
        lambda engine: found.append(scheduler.optimizer.param_groups[0]["lr"]),
    )
    if start:
        trainer.state.epoch, trainer.state.max_epochs = start, epochs
        trainer.state.epoch_length, trainer.state.iteration = 1, start
    trainer.run([0], max_epochs=epochs)
    return found


SCORES = {1: 3.0, 2: 2.0, 3: 2.0, 5: 2.1, 6: 1.9, 8: 1.9, 9: 1.9, 10: 1.95}
EXPECTED = [0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05, 0.025, 0.025]


def test_a_plateau_counts_validations_without_a_better_score() -> None:
    """Not epochs; ``patience`` of them may pass before the rate falls."""
    assert rates(plateau(optimizer()), SCORES, 10) == pytest.approx(EXPECTED)


def test_a_score_that_grows_has_its_own_direction() -> None:
    grown = {epoch: -score for epoch, score in SCORES.items()}
    assert rates(plateau(optimizer(), mode="max"), grown, 10, DICE) == pytest.approx(EXPECTED)


@pytest.mark.parametrize(
    ("mode", "key", "wanted"), [("max", VOI, "lower the better.*'min'"), ("min", DICE, "higher")]
)
def test_a_mode_against_the_score_is_refused(mode: Any, key: KeyMetric, wanted: str) -> None:
    with pytest.raises(InputError, match=f"lr_scheduler follows {key.title}, the {wanted}"):
        refuse_other_mode(plateau(optimizer(), mode=mode), key)


def test_a_plateau_does_not_hear_of_steps() -> None:
    scheduler = plateau(optimizer())
    for _ in range(5):
        step_schedule(scheduler)
    assert rates(scheduler, SCORES, 10) == pytest.approx(EXPECTED)


def test_other_schedules_do_not_hear_of_scores() -> None:
    scheduler = WarmupCosineSchedule(optimizer(), warmup_steps=2, t_total=4)
    assert rates(scheduler, {1: 1.0, 2: 2.0}, 3) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("stopped", [3, 5, 6, 8, 9])
def test_a_plateau_that_is_taken_up_goes_on(tmp_path: Path, stopped: int) -> None:
    first = plateau(optimizer())
    rates(first, SCORES, stopped)
    state = {"position": SchedulePosition(first).state_dict()}
    save_atomically({**state, "optimizer": first.optimizer.state_dict()}, tmp_path / "last.pt")

    loaded = load_checkpoint(tmp_path / "last.pt")
    second = plateau(optimizer())
    second.optimizer.load_state_dict(loaded["optimizer"])
    SchedulePosition(second).load_state_dict(loaded["position"])
    assert rates(second, SCORES, 10, start=stopped) == pytest.approx(EXPECTED[stopped:])


def test_a_plateau_that_is_taken_up_has_the_patience_of_the_config() -> None:
    first = plateau(optimizer())
    rates(first, SCORES, 3)
    second = plateau(optimizer(), patience=7)
    SchedulePosition(second).load_state_dict(SchedulePosition(first).state_dict())
    assert rates(second, SCORES, 10, start=3) == [0.1] * 7
