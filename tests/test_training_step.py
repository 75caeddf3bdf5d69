"""Laws of a step, on a network so small that its gradients are known by hand, and on real ones."""

import copy
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from monai.engines import IterationEvents, SupervisedTrainer
from monai.optimizers import WarmupCosineSchedule
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR, LRScheduler
from torch.utils.data import DataLoader

from custom.channels import ChannelLayout
from custom.ema import AveragedNetwork
from custom.epochs import optimizer_steps
from custom.errors import InputError
from custom.inferers import CropInferer
from custom.losses import BoundaryWeightedAffinityLoss
from custom.networks.unet import UNet
from custom.precision import loss_scaler
from custom.training_step import TrainingStep

LAYOUT = ChannelLayout(3)
SHAPE = (6, 8, 7)
Item = dict[str, Any]


def trainer(
    network: nn.Module,
    items: Sequence[Item],
    loss: Any,
    batch_size: int = 1,
    epochs: int = 1,
    rate: float = 1.0,
    inferer: CropInferer | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
    **settings: Any,
) -> SupervisedTrainer:
    """An engine over items with plain gradient descent, whose rate falls to a half every step."""
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    settings = {"max_gradient_norm": None, "scheduler": ExponentialLR(optimizer, 0.5), **settings}
    return SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=DataLoader(list(items), batch_size=batch_size),  # type: ignore[arg-type]
        network=wrap(network),
        optimizer=optimizer,
        loss_function=loss,
        inferer=inferer or CropInferer(),
        decollate=False,
        iteration_update=TrainingStep(**settings),
    )


def step_of(engine: SupervisedTrainer) -> Any:
    return engine._process_function


# --- a linear network, whose gradient is its input ---


def linear() -> nn.Linear:
    network = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(network.weight)
    return network


def gradients(*values: tuple[float, float]) -> list[Item]:
    return [{"image": torch.tensor(value), "label": torch.zeros(1)} for value in values]


def weights(*values: tuple[float, float], **settings: Any) -> Tensor:
    """Weights after steps from 0 with given gradients."""
    network = linear()
    trainer(network, gradients(*values), mean_of_predictions, **settings).run()
    return network.weight.detach()[0]


def mean_of_predictions(prediction: Tensor, label: Tensor) -> Tensor:
    return prediction.mean()


def test_a_long_gradient_is_shortened_and_keeps_its_direction() -> None:
    np.testing.assert_allclose(weights((30.0, 40.0)), (-30, -40))
    np.testing.assert_allclose(weights((30.0, 40.0), max_gradient_norm=1.0), (-0.6, -0.8), 1e-4)


def test_a_short_gradient_stays_as_it_is() -> None:
    np.testing.assert_allclose(weights((0.3, 0.4), max_gradient_norm=1), (-0.3, -0.4))


def test_every_step_moves_the_schedule_and_starts_from_no_gradient() -> None:
    np.testing.assert_allclose(weights((3.0, 4.0), (3.0, 4.0)), (-4.5, -6), 1e-6)


@pytest.mark.parametrize("value", [0.0, -1, "1", True, float("inf"), float("nan")])
def test_another_largest_norm_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="max_gradient_norm must be null or a number above 0"):
        weights((1.0, 1.0), max_gradient_norm=value)


def test_a_step_says_what_it_did_and_fires_monais_events() -> None:
    engine = trainer(linear(), gradients(*[(3.0, 4.0)] * 4), mean_of_predictions)
    step_of(engine).accumulation_steps = 2
    events, seen, said = list(IterationEvents)[:4], [], []
    assert [e.name for e in events] == [
        *("FORWARD_COMPLETED", "LOSS_COMPLETED", "BACKWARD_COMPLETED", "MODEL_COMPLETED")
    ]
    for event in events:
        engine.add_event_handler(event, lambda engine, event=event: seen.append(event))
    engine.add_event_handler(events[3], lambda engine: said.append(engine.state.step_info))
    engine.run()
    assert seen == events * 4
    taken = {"gradient_norm": 5.0, "skipped": 0.0}
    assert said == [{"lr": 1.0}, {"lr": 1.0} | taken, {"lr": 0.5}, {"lr": 0.5} | taken]


