from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from custom.networks.batch_renorm import BatchRenorm
from custom.networks.checkpointing import checkpointed
from custom.networks.norms import NORMS, Norm
from custom.networks.unet import UNet

RENORM = {"name": "batch_renorm", "warmup_steps": 1, "momentum": 0.3}
ALL_NORMS = (*NORMS, RENORM)
"""The last one far out of its warm-up, so that its output depends on running statistics."""


def network(norm: Norm, dimensions: int, **settings: object) -> UNet:
    """A small UNet in float64 that has seen some steps."""
    torch.manual_seed(0)
    kernels = [(1, 3, 3), 3, 3]
    built = UNet(2, 3, (4, 5, 8), [(1, 2, 2), 2], kernels, norm, dimensions=dimensions, **settings)
    for name, buffer in built.named_buffers():
        if name.endswith("steps"):
            buffer.fill_(7)
        if name.endswith("running_std"):
            buffer.mul_(0.4)
    return built.double()


def step(built: nn.Module, image: Tensor, amp: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients of one training step, dropout drawn from seed 1."""
    built.train().zero_grad()
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        output = built(image)
    (output.to(image.dtype) ** 2 * torch.linspace(0, 1, output.shape[-1])).sum().backward()
    return output.detach(), {n: p.grad.clone() for n, p in built.named_parameters()}


def image(seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 2, 3, 10, 9, generator=generator, dtype=torch.float64)


def assert_equal_states(one: nn.Module, other: nn.Module) -> None:
    for (name, a), b in zip(one.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("norm", ALL_NORMS, ids=str)
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize(
    "settings",
    [{}, {"dropout": 0.3}, {"residual": True, "dropout": 0.2, "upsampling": "interpolation"}],
    ids=["plain", "dropout", "residual"],
)
def test_gradients_and_statistics_are_those_without_it(norm, dimensions, settings):
    plain = network(norm, dimensions, **settings)
    saving = network(norm, dimensions, checkpointing=True, **settings)
    for seed in range(2):
        expected, gradients = step(plain, image(seed))
        found, others = step(saving, image(seed))
        assert torch.equal(found, expected)
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, rtol=1e-6, atol=1e-9, msg=name)
        assert_equal_states(plain, saving)
    state = dict(saving.named_buffers())
    counts = [int(b) for n, b in state.items() if n.endswith("num_batches_tracked")]
    assert set(counts) <= {2}
    assert {int(b) for n, b in state.items() if n.endswith("steps")} <= {9}


@pytest.mark.parametrize("norm", ALL_NORMS, ids=str)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_so_they_are_under_autocast(norm, dimensions):
    plain = network(norm, dimensions, dropout=0.2).float()
    saving = network(norm, dimensions, dropout=0.2, checkpointing=True).float()
    expected, gradients = step(plain, image().float(), amp=True)
    found, others = step(saving, image().float(), amp=True)
    assert found.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    for name, gradient in gradients.items():
        assert torch.equal(others[name], gradient), name
    assert_equal_states(plain, saving)


def test_less_is_kept_for_the_gradient():
    def kept(built: UNet) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            built(image())
        return sum(sizes)

    assert kept(network("group", 3, checkpointing=True)) < 0.5 * kept(network("group", 3))


def test_torchs_own_checkpointing_is_off_with_batch_renorm():
    """Shows that the comparison above would notice what it is for."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv3d(2, 3, 1), BatchRenorm(3, momentum=0.3, warmup_steps=0)).double()
    block[1].running_std *= 0.4
    shares = torch.randn(2, 3, 3, 10, 9, dtype=torch.float64)

    def gradient(how) -> tuple[Tensor, int]:
        built = deepcopy(block)
        (how(built)(image()) ** 2 * shares).sum().backward()
        return built[0].weight.grad, int(built[1].steps)

    exact, once = gradient(lambda built: built)
    torchs, twice = gradient(lambda built: lambda x: checkpoint(built, x, use_reentrant=False))
    ours, still_once = gradient(lambda built: lambda x: checkpointed(built, x))
    assert (torchs - exact).norm() > 1e-3 * exact.norm()
    assert (ours - exact).norm() < 1e-12 * exact.norm()
    assert (once, still_once, twice) == (1, 1, 2)


@pytest.mark.parametrize("norm", ALL_NORMS, ids=str)
def test_two_forward_passes_before_their_gradients(norm):
    """Each is computed again with the statistics that it saw itself."""

    def gradients(checkpointing: bool) -> list[Tensor]:
        built = network(norm, 3, checkpointing=checkpointing)
        first, second = built(image(0)), built(image(1))
        (first.square().sum() + 3 * second.pow(3).sum()).backward()
        return [p.grad for p in built.parameters()]

    for a, b in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_gradient_may_be_asked_for_twice():
    plain, saving = network(RENORM, 3), network(RENORM, 3, checkpointing=True)
    found = []
    for built in (plain, saving):
        loss = built(image()).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        found.append([p.grad for p in built.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert_equal_states(plain, saving)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("norm", ALL_NORMS, ids=str)
def test_so_they_are_under_distributed_data_parallel(norm: Norm, process_group: None):
    plain, saving = network(norm, 3), network(norm, 3, checkpointing=True)
    parallel = nn.parallel.DistributedDataParallel(saving)
    for seed in range(2):
        _, gradients = step(plain, image(seed))
        _, others = step(parallel, image(seed))
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[f"module.{name}"], gradient, rtol=1e-9, atol=1e-9)
    assert_equal_states(plain, saving)


def test_after_the_gradient_a_module_has_its_own_buffers_again():
    """DistributedDataParallel holds on to them."""
    built = network(RENORM, 3, checkpointing=True)
    before = [id(buffer) for buffer in built.buffers()]
    step(built, image())
    assert [id(buffer) for buffer in built.buffers()] == before


def test_evaluation_is_not_computed_twice():
    built, calls = network("group", 3, checkpointing=True), []
    built.down[0].register_forward_pre_hook(lambda *_: calls.append(1))
    built.eval()(image().requires_grad_()).sum().backward()
    assert len(calls) == 1
    step(built, image())
    assert len(calls) == 3
