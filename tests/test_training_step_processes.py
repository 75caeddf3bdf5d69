"""A step that several processes make together."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from custom.distributed import rank, world_size
from custom.ema import AveragedNetwork
from custom.processes import data_parallel
from custom.step_values import StepMeans
from tests.processes import SIZE, in_two
from tests.test_training_step import affinity_loss, crops, spoiled, step_of, trainer, unet

pytestmark = pytest.mark.slow

ITEMS = 12
Result = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, int]]


def trained(broken: tuple[int, ...], accumulation_steps: int) -> Result:
    """Weights, average and counts after a training on this process's share of the samples.

    Together the processes have a batch of two samples; alone, one process has it.
    """
    network = unet()
    average = AveragedNetwork(network, 0.9)
    items = spoiled(crops(ITEMS), *broken)
    engine = trainer(
        network,
        items[rank() :: world_size()],
        affinity_loss(),
        batch_size=SIZE // world_size(),
        averaged=average,
        accumulation_steps=accumulation_steps,
        max_gradient_norm=0.05,
        wrap=_wrapped,
    )
    engine.run()
    counts = step_of(engine).non_finite.state_dict()
    return network.state_dict(), average.network.state_dict(), counts


def _wrapped(network: nn.Module) -> nn.Module:
    return network if world_size() == 1 else data_parallel(network)


@pytest.mark.parametrize("accumulation_steps", [1, 2, 4])
@pytest.mark.parametrize("broken", [(), (5,), (2, 11)])
def test_processes_step_as_one_with_all_samples_and_skip_together(
    broken: tuple[int, ...], accumulation_steps: int
) -> None:
    expected = trained(broken, accumulation_steps)
    first, second = in_two(trained, broken, accumulation_steps)
    assert first[2] == second[2] == expected[2]
    assert bool(broken) == bool(expected[2]["total"])
    for part in range(2):
        for name, value in expected[part].items():
            assert torch.equal(first[part][name], second[part][name]), name
            torch.testing.assert_close(first[part][name], value, rtol=1e-4, atol=1e-6)


def named(broken: int) -> Any:
    items = spoiled(crops(4), broken)
    engine = trainer(
        unet(), items[rank() :: 2], affinity_loss(), wrap=_wrapped, max_non_finite_steps=1
    )
    try:
        engine.run()
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("broken", [2, 3])
def test_every_process_names_the_sample_of_the_one_that_has_it(broken: int) -> None:
    first, second = in_two(named, broken)
    assert first == second
    assert f"is nan in sample {40 + broken} (volume" in first


def shown(values: list[dict[str, float]]) -> dict[str, float]:
    means = StepMeans()
    for step in values:
        means.add(step)
    return means.take()


def test_a_step_that_all_processes_skip_counts_once() -> None:
    values = [{"skipped": 1.0, "train_loss": 3.0}, {"skipped": 0.0}, {"skipped": 1.0}]
    assert in_two(shown, values) == [{"skipped_steps": 2.0, "train_loss": 3.0}] * SIZE