@pytest.mark.parametrize("accumulation_steps", [1, 2, 3, 7])
def test_a_warm_up_with_cosine_ends_with_the_last_step_of_the_optimizer(
    accumulation_steps: int,
) -> None:
    length, epochs, warm = 7, 3, 2
    total = optimizer_steps(epochs, length, accumulation_steps)
    network = linear()
    steps = torch.optim.SGD(network.parameters(), lr=2.0)
    schedule = WarmupCosineSchedule(steps, warmup_steps=warm, t_total=total)
    engine = trainer(
        network,
        gradients(*[(1.0, 2.0)] * length),
        mean_of_predictions,
        epochs=epochs,
        scheduler=schedule,
        accumulation_steps=accumulation_steps,
    )
    engine.optimizer = steps
    found: list[float] = []

    def add(engine: Any) -> None:
        if "gradient_norm" in engine.state.step_info:
            found.append(engine.state.step_info["lr"])

    engine.add_event_handler(IterationEvents.MODEL_COMPLETED, add)
    engine.run()
    rising = [2.0 * n / warm for n in range(min(warm, total))]
    falling = [math.cos(math.pi * n / (total - warm)) + 1 for n in range(total - warm)]
    assert found == pytest.approx(rising + falling)
    assert steps.param_groups[0]["lr"] == pytest.approx(0)


@pytest.mark.parametrize("largest", [0.01, 0.2, 5.0])
def test_no_step_is_longer_than_its_gradient_may_be(largest: float) -> None:
    network = unet()
    engine = trainer(network, crops(3), affinity_loss(), max_gradient_norm=largest)
    before = [copy.deepcopy(list(network.parameters()))]
    lengths, norms = [], []

    def measure(engine: Any) -> None:
        now = copy.deepcopy(list(network.parameters()))
        moved = [(a - b).detach().square().sum() for a, b in zip(now, before[0], strict=True)]
        lengths.append(float(torch.stack(moved).sum().sqrt()))
        norms.append(engine.state.step_info["gradient_norm"])
        before[0] = now

    engine.add_event_handler(IterationEvents.MODEL_COMPLETED, measure)
    engine.run()
    rates = [1, 0.5, 0.25]
    expected = [rate * min(largest, norm) for rate, norm in zip(rates, norms, strict=True)]
    assert lengths == pytest.approx(expected, rel=1e-3)


# --- accumulation ---


def test_the_last_smaller_group_of_an_epoch_is_the_mean_of_its_batches() -> None:
    values = [(1.0, 0.0), (3.0, 0.0), (0.0, 8.0)]
    found = weights(*values, accumulation_steps=2)
    np.testing.assert_allclose(found, (-2, -4))  # mean of two at rate 1, then one at rate 0.5
    np.testing.assert_allclose(weights(*values, accumulation_steps=9), (-4 / 3, -8 / 3), 1e-6)


def test_groups_begin_anew_with_every_epoch() -> None:
    values = [(1.0, 0.0), (3.0, 0.0), (0.0, 8.0)]
    found = weights(*values, accumulation_steps=2, epochs=2)
    np.testing.assert_allclose(found, (-2 - 0.25 * 2, -4 - 0.125 * 8))


def test_the_gradient_of_a_group_is_clipped_as_a_whole() -> None:
    found = weights((3.0, 0.0), (0.0, 4.0), accumulation_steps=2, max_gradient_norm=1.0)
    np.testing.assert_allclose(found, (-0.6, -0.8), 1e-5)


def crops(count: int, seed: int = 0) -> list[Item]:
    """Samples of raw and of affinities, labelled everywhere."""
    random = torch.Generator().manual_seed(seed)
    items = []
    for number in range(count):
        label = torch.ones(LAYOUT.num_targets, *SHAPE)
        truth = torch.rand(LAYOUT.num_affinities, *SHAPE, generator=random) < 0.6
        label[LAYOUT.affinities] = truth.float()
        items.append(
            {
                "image": torch.rand(1, *SHAPE, generator=random) * 2 - 1,
                "label": label,
                "sample_number": 40 + number,
                "sample_volume": f"cube-{number % 2}",
                "sample_offset": torch.tensor([number, 2, 3]),
            }
        )
    return items


