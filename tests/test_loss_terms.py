"""What holds for every loss: masks, precision, invariance, and what is refused."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nan, nn

from custom.channels import ChannelLayout
from custom.class_losses import ClassLoss, ClassTverskyLoss
from custom.errors import InputError
from custom.loss_terms import tversky
from custom.losses import (
    AffinityLoss,
    AffinityTverskyLoss,
    BoundaryWeightedAffinityLoss,
    LsdLoss,
    SumOfLosses,
)

SHAPE = (2, 3, 4)
BOTH = ChannelLayout(3)
FLAT = ChannelLayout(2, 6)  # what a 2D network predicts
ALONE = ChannelLayout(3, 0)
CLASSES = ChannelLayout(0, 0, 4)

Build = Callable[[ChannelLayout], nn.Module]

AFFINITY: dict[str, Build] = {
    "bce": AffinityLoss,
    "balanced bce": lambda layout: AffinityLoss(
        layout, positive_weight=[0.2, 3.0, 1.5][: layout.num_affinities]
    ),
    "smooth bce": lambda layout: AffinityLoss(layout, label_smoothing=0.1, boundary_weighted=True),
    "focal": lambda layout: AffinityLoss(layout, gamma=2, alpha=0.25),
    "flat focal": lambda layout: AffinityLoss(layout, gamma=0.5, boundary_weighted=True),
    "smooth focal": lambda layout: AffinityLoss(layout, gamma=2, alpha=0.5, label_smoothing=0.04),
    "dice": AffinityTverskyLoss,
    "tversky": lambda layout: AffinityTverskyLoss(
        layout, 0.3, 0.7, 1.0, boundary_weighted=True, positive_weight=0.3
    ),
    "boundary": BoundaryWeightedAffinityLoss,
}
LSD: dict[str, Build] = {
    "mse": LsdLoss,
    "smooth l1": lambda layout: LsdLoss(layout, beta=0.2, factor=3),
    "sum": lambda layout: SumOfLosses(
        {"affinity": AffinityLoss(layout, 2), "lsd": LsdLoss(layout, factor=0.25)}
    ),
}
CLASS: dict[str, Build] = {
    "cross entropy": ClassLoss,
    "weighted": lambda layout: ClassLoss(layout, class_weights=[0.1, 1.0, 2.0, 0.9]),
    "smooth": lambda layout: ClassLoss(layout, label_smoothing=0.1, boundary_weighted=True),
    "class focal": lambda layout: ClassLoss(layout, gamma=2, class_weights=[0.1, 1.0, 2.0, 0.9]),
    "flat class focal": lambda layout: ClassLoss(layout, gamma=0.5),
    "smooth class focal": lambda layout: ClassLoss(layout, gamma=1.5, label_smoothing=0.1),
    "class dice": ClassTverskyLoss,
    "class tversky": lambda layout: ClassTverskyLoss(
        layout, 0.3, 0.7, 1.0, False, [0.1, 1.0, 2.0, 0.9], True
    ),
}
CASES = [
    *(pytest.param(build, BOTH, id=f"{n}, 3D") for n, build in {**AFFINITY, **LSD}.items()),
    *(pytest.param(build, FLAT, id=f"{n}, 2D") for n, build in {**AFFINITY, **LSD}.items()),
    *(pytest.param(build, ALONE, id=f"{n}, alone") for n, build in AFFINITY.items()),
    *(pytest.param(build, CLASSES, id=name) for name, build in CLASS.items()),
]
every_loss = pytest.mark.parametrize(("build", "layout"), CASES)


def random_batch(
    layout: ChannelLayout, batch: int = 2, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Prediction and target; about half of everything is masked out."""
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.randn(batch, layout.num_outputs, *SHAPE, generator=generator, dtype=dtype)
    target = torch.rand(batch, layout.num_targets, *SHAPE, generator=generator, dtype=dtype)
    for channels in (layout.affinities, layout.valid, layout.lsd_mask):
        target[:, channels] = target[:, channels].round()
    target[:, layout.class_id] = (target[:, layout.class_id] * layout.num_classes).floor()
    target[:, layout.weight] += 0.1
    return prediction, target


def masked(layout: ChannelLayout, target: Tensor) -> Tensor:
    """True for every channel of the prediction that does not count."""
    valid = target[:, layout.valid] == 0
    if layout.num_classes:
        return valid.expand(-1, layout.num_classes, *valid.shape[2:])
    lsds = (target[:, layout.lsd_mask] == 0).expand(-1, layout.num_lsds, *valid.shape[2:])
    return torch.cat([valid, lsds], dim=1)


# --- values and gradients ---


