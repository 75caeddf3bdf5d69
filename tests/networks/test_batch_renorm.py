from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from custom.networks.batch_renorm import BatchRenorm

EPS = 1e-5


def batch(seed: int, shape: tuple[int, ...] = (2, 3, 4, 5, 2), scale: float = 1.0) -> Tensor:
    """Values whose channels differ in mean and deviation."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.arange(1, shape[1] + 1).reshape(-1, *[1] * (len(shape) - 2))
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return scale * spread * values + 0.7 * spread


def evaluation(
    x: NDArray[np.float64],
    state: dict[str, NDArray[np.float64]],
    limits: tuple[float, float],
    momentum: float,
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Algorithm 1 of the paper, channel by channel: the output and the moved state."""
    found, after = np.empty_like(x), {k: v.copy() for k, v in state.items()}
    rmax, dmax = limits
    for c in range(x.shape[1]):
        values = x[:, c]
        mean, std = values.mean(), np.sqrt(values.var() + EPS)
        r = min(max(std / state["std"][c], 1 / rmax), rmax)
        d = min(max((mean - state["mean"][c]) / state["std"][c], -dmax), dmax)
        found[:, c] = ((values - mean) / std * r + d) * state["weight"][c] + state["bias"][c]
        after["mean"][c] += momentum * (mean - state["mean"][c])
        after["std"][c] += momentum * (std - state["std"][c])
    return found, after


def limits_of_the_paper(step: int, warmup: int, rmax: float, dmax: float) -> tuple[float, float]:
    """Batch normalisation for ``warmup`` steps, then linear to 8 and 5 times as many."""
    if warmup == 0:
        return rmax, dmax
    return (
        float(np.interp(step, [warmup, 8 * warmup], [1, rmax])),
        float(np.interp(step, [warmup, 5 * warmup], [0, dmax])),
    )


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    warmup=st.integers(0, 3),
    rmax=st.sampled_from([1.0, 1.1, 3.0]),
    dmax=st.sampled_from([0.0, 0.3, 5.0]),
    momentum=st.sampled_from([0.01, 0.5]),
    shape=st.sampled_from([(2, 3, 4, 5, 2), (3, 2, 4, 5), (1, 3, 2, 1, 1)]),
)
def test_it_is_the_algorithm_of_the_paper(seed, warmup, rmax, dmax, momentum, shape):
    layer = BatchRenorm(shape[1], momentum, EPS, rmax, dmax, warmup).double()
    layer.weight.data = torch.linspace(0.5, 2, shape[1], dtype=torch.float64)
    layer.bias.data = torch.linspace(-1, 1, shape[1], dtype=torch.float64)
    state = {
        "mean": np.zeros(shape[1]),
        "std": np.ones(shape[1]),
        "weight": layer.weight.detach().numpy(),
        "bias": layer.bias.detach().numpy(),
    }
    for step in range(12):
        x = batch(seed + step, shape, scale=1 + step)
        limits = limits_of_the_paper(step, warmup, rmax, dmax)
        expected, state = evaluation(x.numpy(), state, limits, momentum)
        np.testing.assert_allclose(layer(x).detach(), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(layer.running_mean, state["mean"], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(layer.running_std, state["std"], rtol=1e-12)
    assert layer.steps == 12


def test_with_limits_1_and_0_it_is_batch_normalisation():
    renorm = BatchRenorm(3, rmax=1, dmax=0, warmup_steps=0).double()
    plain = nn.BatchNorm3d(3).double()
    for seed in range(3):
        ours, theirs = (batch(seed).requires_grad_() for _ in range(2))
        (renorm(ours) ** 3).sum().backward()
        (plain(theirs) ** 3).sum().backward()
        torch.testing.assert_close(renorm(ours), plain(theirs))
        torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(renorm.weight.grad, plain.weight.grad)
    torch.testing.assert_close(renorm.bias.grad, plain.bias.grad)


def test_within_its_limits_training_computes_what_evaluation_does():
    layer = BatchRenorm(3, rmax=1e9, dmax=1e9, warmup_steps=0).double()
    layer.running_mean += torch.tensor([0.3, -2, 7])
    layer.running_std *= torch.tensor([0.5, 4, 1])
    expected = layer.eval()(batch(0))
    torch.testing.assert_close(layer.train()(batch(0)), expected)


def test_corrections_have_no_gradient():
    """The gradient is that of batch normalisation, times r: of the paper's section 3."""
    layer = BatchRenorm(3, warmup_steps=0).double()
    plain = nn.BatchNorm3d(3, affine=False).double()
    layer.running_std *= torch.tensor([0.8, 1.5, 2.0])
    ours, theirs = (batch(0).requires_grad_() for _ in range(2))
    r = (batch(0).var((0, 2, 3, 4), correction=0) + EPS).sqrt() / layer.running_std
    assert (r > 1 / 3).all() and (r < 3).all()
    shares = batch(1)
    (layer(ours) * shares).sum().backward()
    (plain(theirs) * shares * r[:, None, None, None]).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_evaluation_uses_running_statistics_and_leaves_them_alone():
    layer = BatchRenorm(3).double()
    for seed in range(5):
        layer(batch(seed))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    found = layer.eval()(batch(9))
    mean, std = (b[:, None, None, None] for b in (layer.running_mean, layer.running_std))
    torch.testing.assert_close(found, (batch(9) - mean) / std)
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


def test_limits_rise_after_the_warm_up_and_stay():
    layer = BatchRenorm(1, rmax=3, dmax=5, warmup_steps=100)
    found = {}
    for step in (0, 100, 101, 300, 500, 800, 10**7):
        layer.steps.fill_(step)
        found[step] = tuple(round(float(limit), 4) for limit in layer.limits())
    assert found[0] == found[100] == (1, 0)
    assert found[101] == (round(1 + 2 / 700, 4), round(5 / 400, 4))
    assert found[500] == (round(1 + 2 * 400 / 700, 4), 5)
    assert found[800] == found[10**7] == (3, 5)
    assert all(a <= b for a, b in pairwise(found.values()))


def test_a_training_that_is_taken_up_goes_on_in_the_warm_up():
    first, second = BatchRenorm(3, warmup_steps=2), BatchRenorm(3, warmup_steps=2)
    for seed in range(5):
        first(batch(seed).float())
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(batch(9).float()), second(batch(9).float()))


@pytest.mark.parametrize("training", [True, False])
def test_half_precision_is_normalised_by_single_precision_statistics(training):
    half, single = (BatchRenorm(3, warmup_steps=0).train(training) for _ in range(2))
    x = (batch(0, (2, 3, 16, 16, 16)) + 300).bfloat16()  # whose sum bfloat16 cannot hold
    with torch.autocast("cpu", torch.bfloat16):
        found = half(x)
    expected = single(x.float())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0.05)
    torch.testing.assert_close(half.running_mean, single.running_mean)
    torch.testing.assert_close(half.running_std, single.running_std)


def test_conversion_to_synchronised_batch_norm_leaves_it_as_it_is():
    network = nn.Sequential(BatchRenorm(3), nn.BatchNorm3d(3))
    kinds = [type(layer) for layer in nn.SyncBatchNorm.convert_sync_batchnorm(network)]
    assert kinds == [BatchRenorm, nn.SyncBatchNorm]
