import logging
import sys
from typing import Any
from unittest.mock import patch

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from torch import nn
from torch.utils.data import DataLoader

from custom.progress import TrainingProgress
from custom.scores import VOI
from custom.validation import Validation
from tests.test_step_timing import Clock

VALIDATION, STEP = 100, 7  # seconds


def progressing(
    *,
    fail: bool = False,
    start: int = 0,
    interval: int = 1,
    step_seconds: float = STEP,
    warm_up_seconds: float = 0,
) -> tuple[TrainingProgress, Engine]:
    """A trainer with validations, whose VOI is 2 - epoch / 2; time goes by the clock."""
    clock, warming = Clock(), iter([warm_up_seconds])

    def step(engine: Engine, batch: int) -> dict[str, torch.Tensor]:
        if fail:
            raise ZeroDivisionError("step")
        clock.now += step_seconds + next(warming, 0)
        return {"loss": torch.tensor(0.5, requires_grad=True)}

    def score(engine: Engine) -> None:
        clock.now += VALIDATION
        engine.state.metrics = {"voi": 2.0 - 0.5 * engine.state.epoch}

    data = DataLoader([{"image": torch.zeros(1), "label": torch.zeros(1)}])  # type: ignore[arg-type]
    evaluator = SupervisedEvaluator("cpu", data, nn.Identity(), decollate=False)
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, score)
    progress, trainer = TrainingProgress(evaluator, VOI, interval, clock), Engine(step)
    Validation(interval, evaluator).attach(trainer)
    progress.attach(trainer)
    if start:  # as a training that is taken up
        trainer.state.max_epochs, trainer.state.epoch_length = 3, 2
        trainer.state.epoch, trainer.state.iteration = start, 2 * start
    return progress, trainer


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("start", [0, 1])
def test_the_bar_counts_all_steps_of_all_epochs(
    capsys: pytest.CaptureFixture[str], start: int
) -> None:
    with patch.object(sys.stderr, "isatty", lambda: True):
        progress, trainer = progressing(start=start)
        trainer.run([0, 1], max_epochs=3)
    shown = capsys.readouterr().err
    assert "6/6" in shown
    assert f" {2 * start}/6 " in shown
    assert "epoch 3, loss 0.500, voi 0.500, 0:00:00 left" in shown
    assert "\n" not in shown.strip()
    assert progress.bar is None


def test_without_a_terminal_there_is_a_line_a_minute(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    _, trainer = progressing(step_seconds=25)
    with caplog.at_level(logging.INFO, "custom.progress"):
        trainer.run([0] * 8, max_epochs=1)
    assert [line.split(",")[0] for line in lines(caplog)] == [
        "step 1 of 8",
        "step 4 of 8",  # 75 seconds later
        "step 7 of 8",
        "step 8 of 8",  # the end
    ]
    assert capsys.readouterr().err == ""


def left(caplog: pytest.LogCaptureFixture, **settings: Any) -> list[str]:
    """Times left after every step, each step longer than a minute."""
    _, trainer = progressing(step_seconds=70, **settings)
    with caplog.at_level(logging.INFO, "custom.progress"):
        trainer.run([0, 1], max_epochs=3)
    return [line.split(", ")[-1] for line in lines(caplog)]


def clock_time(seconds: int) -> str:
    return f"0:{seconds // 60:02d}:{seconds % 60:02d}"


@pytest.mark.parametrize(
    ("interval", "to_come"),
    [
        (1, [2, 1, 1, 0]),  # validations, None: how long they take is not known
        (2, [None, 1, 1, 0]),
        (3, [None, None, None, 0]),
    ],
)
def test_the_time_left_has_the_validations_to_come_in_it(
    caplog: pytest.LogCaptureFixture, interval: int, to_come: list[int | None]
) -> None:
    expected = []
    for steps, validations in zip([2, 1, 0, 0], to_come, strict=True):
        time = clock_time(70 * steps + VALIDATION * (validations or 0))
        expected.append(f"{'>' if validations is None else ''}{time} left")
    assert left(caplog, interval=interval)[3:] == expected


def test_a_slow_first_step_is_no_part_of_the_time_left(caplog: pytest.LogCaptureFixture) -> None:
    shown = left(caplog, warm_up_seconds=6000)
    assert shown[0] == "loss 0.500"
    assert not any("left" in figure for figure in shown[:3])  # too early to tell
    assert shown[3] == f"{clock_time(2 * 70 + 2 * VALIDATION)} left"


def test_the_start_of_a_training_that_is_taken_up_does_not_count_either(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shown = left(caplog, start=1, warm_up_seconds=6000)
    assert shown[-2] == f"{clock_time(VALIDATION)} left"
    assert shown[-1] == "0:00:00 left"


def test_an_error_of_a_step_closes_the_bar_and_goes_on_its_way() -> None:
    progress, trainer = progressing(fail=True)
    with pytest.raises(ZeroDivisionError, match="step"):
        trainer.run([0, 1], max_epochs=3)
    assert progress.bar is None


def test_one_process_of_several_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    with patch("custom.progress.is_writer", return_value=False):
        progress, trainer = progressing()
        trainer.run([0, 1], max_epochs=3)
    assert progress.bar is None
    assert capsys.readouterr().err == ""