@every_loss
def test_the_gradient_is_the_derivative(build: Build, layout: ChannelLayout) -> None:
    prediction, target = random_batch(layout)
    loss = build(layout)
    assert torch.autograd.gradcheck(lambda p: loss(p, target), prediction.requires_grad_())


@every_loss
@pytest.mark.parametrize("poison", [nan, math.inf, -math.inf, 1e30])
def test_what_is_masked_contributes_exactly_nothing(
    build: Build, layout: ChannelLayout, poison: float
) -> None:
    prediction, target = random_batch(layout, dtype=torch.float32)
    outside = masked(layout, target)
    assert 0.2 < outside.double().mean() < 0.8
    loss = build(layout)
    poisoned = torch.where(outside, poison, prediction).requires_grad_()
    value = loss(poisoned, target)
    value.backward()
    assert value == loss(prediction, target)
    assert poisoned.grad is not None
    assert (poisoned.grad[outside] == 0).all()
    assert poisoned.grad.isfinite().all()
    assert (poisoned.grad[~outside] != 0).double().mean() > 0.1


@every_loss
def test_targets_that_are_masked_do_not_matter(build: Build, layout: ChannelLayout) -> None:
    prediction, target = random_batch(layout, dtype=torch.float32)
    poisoned = target.clone()
    outside = masked(layout, target)
    if layout.num_classes:
        poisoned[:, layout.class_id] = torch.where(
            outside[:, :1], nan, poisoned[:, layout.class_id]
        )
    else:
        poisoned[:, : layout.num_outputs][outside] = nan
    nowhere = (poisoned[:, layout.valid] == 0).all(dim=1, keepdim=True)
    poisoned[:, layout.weight] = torch.where(nowhere, nan, poisoned[:, layout.weight])
    loss = build(layout)
    assert loss(prediction, poisoned) == loss(prediction, target)


@every_loss
def test_nothing_that_counts_is_zero_with_zero_gradient(
    build: Build, layout: ChannelLayout
) -> None:
    prediction, target = random_batch(layout)
    target[:, layout.valid] = 0
    target[:, layout.lsd_mask] = 0
    value = build(layout)(prediction.requires_grad_(), target)
    value.backward()
    assert value == 0
    assert prediction.grad is not None
    assert (prediction.grad == 0).all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_and_computed_in_float32(
    build: Build, layout: ChannelLayout, dtype: torch.dtype
) -> None:
    prediction, target = random_batch(layout)
    logits = (prediction.sign() * torch.logspace(-4, 4, prediction.numel()).view_as(prediction)).to(
        dtype
    )
    loss = build(layout)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(logits.requires_grad_(), target.half())
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    exact = loss(logits.detach().double(), target.half().double())
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)


@every_loss
@pytest.mark.parametrize("side", [-1, 1])
def test_the_largest_logits_on_either_side_keep_the_gradient_finite(
    build: Build, layout: ChannelLayout, side: float
) -> None:
    prediction, target = random_batch(layout, dtype=torch.float32)
    for scale in (0.0, 100.0, 1e4):
        logits = (prediction.abs() * side * scale).requires_grad_()
        value = build(layout)(logits, target)
        value.backward()
        assert value.isfinite()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


@every_loss
def test_the_order_of_samples_does_not_matter(build: Build, layout: ChannelLayout) -> None:
    prediction, target = random_batch(layout, batch=3)
    loss = build(layout)
    order = [2, 0, 1]
    torch.testing.assert_close(loss(prediction[order], target[order]), loss(prediction, target))


@every_loss
def test_two_samples_cost_what_one_volume_of_both_costs(
    build: Build, layout: ChannelLayout
) -> None:
    prediction, target = random_batch(layout, batch=2)
    joined = [torch.cat(list(tensor), dim=-1)[None] for tensor in (prediction, target)]
    loss = build(layout)
    torch.testing.assert_close(loss(*joined), loss(prediction, target))


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(0.01, 100), seed=st.integers(0, 1000))
def test_the_unit_of_weights_does_not_matter(scale: float, seed: int) -> None:
    prediction, target = random_batch(CLASSES, seed=seed)
    scaled = target.clone()
    scaled[:, CLASSES.weight] *= scale
    weights = [0.1, 1.0, 2.0, 0.9]
    one = ClassLoss(CLASSES, 2, class_weights=weights, boundary_weighted=True)
    other = ClassLoss(
        CLASSES, 2, class_weights=[w * scale for w in weights], boundary_weighted=True
    )
    torch.testing.assert_close(other(prediction, scaled), one(prediction, target))
    prediction, target = random_batch(FLAT, seed=seed)
    scaled = target.clone()
    scaled[:, FLAT.weight] *= scale
    focal = AffinityLoss(FLAT, 2, boundary_weighted=True)
    torch.testing.assert_close(focal(prediction, scaled), focal(prediction, target))


