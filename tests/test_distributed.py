from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, DistributedSampler

from custom.channels import ChannelLayout
from custom.class_losses import ClassLoss, ClassTverskyLoss
from custom.datasets import CropSampler
from custom.distributed import any_rank, gathered, is_writer, joint, rank, total, world_size
from custom.losses import AffinityLoss, AffinityTverskyLoss, LsdLoss, SumOfLosses
from custom.processes import SharedStatistics
from custom.scores import ClassScore, SegmentationScore, VolumeScore
from tests import test_scores as scored
from tests.processes import in_two

# --- a process alone ---


def test_a_process_alone_is_the_writer_and_keeps_what_it_has() -> None:
    assert (rank(), world_size(), is_writer()) == (0, 1, True)
    assert gathered(["a", "b"]) == ["a", "b"]
    assert (any_rank(True), any_rank(False)) == (True, False)


def test_a_total_is_a_tensor_of_its_own() -> None:
    part = torch.tensor([1.0, 2.0], requires_grad=True)
    summed = total(part)
    assert not summed.requires_grad
    summed += 1
    assert part.tolist() == [1, 2]


# --- two of them ---


def told() -> dict[str, Any]:
    part = torch.tensor([1.0, 10.0]) * (rank() + 1)
    return {
        "rank": rank(),
        "size": world_size(),
        "writes": is_writer(),
        "gathered": gathered(["a"] if rank() else ["b", "c"]),
        "total": total(part).tolist(),
        "part": part.tolist(),
        "any": [any_rank(rank() == 1), any_rank(False), any_rank(True)],
    }


@pytest.mark.slow
def test_two_processes_know_of_each_other() -> None:
    first, second = in_two(told)
    assert (first["rank"], second["rank"]) == (0, 1)
    assert (first["writes"], second["writes"]) == (True, False)
    assert (first["part"], second["part"]) == ([1, 10], [2, 20])
    for found in (first, second):
        assert found["size"] == 2
        assert found["gathered"] == ["b", "c", "a"]
        assert found["total"] == [3, 30]
        assert found["any"] == [True, False, True]


# --- samples ---


class Numbers(list[int]):
    """Stands for a dataset: the samples of an epoch of two batches of three in each process."""


def batches_of_epochs() -> list[list[int]]:
    sampler = CropSampler(Numbers(range(12)))  # type: ignore[arg-type]
    found = []
    for epoch in (1, 2):
        sampler.set_epoch(epoch)
        found += list(
            BatchSampler(sampler, batch_size=3 if world_size() > 1 else 6, drop_last=True)
        )
    return found


@pytest.mark.slow
def test_batches_of_all_processes_are_together_the_batch_of_one() -> None:
    alone = batches_of_epochs()
    assert alone[3] == [18, 19, 20, 21, 22, 23]
    for one, first, second in zip(alone, *in_two(batches_of_epochs), strict=True):
        assert len(first) == len(second) == 3
        assert sorted(first + second) == one


# --- losses are those of the batches of all processes together ---

AFFINITIES, CLASSES = ChannelLayout(3, 10), ChannelLayout(0, 0, 3)
WEIGHTS = [0.5, 1.0, 4.0]
LOSSES: dict[str, Callable[[], nn.Module]] = {
    "cross entropy and LSDs": lambda: SumOfLosses(
        {
            "affinity": AffinityLoss(AFFINITIES, boundary_weighted=True, positive_weight=WEIGHTS),
            "lsd": LsdLoss(AFFINITIES, factor=10.0),
        }
    ),
    "focal": lambda: AffinityLoss(AFFINITIES, gamma=2.0, alpha=0.25, label_smoothing=0.1),
    "smooth L1": lambda: LsdLoss(AFFINITIES, beta=0.1),
    "Tversky": lambda: AffinityTverskyLoss(AFFINITIES, 0.7, 0.3, positive_weight=WEIGHTS),
    "classes": lambda: ClassLoss(CLASSES, class_weights=WEIGHTS, boundary_weighted=True),
    "Dice of classes": lambda: ClassTverskyLoss(CLASSES, smooth=1.0, class_weights=WEIGHTS),
}


