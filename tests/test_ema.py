import copy

import pytest
import torch
from torch import nn

from custom.ema import AveragedNetwork
from custom.errors import InputError
from custom.networks.batch_renorm import BatchRenorm


def walked(network: nn.Module, steps: int, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Weights and buffers of a network before and after random steps."""
    generator = torch.Generator().manual_seed(seed)
    states = [copy.deepcopy(network.state_dict())]
    for _ in range(steps):
        state = {
            name: v + torch.randn(v.shape, generator=generator) if v.is_floating_point() else v + 1
            for name, v in states[-1].items()
        }
        states.append(state)
    return states


def averaged(network: nn.Module, states: list[dict[str, torch.Tensor]], decay: float) -> nn.Module:
    average = AveragedNetwork(network, decay)
    for state in states[1:]:
        network.load_state_dict(state)
        average.update()
    return average.network


def closed_form(values: list[torch.Tensor], decay: float) -> torch.Tensor:
    """Of n steps: sum over k of (1 - d_k) d_k+1 ... d_n value_k, and d_1 ... d_n of the start."""
    decays = [0.0, *(min(decay, k / (k + 9)) for k in range(1, len(values)))]
    total = torch.zeros_like(values[0])
    for k, value in enumerate(values):
        share = torch.tensor(1 - decays[k], dtype=torch.float64)
        for later in decays[k + 1 :]:
            share = share * later
        total = total + share * value
    return total


@pytest.mark.parametrize("decay", [0.05, 0.3, 0.999])
def test_the_average_is_the_closed_form(decay: float) -> None:
    network = nn.Sequential(nn.Conv3d(1, 3, 1), nn.BatchNorm3d(3), nn.Linear(2, 2)).double()
    states = walked(network, 14)
    found = averaged(network, states, decay).state_dict()
    for name, value in found.items():
        if value.is_floating_point():
            expected = closed_form([state[name] for state in states], decay)
            torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_counters_are_those_of_the_network() -> None:
    network = nn.Sequential(BatchRenorm(2), nn.BatchNorm3d(2))
    found = averaged(network, walked(network, 7), 0.9).state_dict()
    assert (found["0.steps"], found["1.num_batches_tracked"]) == (7, 7)


def test_the_average_is_apart_from_the_network_and_needs_no_gradient() -> None:
    network = nn.Linear(2, 2).train()
    average = AveragedNetwork(network, 0.9)
    before = copy.deepcopy(average.network.state_dict())
    nn.init.zeros_(network.weight)
    assert torch.equal(average.network.state_dict()["weight"], before["weight"])
    assert not any(p.requires_grad for p in average.network.parameters())
    assert all(p.requires_grad for p in network.parameters())
    assert (network.training, average.network.training) == (True, False)


def test_without_a_decay_it_is_the_network_itself() -> None:
    network = nn.Linear(2, 2)
    average = AveragedNetwork(network, None)
    average.update()
    assert average.network is network
    assert average.state_dict() == {}


def test_an_average_that_is_taken_up_goes_on() -> None:
    network = nn.Linear(3, 2)
    states = walked(network, 8)
    whole = averaged(copy.deepcopy(network), states, 0.5).state_dict()

    first = AveragedNetwork(network, 0.5)
    for state in states[1:4]:
        network.load_state_dict(state)
        first.update()
    second = AveragedNetwork(network, 0.5)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for state in states[4:]:
        network.load_state_dict(state)
        second.update()
    for name, value in second.network.state_dict().items():
        assert torch.equal(value, whole[name])


def test_a_training_without_an_average_can_go_on_with_one_and_the_reverse() -> None:
    network = nn.Linear(3, 2)
    average = AveragedNetwork(network, 0.5)
    nn.init.ones_(network.weight)
    average.load_state_dict(AveragedNetwork(network).state_dict())
    assert torch.equal(average.network.state_dict()["weight"], network.weight)
    AveragedNetwork(network).load_state_dict(average.state_dict())


@pytest.mark.parametrize("decay", [0.0, 1.0, 1, -0.1, "0.9", float("nan"), True])
def test_another_decay_is_refused(decay: float) -> None:
    with pytest.raises(InputError, match="ema_decay must be null or a number above 0 and below 1"):
        AveragedNetwork(nn.Linear(1, 1), decay)


def test_an_average_that_begins_late_is_the_network_that_others_already_hold() -> None:
    trained = nn.Linear(2, 2)
    average = AveragedNetwork(trained, 0.9)
    held = average.network  # by the evaluator and the best model, since they were made
    weights = {name: value + 1 for name, value in trained.state_dict().items()}
    trained.load_state_dict(weights)
    average.load_state_dict({})
    for name, value in held.state_dict().items():
        assert torch.equal(value, weights[name])
    average.update()
    assert average.network is held
