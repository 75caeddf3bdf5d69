import math

import pytest
import torch
from torch import nan
from torch.nn.functional import softplus

from custom.channels import ChannelLayout
from custom.losses import BoundaryWeightedAffinityLoss

SHAPE = (2, 3, 4)


def random_batch(layout, batch=2, seed=0, dtype=torch.float64):
    """Prediction and target with random values in every channel."""
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.randn(batch, layout.num_outputs, *SHAPE, generator=generator, dtype=dtype)
    target = torch.rand(batch, layout.num_targets, *SHAPE, generator=generator, dtype=dtype)
    for channels in (layout.affinities, layout.valid, layout.lsd_mask):
        target[:, channels] = target[:, channels].round()
    return prediction, target


def row(layout, *, affinity, valid, weight, lsd=0.5, lsd_mask=1.0):
    """Target of one row of voxels from lists of numbers; all LSD channels alike."""
    width = len(weight)
    target = torch.zeros(1, layout.num_targets, 1, 1, width)
    target[:, layout.affinities] = torch.tensor(affinity)[None, :, None, None]
    target[:, layout.valid] = torch.tensor(valid)[None, :, None, None]
    target[:, layout.weight] = torch.tensor(weight)
    target[:, layout.lsds] = lsd
    target[:, layout.lsd_mask] = torch.as_tensor(lsd_mask)
    return target


LOG2 = math.log(2)
SOFTPLUS_1 = math.log1p(math.e)  # cross entropy of logit 1 when the truth is 0


@pytest.mark.parametrize(
    ("num_lsds", "logits", "target", "expected"),
    [
        pytest.param(
            0,
            [[0.0, 0.0]],
            {"affinity": [[1.0, 0.0]], "valid": [[1.0, 1.0]], "weight": [1.0, 1.0]},
            LOG2,
            id="undecided",
        ),
        pytest.param(
            0,
            [[0.0, 1.0]],
            {"affinity": [[1.0, 0.0]], "valid": [[1.0, 1.0]], "weight": [1.0, 3.0]},
            (LOG2 + 3 * SOFTPLUS_1) / 4,
            id="weighted mean",
        ),
        pytest.param(
            0,
            [[0.0, 1.0], [nan, 1.0]],
            {
                "affinity": [[1.0, 0.0], [1.0, 1.0]],
                "valid": [[1.0, 0.0], [0.0, 1.0]],
                "weight": [2.0, 0.5],
            },
            (2 * LOG2 + 0.5 * (SOFTPLUS_1 - 1)) / 2.5,
            id="validity for each offset",
        ),
        pytest.param(
            10,
            [[0.0, 0.0]] + [[0.0, nan]] * 10,
            {
                "affinity": [[1.0, 0.0]],
                "valid": [[1.0, 1.0]],
                "weight": [1.0, 1.0],
                "lsd": 0.25,
                "lsd_mask": [1.0, 0.0],
            },
            LOG2 + 2 * 0.25**2,
            id="LSDs of one voxel",
        ),
    ],
)
def test_value_computed_by_hand(num_lsds, logits, target, expected):
    layout = ChannelLayout(len(target["affinity"]), num_lsds)
    loss = BoundaryWeightedAffinityLoss(layout, lsd_weight=2)
    prediction = torch.tensor(logits)[None, :, None, None]
    torch.testing.assert_close(
        loss(prediction, row(layout, **target)), torch.tensor(expected, dtype=torch.float32)
    )


@pytest.mark.parametrize("num_lsds", [0, 10])
def test_gradient_is_the_derivative(num_lsds):
    layout = ChannelLayout(3, num_lsds)
    prediction, target = random_batch(layout)
    loss = BoundaryWeightedAffinityLoss(ChannelLayout(3, num_lsds), lsd_weight=0.3)
    assert torch.autograd.gradcheck(lambda p: loss(p, target), prediction.requires_grad_())