def unet(norm: str = "group") -> UNet:
    torch.manual_seed(0)
    return UNet(1, LAYOUT.num_outputs, (4, 8), ((1, 2, 1),), norm=norm)


def affinity_loss() -> BoundaryWeightedAffinityLoss:
    return BoundaryWeightedAffinityLoss(LAYOUT)


@pytest.mark.parametrize("clip", [None, 0.05])
def test_accumulated_batches_of_one_are_one_large_batch(clip: float | None) -> None:
    items, found = crops(10), []
    for batch_size, accumulation_steps in ((4, 1), (1, 4), (2, 2)):
        network = unet().double()
        doubled = [{**i, "image": i["image"].double(), "label": i["label"].double()} for i in items]
        settings: dict[str, Any] = {
            "accumulation_steps": accumulation_steps,
            "max_gradient_norm": clip,
            "inferer": _Exact(),
        }
        trainer(network, doubled, affinity_loss(), batch_size, 2, **settings).run()
        found.append(network.state_dict())
    begin = unet().double().state_dict()
    for name, value in found[0].items():
        for other in found[1:]:
            torch.testing.assert_close(other[name], value, rtol=1e-9, atol=1e-9)
    assert any(not torch.equal(v, begin[n]) for n, v in found[0].items())


class _Exact(CropInferer):
    """Leaves float64 as it is."""

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        found: Tensor = network(inputs)
        return found


# --- what is not finite ---


def spoiled(items: list[Item], *numbers: int, key: str = "image") -> list[Item]:
    items = copy.deepcopy(items)
    for number in numbers:
        items[number][key][0, 3, 2, 1] = torch.nan
    return items


