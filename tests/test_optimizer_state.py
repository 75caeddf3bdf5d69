"""A run that is taken up has the optimizer's memory and the configuration's settings."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau, StepLR

from custom.checkpoints import SchedulePosition
from custom.optimizer_state import OptimizerState

Made = tuple[torch.Tensor, torch.optim.Optimizer, LRScheduler]

SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], LRScheduler]] = {
    "steps": lambda optimizer: StepLR(optimizer, 2, 0.5),
    "one cycle, which moves betas too": lambda optimizer: OneCycleLR(optimizer, 0.3, 20),
    "plateau": lambda optimizer: ReduceLROnPlateau(optimizer, patience=0),
}


def made(schedule: str, **settings: Any) -> Made:
    weight = torch.tensor([3.0, -2.0], requires_grad=True)
    optimizer = torch.optim.AdamW([weight], **{"lr": 0.1, "weight_decay": 0.01, **settings})
    return weight, optimizer, SCHEDULES[schedule](optimizer)


def steps(made: Made, count: int) -> None:
    weight, optimizer, scheduler = made
    for _ in range(count):
        optimizer.zero_grad()
        (weight**4).sum().backward()
        optimizer.step()
        scheduler.step(*([1.0] if isinstance(scheduler, ReduceLROnPlateau) else []))


def taken_up(before: Made, now: Made, state: OptimizerState) -> Made:
    with torch.no_grad():
        now[0].copy_(before[0])
    renewed = OptimizerState(now[1])
    renewed.load_state_dict(state.state_dict())
    SchedulePosition(now[2]).load_state_dict(SchedulePosition(before[2]).state_dict())
    return now


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("count", [1, 3, 6])
def test_with_the_same_settings_nothing_changes(
    schedule: str, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    whole, cut = made(schedule), made(schedule)
    state = OptimizerState(cut[1])
    steps(whole, 10)
    steps(cut, count)
    again = taken_up(cut, made(schedule), state)
    steps(again, 10 - count)
    assert torch.equal(again[0], whole[0])
    assert caplog.text == ""


def test_changed_settings_count_from_there_on_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = made("steps")
    state = OptimizerState(before[1])
    steps(before, 3)
    _, optimizer, _ = taken_up(before, made("steps", lr=0.2, weight_decay=0.5), state)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (pytest.approx(0.2 / 2), 0.5)
    assert optimizer.state[group["params"][0]]["step"] == 3
    assert "lr of the optimizer is 0.2 now, 0.1 before" in caplog.text
    assert "weight_decay of the optimizer is 0.5 now, 0.01 before" in caplog.text


def test_a_checkpoint_without_settings_is_that_of_its_groups() -> None:
    before = made("steps")
    steps(before, 3)
    _, optimizer, _ = made("steps", lr=0.4)
    OptimizerState(optimizer).load_state_dict(before[1].state_dict())
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4 / 2)


def test_another_optimizer_is_refused() -> None:
    _, optimizer, _ = made("steps")
    sgd = torch.optim.SGD(optimizer.param_groups[0]["params"], lr=0.1)
    with pytest.raises(ValueError, match="trained with AdamW, not SGD"):
        OptimizerState(sgd).load_state_dict(OptimizerState(optimizer).state_dict())
