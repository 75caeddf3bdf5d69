import math

import pytest
import torch
from monai.losses import DiceLoss, FocalLoss, TverskyLoss
from torch import nan
from torch.nn import functional as F
from torch.nn.functional import softplus

from custom.channels import ChannelLayout
from custom.losses import (
    AffinityLoss,
    AffinityTverskyLoss,
    BoundaryWeightedAffinityLoss,
    LsdLoss,
    SumOfLosses,
)

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


# --- the parts it is made of, and their other forms ---


def plain_row(logits, truth, valid=None, weight=None):
    """One offset, one row of voxels."""
    valid = [1.0] * len(truth) if valid is None else valid
    weight = [1.0] * len(truth) if weight is None else weight
    target = row(ChannelLayout(1, 0), affinity=[truth], valid=[valid], weight=weight)
    return torch.tensor(logits, dtype=torch.float64)[None, None, None, None], target.double()


P1 = 1 / (1 + math.exp(-1))  # sigmoid of 1
LOG_P1, LOG_Q1 = math.log(P1), math.log(1 - P1)


@pytest.mark.parametrize(
    ("settings", "row_of", "expected"),
    [
        pytest.param({}, ([0.0, 1.0], [1.0, 1.0]), (LOG2 - LOG_P1) / 2, id="cross entropy"),
        pytest.param(
            {"gamma": 2},
            ([0.0, 1.0], [1.0, 0.0]),
            (0.25 * LOG2 - P1**2 * LOG_Q1) / 2,
            id="focal",
        ),
        pytest.param(
            {"gamma": 2, "alpha": 0.25},
            ([0.0, 1.0], [1.0, 0.0]),
            (0.25 * 0.25 * LOG2 - 0.75 * P1**2 * LOG_Q1) / 2,
            id="focal with a share for the positives",
        ),
        pytest.param(
            {"label_smoothing": 0.04},
            ([1.0], [1.0]),
            -(0.98 * LOG_P1 + 0.02 * LOG_Q1),
            id="smoothed: 0.96 t + 0.02",
        ),
        pytest.param(
            {"gamma": 2, "alpha": 0.5, "label_smoothing": 0.04, "boundary_weighted": True},
            ([1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [3.0, 1.0]),
            (
                3
                * 0.5
                * (1 - (0.02 * P1 + 0.98 * (1 - P1))) ** 2
                * -(0.02 * LOG_P1 + 0.98 * LOG_Q1)
                + 0.5 * 0.25 * LOG2
            )
            / 4,
            id="the predecessor's form",
        ),
        pytest.param(
            {"positive_weight": 3},
            ([0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]),
            (3 * LOG2 - LOG_Q1) / 2,
            id="positives three times",
        ),
        pytest.param(
            {"gamma": 1, "positive_weight": 3},
            ([1.0], [1.0]),
            -3 * (1 - P1) * LOG_P1,
            id="the balance stays out of p_t",
        ),
    ],
)
def test_affinities_computed_by_hand(settings, row_of, expected):
    value = AffinityLoss(ChannelLayout(1, 0), **settings)(*plain_row(*row_of))
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_overlap_of_affinities_computed_by_hand():
    logits, target = plain_row([0.0, 1.0, 9.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [2.0, 0.5, 1.0])
    layout = ChannelLayout(1, 0)
    plain = AffinityTverskyLoss(layout, 0.3, 0.6, 1)(logits, target)
    assert plain.item() == pytest.approx(1 - 1.5 / (0.5 + 0.3 * P1 + 0.6 * 0.5 + 1))
    weighted = AffinityTverskyLoss(layout, 0.3, 0.6, 1, boundary_weighted=True)(logits, target)
    assert weighted.item() == pytest.approx(1 - 2 / (1 + 0.3 * P1 / 2 + 0.6 * 1 + 1))
    balanced = AffinityTverskyLoss(layout, 0.3, 0.6, 1, positive_weight=4)(logits, target)
    assert balanced.item() == pytest.approx(1 - 3 / (2 + 0.3 * P1 + 0.6 * 2 + 1))


def test_an_offset_that_never_counts_is_not_in_the_mean():
    layout = ChannelLayout(2, 0)
    prediction, target = random_batch(layout)
    target[:, layout.valid] = 1
    both = AffinityTverskyLoss(layout)(prediction, target)
    target[:, layout.valid.start] = 0
    one = AffinityTverskyLoss(layout)(prediction, target)
    alone = AffinityTverskyLoss(ChannelLayout(1, 0))(prediction[:, 1:], target[:, [1, 3, 4, 5]])
    torch.testing.assert_close(one, alone)
    assert abs(one - both) > 1e-3


@pytest.mark.parametrize("num_lsds", [6, 10])
def test_lsds_computed_by_hand(num_lsds):
    layout = ChannelLayout(1, num_lsds)
    target = row(
        layout,
        affinity=[[1.0, 1.0, 1.0]],
        valid=[[0.0] * 3],
        weight=[1.0] * 3,
        lsd=0.25,
        lsd_mask=[1.0, 1.0, 0.0],
    )
    prediction = torch.zeros(1, layout.num_outputs, 1, 1, 3)
    prediction[..., 1] = 1
    near, far = 0.25, P1 - 0.25
    squared = LsdLoss(layout)(prediction, target)
    assert squared.item() == pytest.approx((near**2 + far**2) / 2)
    smooth = LsdLoss(layout, beta=0.4)(prediction, target)
    assert smooth.item() == pytest.approx((near**2 / 0.8 + far - 0.2) / 2)
    halved = LsdLoss(layout, beta=1, factor=0.25)(prediction, target)
    assert halved.item() == pytest.approx(squared.item() / 8)


def unmasked(layout):
    prediction, target = random_batch(layout)
    target[:, layout.valid] = 1
    target[:, layout.lsd_mask] = 1
    return 3 * prediction, target, target[:, layout.affinities]


@pytest.mark.parametrize("weights", [None, [0.1, 2.0, 5.0]])
def test_affinity_cross_entropy_is_that_of_torch(weights):
    layout = ChannelLayout(3, 0)
    prediction, target, truth = unmasked(layout)
    balance = None if weights is None else torch.tensor(weights)[:, None, None, None]
    expected = F.binary_cross_entropy_with_logits(prediction, truth, pos_weight=balance)
    found = AffinityLoss(layout, positive_weight=weights)(prediction, target)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.5, None), (5.0, 1.0)])