@pytest.mark.parametrize("poison", [nan, math.inf, -math.inf, 1e30])
def test_masked_voxels_contribute_exactly_nothing(poison):
    layout = ChannelLayout(3)
    prediction, target = random_batch(layout, dtype=torch.float32)
    masked = torch.cat(
        [
            target[:, layout.valid] == 0,
            (target[:, layout.lsd_mask] == 0).expand(-1, 10, -1, -1, -1),
        ],
        dim=1,
    )
    assert masked.any()
    assert not masked.all()
    loss = BoundaryWeightedAffinityLoss(ChannelLayout(3))
    poisoned = torch.where(masked, poison, prediction).requires_grad_()
    value = loss(poisoned, target)
    value.backward()
    assert value == loss(prediction, target)
    assert (poisoned.grad[masked] == 0).all()
    assert (poisoned.grad[~masked] != 0).all()


def test_targets_of_masked_voxels_do_not_matter():
    layout = ChannelLayout(3)
    prediction, target = random_batch(layout, dtype=torch.float32)
    poisoned = target.clone()
    poisoned[:, layout.affinities][target[:, layout.valid] == 0] = nan
    outside = (target[:, layout.lsd_mask] == 0).expand(-1, 10, -1, -1, -1)
    poisoned[:, layout.lsds][outside] = nan
    loss = BoundaryWeightedAffinityLoss(ChannelLayout(3))
    assert loss(prediction, poisoned) == loss(prediction, target)


@pytest.mark.parametrize("num_lsds", [0, 10])
def test_an_all_masked_batch_is_zero_with_zero_gradient(num_lsds):
    layout = ChannelLayout(2, num_lsds)
    prediction, target = random_batch(layout)
    target[:, layout.valid] = 0
    target[:, layout.lsd_mask] = 0
    value = BoundaryWeightedAffinityLoss(ChannelLayout(2, num_lsds))(
        prediction.requires_grad_(), target
    )
    value.backward()
    assert value == 0
    assert (prediction.grad == 0).all()


def test_half_precision_is_computed_in_float32():
    layout = ChannelLayout(3)
    prediction, target = random_batch(layout)
    prediction = prediction.to(torch.bfloat16)
    loss = BoundaryWeightedAffinityLoss(ChannelLayout(3))
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(prediction, target.half())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(prediction.float(), target.half().float()))


def test_the_loss_is_the_weighted_sum_of_its_components():
    layout = ChannelLayout(3)
    prediction, target = random_batch(layout)
    loss = BoundaryWeightedAffinityLoss(ChannelLayout(3), lsd_weight=0.5)
    value = loss(prediction.requires_grad_(), target)
    parts = loss.components
    assert set(parts) == {"affinity", "lsd"}
    assert not any(part.requires_grad for part in parts.values())
    torch.testing.assert_close(value, parts["affinity"] + 0.5 * parts["lsd"])
    assert min(parts.values()) > 0


def test_a_perfect_prediction_costs_next_to_nothing():
    layout = ChannelLayout(3)
    _, target = random_batch(layout)
    prediction = torch.cat(
        [40 * (2 * target[:, layout.affinities] - 1), torch.logit(target[:, layout.lsds])], dim=1
    )
    assert BoundaryWeightedAffinityLoss(ChannelLayout(3))(prediction, target) < 1e-9


def test_large_logits_stay_finite():
    layout = ChannelLayout(1, 0)
    target = row(layout, affinity=[[0.0, 1.0]], valid=[[1.0, 1.0]], weight=[1.0, 1.0])
    prediction = torch.tensor([1000.0, 1000.0]).reshape(1, 1, 1, 1, 2)
    expected = softplus(torch.tensor(1000.0)) / 2
    torch.testing.assert_close(
        BoundaryWeightedAffinityLoss(ChannelLayout(1, 0))(prediction, target), expected
    )


def test_rejects_shapes_that_do_not_match():
    layout = ChannelLayout(3)
    prediction, target = random_batch(layout)
    loss = BoundaryWeightedAffinityLoss(ChannelLayout(3))
    for wrong in ((prediction[:, 1:], target), (prediction, target[:, 1:])):
        with pytest.raises(ValueError, match=r"prediction must be \(B, 13, .* got .* and "):
            loss(*wrong)
    for wrong in ((prediction[..., 1:], target), (prediction[:1], target)):
        with pytest.raises(ValueError, match=r"target \(B, 18, D, H, W\) of the same size"):
            loss(*wrong)


def test_rejects_a_negative_weight():
    with pytest.raises(ValueError, match="lsd_weight must not be negative"):
        BoundaryWeightedAffinityLoss(ChannelLayout(3), lsd_weight=-1)