@every_loss
def test_without_boundary_weights_the_weight_channel_is_not_looked_at(
    build: Build, layout: ChannelLayout
) -> None:
    prediction, target = random_batch(layout)
    other = target.clone()
    other[:, layout.weight] = torch.rand_like(other[:, layout.weight]) + 0.1
    loss = build(layout)
    terms = loss.terms.values() if isinstance(loss, SumOfLosses) else [loss]
    weighted = any(getattr(term, "boundary_weighted", False) for term in terms)
    assert (loss(prediction, other) != loss(prediction, target)) == weighted


@every_loss
def test_a_perfect_prediction_costs_less_than_any_other(
    build: Build, layout: ChannelLayout
) -> None:
    _, target = random_batch(layout)
    loss = build(layout)
    smoothed = getattr(loss, "label_smoothing", 0) > 0
    best = loss(perfect_logits(layout, target, 3 if smoothed else 20), target)
    for seed in range(3):
        assert loss(random_batch(layout, seed=seed)[0], target) > best
    assert smoothed or best < 1e-4


def perfect_logits(layout: ChannelLayout, target: Tensor, confidence: float) -> Tensor:
    """Logits of the truth; their size for affinities and classes is given."""
    if layout.num_classes:
        ids = target[:, layout.class_id].long()[:, 0]
        hot = torch.nn.functional.one_hot(ids, layout.num_classes).movedim(-1, 1)
        return confidence * hot.to(target.dtype)
    signs = confidence * (2 * target[:, layout.affinities] - 1)
    return torch.cat([signs, torch.logit(target[:, layout.lsds])], dim=1)


@pytest.mark.parametrize("gamma", [0, 0.5, 2])
@pytest.mark.parametrize("layout", [ALONE, CLASSES], ids=["affinities", "classes"])
def test_label_smoothing_puts_the_optimum_at_finite_logits(
    layout: ChannelLayout, gamma: float
) -> None:
    smoothing = 0.04
    target = torch.zeros(1, layout.num_targets, 1, 1, 1, dtype=torch.float64)
    target[:, layout.valid] = 1
    if layout.num_classes:
        loss: nn.Module = ClassLoss(layout, gamma, smoothing)
        ratio = (1 - smoothing + smoothing / 4) / (smoothing / 4)
    else:
        loss = AffinityLoss(layout, gamma, label_smoothing=smoothing)
        ratio = (1 - smoothing / 2) / (smoothing / 2)
    values = []
    for certainty in (0.5, 1.0, 2.0, 4.0, 1000.0):  # times the log odds of the smoothed truth
        logits = torch.zeros(1, layout.num_outputs, 1, 1, 1, dtype=torch.float64)
        if layout.num_classes:
            logits[:, 0] = certainty * math.log(ratio)
        else:
            logits[:] = -certainty * math.log(ratio)
        values.append(loss(logits, target).item())
    assert min(values) < values[-1] < math.inf
    if gamma == 0:
        assert values.index(min(values)) == 1


@every_loss
def test_components_are_the_terms_and_have_no_gradient(build: Build, layout: ChannelLayout) -> None:
    prediction, target = random_batch(layout)
    loss = build(layout)
    value = loss(prediction.requires_grad_(), target)
    terms = loss.terms if isinstance(loss, SumOfLosses) else {"": loss}
    assert len(loss.components) == len(terms)
    assert not any(part.requires_grad for part in loss.components.values())
    factors = [term.factor for term in terms.values()]
    total = sum(f * part for f, part in zip(factors, loss.components.values(), strict=True))
    torch.testing.assert_close(value.detach(), total)


def test_an_overlap_counted_by_hand() -> None:
    probability = torch.tensor([[[[[0.5, 0.25, 1.0]]]]], dtype=torch.float64)
    truth = torch.tensor([[[[[1.0, 0.0, 1.0]]]]], dtype=torch.float64)
    weight = torch.tensor([[[[[2.0, 4.0, 0.0]]]]], dtype=torch.float64)
    # TP = 2 * 0.5, FP = 4 * 0.25, FN = 2 * 0.5
    expected = 1 - (1 + 0.5) / (1 + 0.3 * 1 + 0.6 * 1 + 0.5)
    found = tversky(probability, truth, weight, 0.3, 0.6, 0.5)
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64))


# --- what is refused ---


