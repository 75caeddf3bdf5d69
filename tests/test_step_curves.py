from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from custom.channels import ChannelLayout
from custom.errors import InputError
from custom.losses import AffinityLoss, BoundaryWeightedAffinityLoss
from custom.step_curves import StepCurves
from custom.step_timing import StepTiming
from custom.step_values import StepMeans, loss_weights
from custom.tensorboard import TensorBoard
from tests.events import curves, points
from tests.test_step_timing import Batches, Clock

LOSSES = [1.0, 2.0, 6.0, 4.0, 9.0, 5.0, 7.0, 8.0, 3.0, 10.0]


def trained(folder: Path, interval: int = 2) -> None:
    """Two epochs of five steps; a step takes 8 seconds, its batch as many as its number."""
    clock, loss = Clock(), BoundaryWeightedAffinityLoss(ChannelLayout(3), lsd_weight=5.0)

    def step(engine: Engine, batch: Any) -> dict[str, torch.Tensor]:
        clock.now += 8
        state: Any = engine.state
        value = LOSSES[state.iteration - 1]
        loss.components = {"affinity": torch.tensor(value / 10), "lsd": torch.tensor(value)}
        skipped = float(state.iteration in (3, 5, 6))
        norm = float("inf") if skipped else 2 * value
        state.step_info = {"lr": 0.1 * state.iteration, "gradient_norm": norm, "skipped": skipped}
        return {"loss": torch.tensor(value, requires_grad=True)}

    trainer = Engine(step)
    StepCurves(TensorBoard(str(folder)), loss, interval, StepTiming(clock)).attach(trainer)
    trainer.run(Batches(clock, 5), max_epochs=2)


def test_a_point_is_the_mean_of_the_steps_since_the_last_one(tmp_path: Path) -> None:
    trained(tmp_path)
    pairs = [(a + b) / 2 for a, b in zip(LOSSES[::2], LOSSES[1::2], strict=True)]
    steps = [2, 4, 6, 8, 10]
    assert points(tmp_path, "steps/train_loss") == list(zip(steps, pairs, strict=True))
    affinity = points(tmp_path, "steps/loss_affinity")
    assert affinity == [(s, pytest.approx(v / 10)) for s, v in zip(steps, pairs, strict=True)]
    assert points(tmp_path, "steps/loss_lsd") == points(tmp_path, "steps/train_loss")
    rates = [value for _, value in points(tmp_path, "steps/lr")]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert points(tmp_path, "steps/skipped_steps") == list(zip(steps, [0, 1, 2, 0, 0], strict=True))
    norms = points(tmp_path, "steps/gradient_norm")  # that of a skipped step is not finite
    assert norms == [(2, 3.0), (4, 8.0), (8, 15.0), (10, 13.0)]


def test_speed_is_what_a_clock_says(tmp_path: Path) -> None:
    trained(tmp_path)
    seconds = [2 * 8 + (1 + 2), 2 * 8 + (3 + 4), 2 * 8 + (5 + 6), 2 * 8 + (7 + 8), 2 * 8 + (9 + 10)]
    found = [value for _, value in points(tmp_path, "steps/voxels_per_second")]
    assert found == pytest.approx([2 * 120 / s for s in seconds])
    found = [value for _, value in points(tmp_path, "steps/samples_per_second")]
    assert found == pytest.approx([2 * 2 / s for s in seconds])
    waits = [value for _, value in points(tmp_path, "steps/data_wait_share")]
    assert waits == pytest.approx([1 - 16 / s for s in seconds])
    epochs = points(tmp_path, "speed/samples_per_second")
    assert epochs == [(5, pytest.approx(10 / (40 + 15))), (10, pytest.approx(10 / (40 + 40)))]


def test_several_processes_are_so_many_times_faster(tmp_path: Path) -> None:
    with patch("custom.step_curves.world_size", return_value=3):
        trained(tmp_path)
    assert points(tmp_path, "steps/samples_per_second")[0][1] == pytest.approx(3 * 4 / 19)


@pytest.mark.parametrize("interval", [2, 5])
def test_no_point_is_drawn_twice(tmp_path: Path, interval: int) -> None:
    trained(tmp_path, interval)
    names = curves(tmp_path)
    assert {"memory/process_mib", "loss_weights/lsd", "speed/data_wait_share"} < names
    for name in names:
        steps = [step for step, _ in points(tmp_path, name)]
        assert steps == sorted(set(steps)), name
    memory = [step for step, _ in points(tmp_path, "memory/process_mib")]
    assert memory == sorted({*range(interval, 11, interval), 5, 10})


def test_weights_are_the_factors_of_the_components() -> None:
    layout = ChannelLayout(3)
    assert loss_weights(BoundaryWeightedAffinityLoss(layout, lsd_weight=5.0)) == {
        "affinity": 1.0,
        "lsd": 5.0,
    }
    assert loss_weights(AffinityLoss(layout, factor=0.5)) == {"affinity": 0.5}
    assert loss_weights(nn.MSELoss()) == {}


def test_means_are_over_the_steps_that_are_finite() -> None:
    means = StepMeans()
    for value in (1.0, float("nan"), 2.0):
        means.add({"loss": value, "skipped": 1.0})
    assert means.take() == {"loss": 1.5, "skipped_steps": 3.0}
    assert means.take() == {}


@pytest.mark.parametrize("interval", [0, 2.5, "10"])
def test_an_interval_that_is_none_is_refused(interval: int) -> None:
    with pytest.raises(InputError, match="log_interval"):
        StepCurves(TensorBoard("board"), nn.Identity(), interval)
