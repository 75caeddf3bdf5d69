from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events

from custom.step_timing import StepTimes, StepTiming

SHAPE = (2, 1, 3, 4, 5)  # 2 samples of 60 voxels


class Clock:
    """Moves on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Batches:
    """A loader whose n-th batch takes n seconds."""

    def __init__(self, clock: Clock, number: int) -> None:
        self.clock, self.number, self.seconds = clock, number, count(1)

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for _ in range(self.number):
            self.clock.now += next(self.seconds)
            yield {"image": torch.zeros(SHAPE)}


def trained(epochs: int, batches: int) -> StepTiming:
    """Steps of 8 seconds and validations of 1000."""
    clock = Clock()

    def step(engine: Engine, batch: Any) -> None:
        clock.now += 8

    def validate(engine: Engine) -> None:
        clock.now += 1000

    trainer, timing = Engine(step), StepTiming(clock)
    timing.attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, validate)
    trainer.run(Batches(clock, batches), max_epochs=epochs)
    return timing


def test_steps_and_waits_are_added_up_without_what_lies_between_epochs() -> None:
    total = trained(epochs=2, batches=3).total
    waited = 1 + 2 + 3 + 4 + 5 + 6
    assert total == StepTimes(6, 12, 12 * 60, 6 * 8.0 + waited, waited)
    assert total.data_wait_share == waited / (48 + waited)


def test_figures_are_of_what_lies_between_two_moments() -> None:
    before, after = StepTimes(3, 6, 360, 20.0, 5.0), StepTimes(5, 10, 600, 30.0, 6.0)
    assert before + (after - before) == after
    assert (after - before).figures(processes=3) == {
        "samples_per_second": 3 * 4 / 10,
        "voxels_per_second": 3 * 240 / 10,
        "data_wait_share": pytest.approx(0.1),
    }
    assert (after - after).figures() == {}


def test_batches_of_another_form_have_a_time_all_the_same() -> None:
    timing = StepTiming()
    trainer = Engine(lambda engine, batch: None)
    timing.attach(trainer)
    trainer.run([1, 2, 3], max_epochs=1)
    assert (timing.total.steps, timing.total.samples) == (3, 0)
    assert timing.total.seconds >= timing.total.waited > 0