def batch(layout: ChannelLayout, size: int) -> tuple[Tensor, Tensor]:
    """Prediction and target; very little counts in the first half of the samples."""
    generator = torch.Generator().manual_seed(size)
    shape = (3, 4, 5)
    prediction = torch.randn(size, layout.num_outputs, *shape, generator=generator).double()
    target = torch.rand(size, layout.num_targets, *shape, generator=generator).double()
    counts = torch.rand(size, 1, *shape, generator=generator).double() < 0.6
    counts[: size // 2] &= torch.rand(shape, generator=generator) < 0.2
    target[:, layout.affinities] = target[:, layout.affinities].round()
    if layout.num_classes:
        target[:, layout.class_id] = (target[:, layout.class_id] * 2.99).floor()
    else:
        target[:, layout.lsd_mask] = counts.double()
        target[: size // 2, layout.lsd_mask] = 0  # nothing at all
    target[:, layout.valid] = counts.double()
    target[: size // 2, layout.valid.start] = 0
    target[size // 2 :, layout.valid.stop - 1] *= layout.num_classes > 0
    return prediction, target


def loss_of(name: str, part: slice) -> tuple[float, dict[str, float], Tensor]:
    """Value, components and gradient for some samples of a batch."""
    loss = LOSSES[name]()
    layout = CLASSES if "classes" in name else AFFINITIES
    prediction, target = (tensor[part] for tensor in batch(layout, 4))
    prediction.requires_grad_()
    value = loss(prediction, target)
    value.backward()
    components: dict[str, Tensor] = loss.components  # type: ignore[assignment]
    assert prediction.grad is not None
    return value.item(), {k: v.item() for k, v in components.items()}, prediction.grad


def parts_of_losses() -> dict[str, Any]:
    mine = slice(0, 2) if rank() == 0 else slice(2, 4)
    return {name: loss_of(name, mine) for name in LOSSES}


@pytest.fixture(scope="module")
def halves() -> list[dict[str, Any]]:
    return in_two(parts_of_losses)


@pytest.mark.parametrize("name", LOSSES)
def test_each_process_has_the_loss_of_both_batches_together(
    halves: list[dict[str, Any]], name: str
) -> None:
    value, components, _ = loss_of(name, slice(None))
    assert value > 0.01
    for half in halves:
        assert half[name][0] == pytest.approx(value, rel=1e-12)
        assert half[name][1] == pytest.approx(components, rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_the_mean_of_the_gradients_is_that_of_both_batches_together(
    halves: list[dict[str, Any]], name: str
) -> None:
    *_, gradient = loss_of(name, slice(None))
    parts = torch.cat([half[name][2] / 2 for half in halves])
    assert gradient[2:].abs().max() > 1e-4
    torch.testing.assert_close(parts, gradient, rtol=1e-10, atol=1e-14)


class Powers(nn.Module):
    """Anything but linear in its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -2.0, 1.5], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight.exp() * x).sin()


def gradient_of(samples: Tensor, together: bool) -> list[float]:
    """Of the ratio of two sums over samples."""
    powers = Powers()
    network = DistributedDataParallel(powers) if together else powers
    found = network(samples)
    (joint(found.sum()) / joint(found.square().sum())).backward()
    assert powers.weight.grad is not None
    gradient: list[float] = powers.weight.grad.tolist()
    return gradient


def gradients_of_halves() -> list[float]:
    part = slice(0, 1) if rank() == 0 else slice(1, 4)  # unequal ones, too
    return gradient_of(SAMPLES[part], together=True)


SAMPLES = torch.tensor(np.random.default_rng(0).normal(size=(4, 3)))


def test_parallel_networks_have_the_gradient_of_one() -> None:
    expected = gradient_of(SAMPLES, together=False)
    for found in in_two(gradients_of_halves):
        assert found == pytest.approx(expected, rel=1e-10)


class Trained:
    """Stands for a network: a running statistic and a count."""

    def __init__(self, mean: float) -> None:
        self.mean, self.steps = torch.tensor([mean, 8.0]), torch.tensor(3)

    def buffers(self) -> list[Tensor]:
        return [self.mean, self.steps]


def shared_statistics() -> tuple[list[float], int]:
    network = Trained(mean=1.0 + 4 * rank())
    SharedStatistics(network)()  # type: ignore[arg-type]
    return network.mean.tolist(), int(network.steps)


def test_running_statistics_are_the_mean_of_all_processes() -> None:
    assert in_two(shared_statistics) == [([3.0, 8.0], 3)] * 2


# --- validation ---


def volumes(count: int) -> list[dict[str, Any]]:
    """Volumes with predictions that are wrong in different places."""
    return [
        scored.item(scored.truth(), scored.predicted(scored.truth(4 + i)), f"volume {i}")
        for i in range(count)
    ]


def class_volumes(count: int) -> list[dict[str, Any]]:
    truths = [np.arange(24).reshape(2, 3, 4) % (2 + i) for i in range(count)]
    return [
        scored.class_item(t % 3, (t + 1) // 2 % 3) | {"id": f"volume {i}"}
        for i, t in enumerate(truths)
    ]


def validated(kind: str, count: int) -> dict[str, Any]:
    """State of an engine that has been through this process's share of the volumes."""
    score: VolumeScore = ClassScore(["background", "a", "b"])
    items = class_volumes(count)
    if kind == "segments":
        score, items = SegmentationScore(scored.SEGMENTER, [{}, {"bias": -0.2}]), volumes(count)
    alone = range(count) if world_size() == 1 else None
    mine = alone or DistributedSampler(items, shuffle=False)  # type: ignore[arg-type]
    engine = scored.evaluator()
    score.attach(engine, score.key.name)
    engine.run([[items[i]] for i in mine])
    state: Any = engine.state
    setting = getattr(state, "segmentation", None)
    return {"metrics": state.metrics, "volumes": state.volume_scores, "setting": setting}


def all_validated() -> dict[tuple[str, int], dict[str, Any]]:
    return {(kind, count): validated(kind, count) for kind in KINDS for count in COUNTS}


KINDS, COUNTS = ("segments", "classes"), (1, 2, 3, 5)


@pytest.fixture(scope="module")
def shared_out() -> list[dict[tuple[str, int], dict[str, Any]]]:
    return in_two(all_validated)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_process_has_the_scores_of_all_volumes(
    shared_out: list[dict[tuple[str, int], dict[str, Any]]], kind: str, count: int
) -> None:
    """Also where they cannot be shared out evenly, and where there are fewer than processes."""
    expected = validated(kind, count)
    assert len(expected["volumes"]) == count
    for found in shared_out:
        assert found[kind, count] == expected
        assert list(found[kind, count]["volumes"]) == list(expected["volumes"])