def everything(engine: SupervisedTrainer) -> dict[str, Any]:
    """All that a step may change."""
    step = step_of(engine)
    average = {} if step.averaged is None else step.averaged.state_dict()
    return copy.deepcopy(
        {
            "network": engine.network.state_dict(),
            "optimizer": engine.optimizer.state_dict(),
            "scheduler": step.scheduler.state_dict(),
            "average": average,
        }
    )


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_same(one[name], other[name])
    elif isinstance(one, Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


@pytest.mark.parametrize("accumulation_steps", [1, 2])
@pytest.mark.parametrize("norm", ["group", "batch", "batch_renorm"])
@pytest.mark.parametrize("key", ["image", "label"])
def test_a_step_that_is_not_finite_leaves_everything_as_it_was(
    key: str, norm: str, accumulation_steps: int
) -> None:
    """A training without the step's samples ends alike."""
    items = crops(8)
    found = []
    for given in (spoiled(items, 2, key=key), [*items[:2], *items[2 + accumulation_steps :]]):
        network = unet(norm)
        engine = trainer(
            network,
            given,
            affinity_loss(),
            averaged=AveragedNetwork(network, 0.9),
            accumulation_steps=accumulation_steps,
        )
        engine.run()
        found.append(everything(engine))
        assert all(torch.isfinite(v).all() for v in network.state_dict().values())
        assert found[-1]["average"]["updates"] == 8 // accumulation_steps - 1
    assert_same(*found)
    assert_same(step_of(engine).non_finite.state_dict(), {"total": 0, "in_row": 0})


@pytest.mark.parametrize("norm", ["group", "batch"])  # which makes all predictions NaN
def test_what_is_skipped_is_counted_and_named(norm: str, caplog: pytest.LogCaptureFixture) -> None:
    engine = trainer(unet(norm), spoiled(crops(6), 1, 4), affinity_loss(), batch_size=2)
    said = []
    engine.add_event_handler(
        IterationEvents.MODEL_COMPLETED,
        lambda engine: said.append(engine.state.step_info["skipped"]),
    )
    with caplog.at_level(logging.WARNING):
        engine.run()
    assert said == [1.0, 0.0, 1.0]
    assert step_of(engine).non_finite.state_dict() == {"total": 2, "in_row": 1}
    assert caplog.messages == [
        "step 1 is skipped: loss component 'affinity' is nan in sample 41 (volume 'cube-1', "
        "offset [1, 2, 3])",
        "step 3 is skipped: loss component 'affinity' is nan in sample 44 (volume 'cube-0', "
        "offset [4, 2, 3])",
    ]


def test_so_many_in_a_row_end_the_training() -> None:
    engine = trainer(unet(), spoiled(crops(7), 1, 3, 4, 5), affinity_loss(), max_non_finite_steps=3)
    with pytest.raises(
        InputError,
        match=r"^training stops at step 6, as 3 in a row were skipped \(max_non_finite_steps\) "
        r"since their loss or gradient was not finite, here loss component 'affinity' is nan in "
        r"sample 45 \(volume 'cube-1', offset \[5, 2, 3\]\): check raw and labels there, or lower ",
    ):
        engine.run()
    assert step_of(engine).non_finite.total == 4


def test_a_step_in_between_begins_the_row_anew() -> None:
    items = spoiled(crops(7), 0, 1, 3, 4, 6)
    engine = trainer(unet(), items, affinity_loss(), max_non_finite_steps=3)
    engine.run()
    assert step_of(engine).non_finite.state_dict() == {"total": 5, "in_row": 1}


def test_a_gradient_that_is_not_finite_is_skipped_and_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The root of 0 has a finite value, but no finite slope."""

    def loss(prediction: Tensor, label: Tensor) -> Tensor:
        return prediction.abs().sqrt().mean()

    network = linear()
    trainer(network, gradients((1.0, 2.0)), loss).run()
    assert network.weight.detach().tolist() == [[0.0, 0.0]]
    (message,) = caplog.messages
    assert message == (
        "step 1 is skipped: the gradient of 'weight' is not finite in sample number 1 of the batch"
    )


@pytest.mark.parametrize("limit", [0, -1, 2.5, "3", None])
def test_another_limit_is_refused(limit: Any) -> None:
    with pytest.raises(InputError, match="max_non_finite_steps must be a whole number from 1 on"):
        trainer(linear(), [], mean_of_predictions, max_non_finite_steps=limit)


# --- float16 ---


def test_float16_finds_its_scale_and_skips_nothing_else() -> None:
    scaler = loss_scaler(True, "float16", torch.device("cpu"))
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**40})
    network = unet()
    settings: dict[str, Any] = {"scaler": scaler, "inferer": CropInferer(True, "float16")}
    engine = trainer(network, crops(4), affinity_loss(), epochs=12, rate=0.1, **settings)
    said: list[dict[str, float]] = []
    engine.add_event_handler(
        IterationEvents.MODEL_COMPLETED, lambda engine: said.append(engine.state.step_info)
    )
    begin = copy.deepcopy(network.state_dict())
    engine.run()
    skipped = [info["skipped"] for info in said]
    first = skipped.index(0.0)
    assert 0 < first < 40 and not any(skipped[first:])
    scales = [info["loss_scale"] for info in said]
    assert scales == [2.0 ** (40 - min(n, first)) for n in range(len(said))]
    assert step_of(engine).non_finite.state_dict() == {"total": 0, "in_row": 0}
    assert any(not torch.equal(v, begin[n]) for n, v in network.state_dict().items())


def test_float16_trains_what_float32_does_within_rounding() -> None:
    found = []
    for dtype in ("float16", None):
        network = unet()
        scaler = loss_scaler(True, dtype, torch.device("cpu")) if dtype else None
        inferer = CropInferer(bool(dtype), dtype or "bfloat16")
        settings: dict[str, Any] = {"scaler": scaler, "inferer": inferer, "max_gradient_norm": 0.5}
        trainer(network, crops(4), affinity_loss(), epochs=1, **settings).run()
        found.append(network.state_dict())
    for name, value in found[1].items():
        torch.testing.assert_close(found[0][name], value, rtol=0.02, atol=0.01)


def test_the_scale_is_taken_up() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    first, second, other = (
        TrainingStep(None, _schedule(optimizer), loss_scaler(True, dtype, torch.device("cpu")))
        for dtype in ("float16", "float16", "bfloat16")
    )
    first.scaler.load_state_dict({**first.scaler.state_dict(), "scale": 8.0, "_growth_tracker": 5})
    first.non_finite.load_state_dict({"total": 7, "in_row": 2})
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    assert second.scaler.get_scale() == 8.0
    other.load_state_dict(first.state_dict())
    second.load_state_dict(other.state_dict())
    assert second.scaler.get_scale() == 8.0


def _schedule(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return ExponentialLR(optimizer, 0.5)