@every_loss
def test_shapes_that_do_not_match_are_refused(build: Build, layout: ChannelLayout) -> None:
    prediction, target = random_batch(layout)
    loss = build(layout)
    outputs, targets = layout.num_outputs, layout.num_targets
    for wrong in ((prediction[:, 1:], target), (prediction, target[:, 1:])):
        with pytest.raises(ValueError, match=rf"prediction must be \(B, {outputs}, .* got .* and "):
            loss(*wrong)
    for wrong in ((prediction[..., 1:], target), (prediction[:1], target)):
        with pytest.raises(ValueError, match=rf"\(B, {targets}, D, H, W\) of the same size"):
            loss(*wrong)


@pytest.mark.parametrize(
    ("build", "layout", "message"),
    [
        pytest.param(
            ClassLoss,
            ALONE,
            "loss: ClassLoss needs classes, which the network does not predict with output_type "
            "'affinities': set output_type to 'labels', or choose another loss, such as "
            "cross_entropy of configs/losses.json",
            id="classes of affinities",
        ),
        pytest.param(
            ClassTverskyLoss,
            BOTH,
            "ClassTverskyLoss needs classes, .* with output_type 'affinities_lsds'",
            id="classes of affinities and LSDs",
        ),
        pytest.param(
            LsdLoss,
            ALONE,
            "LsdLoss needs lsds, .* 'affinities': set output_type to 'affinities_lsds', or",
            id="LSDs of affinities",
        ),
        pytest.param(LsdLoss, CLASSES, "LsdLoss needs lsds, .* 'labels'", id="LSDs of classes"),
        pytest.param(
            AffinityLoss,
            CLASSES,
            "AffinityLoss needs affinities, .* 'labels': set output_type to 'affinities_lsds' or "
            "'affinities', or choose",
            id="affinities of classes",
        ),
        pytest.param(
            AffinityTverskyLoss,
            CLASSES,
            "AffinityTverskyLoss needs affinities",
            id="overlap of affinities",
        ),
        pytest.param(
            BoundaryWeightedAffinityLoss,
            CLASSES,
            "loss: BoundaryWeightedAffinityLoss needs affinities, which .* 'labels'",
            id="the default loss",
        ),
    ],
)
def test_channels_that_the_network_does_not_have_are_refused(
    build: Build, layout: ChannelLayout, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build(layout)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AffinityLoss(ALONE, gamma=-1), "gamma of AffinityLoss must be a number from 0 on"),
        (lambda: AffinityLoss(ALONE, gamma=nan), "gamma of AffinityLoss .* got nan"),
        (lambda: AffinityLoss(ALONE, gamma=math.inf), "gamma of AffinityLoss .* got inf"),
        (lambda: AffinityLoss(ALONE, alpha=1.5), "alpha of AffinityLoss must .* from 0 to 1"),
        (lambda: AffinityLoss(ALONE, label_smoothing=2), "label_smoothing .* from 0 to 1, got 2"),
        (lambda: AffinityLoss(ALONE, boundary_weighted="false"), "must be true or false"),
        (lambda: AffinityLoss(ALONE, positive_weight=0), "one positive number or 3 of them, got 0"),
        (lambda: AffinityLoss(ALONE, positive_weight=[1, 2]), r"3 of them, got \[1, 2\]"),
        (lambda: AffinityLoss(ALONE, positive_weight="12"), "3 of them, got '12'"),
        (
            lambda: AffinityLoss(ALONE, alpha=0.5, positive_weight=2),
            "alpha and positive_weight of AffinityLoss both weigh the positives",
        ),
        (lambda: AffinityLoss(ALONE, factor=-1), "factor of AffinityLoss"),
        (lambda: AffinityTverskyLoss(ALONE, smooth=0), "smooth of AffinityTverskyLoss"),
        (lambda: AffinityTverskyLoss(ALONE, beta=True), "beta of .* got True"),
        (lambda: LsdLoss(BOTH, beta=0), "beta of LsdLoss must be a number from 1e-09 on"),
        (lambda: ClassLoss(CLASSES, class_weights=[1, 2]), "class_weights of ClassLoss .* 4 of"),
        (lambda: ClassTverskyLoss(CLASSES, include_background=0), "must be true or false"),
        (lambda: SumOfLosses({}), "SumOfLosses has no terms for this output_type"),
    ],
)
def test_values_out_of_range_are_refused(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.parametrize(("found", "named"), [(4, 4), (-1, -1), (255, 255)])
def test_a_class_that_the_network_does_not_have_is_named(found: int, named: int) -> None:
    prediction, target = random_batch(CLASSES)
    target[0, CLASSES.class_id, 0, 0, 0] = found
    target[0, CLASSES.valid, 0, 0, 0] = 1
    with pytest.raises(InputError, match=rf"class {named}, but num_classes allows 0 to 3"):
        ClassLoss(CLASSES)(prediction, target)
    target[0, CLASSES.valid, 0, 0, 0] = 0
    assert ClassLoss(CLASSES)(prediction, target).isfinite()