def test_affinity_focal_is_that_of_monai(gamma, alpha):
    layout = ChannelLayout(3, 0)
    prediction, target, truth = unmasked(layout)
    expected = FocalLoss(gamma=gamma, alpha=alpha)(prediction, truth)
    found = AffinityLoss(layout, gamma, alpha)(prediction, target)
    torch.testing.assert_close(found, expected.to(found.dtype))


def test_affinity_overlap_is_that_of_monai():
    layout = ChannelLayout(3, 0)
    prediction, target, truth = unmasked(layout)
    dice = DiceLoss(sigmoid=True, batch=True, smooth_nr=2.0, smooth_dr=2.0)
    found = AffinityTverskyLoss(layout, smooth=1)(prediction, target)
    torch.testing.assert_close(found, dice(prediction, truth))
    tversky = TverskyLoss(sigmoid=True, batch=True, alpha=0.2, beta=0.9)
    found = AffinityTverskyLoss(layout, 0.2, 0.9)(prediction, target)
    torch.testing.assert_close(found, tversky(prediction, truth))


@pytest.mark.parametrize("beta", [None, 0.1, 1.0])
def test_the_error_of_lsds_is_that_of_torch(beta):
    layout = ChannelLayout(2, 6)
    prediction, target, _ = unmasked(layout)
    found, truth = torch.sigmoid(prediction[:, layout.lsds]), target[:, layout.lsds]
    expected = (
        F.mse_loss(found, truth) if beta is None else F.smooth_l1_loss(found, truth, beta=beta)
    )
    torch.testing.assert_close(LsdLoss(layout, beta)(prediction, target), expected)


def test_the_default_loss_is_a_sum_of_its_parts():
    layout = ChannelLayout(3)
    prediction, target = random_batch(layout)
    parts = {
        "affinity": AffinityLoss(layout, boundary_weighted=True, positive_weight=[1.0, 2.0, 3.0]),
        "lsd": LsdLoss(layout, factor=0.5),
    }
    whole = BoundaryWeightedAffinityLoss(layout, 0.5, positive_weight=[1.0, 2.0, 3.0])
    total = SumOfLosses(parts)
    assert whole(prediction, target) == total(prediction, target)
    assert whole.components == total.components


def test_without_lsds_the_default_loss_has_one_term():
    layout = ChannelLayout(3, 0)
    loss = BoundaryWeightedAffinityLoss(layout, 5)
    prediction, target = random_batch(layout)
    assert loss(prediction, target) == loss.components["affinity"]
    assert list(loss.components) == ["affinity"]
