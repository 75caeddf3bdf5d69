import math

import pytest
import torch
from monai.losses import DiceLoss, FocalLoss, TverskyLoss
from torch.nn import functional as F

from custom.channels import ChannelLayout
from custom.class_losses import ClassLoss, ClassTverskyLoss

LAYOUT = ChannelLayout(0, 0, 3)
SHAPE = (2, 5, 3)
WEIGHTS = [0.5, 1.0, 4.0]


def batch(seed=0, masked=False):
    """Logits, ids (B, D, H, W) and target; everything counts unless masked."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 3, *SHAPE, generator=generator, dtype=torch.float64)
    ids = torch.randint(0, 3, (2, *SHAPE), generator=generator)
    target = torch.ones(2, 3, *SHAPE, dtype=torch.float64)
    target[:, 0] = ids
    if masked:
        target[:, 1] = torch.rand(2, *SHAPE, generator=generator).round()
    return logits, ids, target


def one_row(logits, ids, valid=None, weight=None):
    """One row of voxels: logits per voxel, N numbers each."""
    prediction = torch.tensor(logits, dtype=torch.float64).T[None, :, None, None]
    target = torch.ones(1, 3, 1, 1, len(ids), dtype=torch.float64)
    for channel, values in enumerate((ids, valid, weight)):
        if values is not None:
            target[0, channel, 0, 0] = torch.tensor(values)
    return prediction, target


LOG3 = math.log(3)
EVEN = [0.0, 0.0, 0.0]
SURE = [math.log(8), 0.0, 0.0]  # probabilities 0.8, 0.1, 0.1


@pytest.mark.parametrize(
    ("settings", "row", "expected"),
    [
        pytest.param({}, ([EVEN], [1]), LOG3, id="undecided"),
        pytest.param(
            {"class_weights": [1.0, 3.0, 2.0]},
            ([EVEN, SURE], [1, 0]),
            (3 * LOG3 - math.log(0.8)) / 4,
            id="weighted mean",
        ),
        pytest.param(
            {"gamma": 2},
            ([EVEN, SURE], [1, 0]),
            ((2 / 3) ** 2 * LOG3 - 0.2**2 * math.log(0.8)) / 2,
            id="focal",
        ),
        pytest.param(
            {"gamma": 1, "class_weights": [2.0, 1.0, 7.0]},
            ([EVEN, SURE], [1, 0]),
            (2 / 3 * LOG3 - 2 * 0.2 * math.log(0.8)) / 3,
            id="class weights stay out of p_t",
        ),
        pytest.param(
            {"label_smoothing": 0.3},
            ([SURE], [0]),
            -(0.8 * math.log(0.8) + 0.2 * math.log(0.1)),
            id="smoothed",
        ),
        pytest.param(
            {"gamma": 2, "label_smoothing": 0.3},
            ([SURE], [0]),
            -((1 - (0.8 * 0.8 + 0.2 * 0.1)) ** 2) * (0.8 * math.log(0.8) + 0.2 * math.log(0.1)),
            id="smoothed focal",
        ),
        pytest.param(
            {"boundary_weighted": True},
            ([EVEN, SURE, SURE], [1, 0, 2], [1, 1, 0], [3.0, 1.0, 9.0]),
            (3 * LOG3 - math.log(0.8)) / 4,
            id="weights of voxels, one masked",
        ),
    ],
)
def test_value_computed_by_hand(settings, row, expected):
    value = ClassLoss(LAYOUT, **settings)(*one_row(*row))
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_overlap_computed_by_hand():
    prediction, target = one_row([EVEN, SURE], [1, 0])
    third = 1 / 3
    parts = []
    for both, found, true in ((0.8, third + 0.8, 1), (third, third + 0.1, 1), (0, third + 0.1, 0)):
        parts.append(1 - (both + 1) / (both + 0.3 * (found - both) + 0.7 * (true - both) + 1))
    mean = ClassTverskyLoss(LAYOUT, 0.3, 0.7, 1)(prediction, target)
    assert mean.item() == pytest.approx(sum(parts) / 3, rel=1e-12)
    weighted = ClassTverskyLoss(LAYOUT, 0.3, 0.7, 1, class_weights=[1.0, 2.0, 5.0])
    expected = (parts[0] + 2 * parts[1] + 5 * parts[2]) / 8
    assert weighted(prediction, target).item() == pytest.approx(expected, rel=1e-12)
    foreground = ClassTverskyLoss(LAYOUT, 0.3, 0.7, 1, include_background=False)
    assert foreground(prediction, target).item() == pytest.approx(sum(parts[1:]) / 2, rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_is_that_of_torch(weights, smoothing):
    logits, ids, target = batch()
    found = ClassLoss(LAYOUT, class_weights=weights, label_smoothing=smoothing)(logits, target)
    given = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    expected = F.cross_entropy(logits, ids, weight=given, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected)


def test_cross_entropy_with_a_mask_is_that_of_torch_with_an_ignored_class():
    logits, ids, target = batch(masked=True)
    ignored = torch.where(target[:, 1] > 0, ids, -100)
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    torch.testing.assert_close(
        ClassLoss(LAYOUT, class_weights=WEIGHTS)(logits, target),
        F.cross_entropy(logits, ignored, weight=weights),
    )


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_is_that_of_monai(gamma):
    logits, ids, target = batch()
    theirs = FocalLoss(gamma=gamma, use_softmax=True, to_onehot_y=True, reduction="none")
    expected = theirs(logits, ids[:, None]).sum(dim=1).mean()
    torch.testing.assert_close(ClassLoss(LAYOUT, gamma)(logits, target), expected.double())


def test_focal_with_class_weights_is_that_of_monai_over_the_sum_of_weights():
    logits, ids, target = batch()
    theirs = FocalLoss(
        gamma=2.0, use_softmax=True, to_onehot_y=True, reduction="none", weight=WEIGHTS
    )
    expected = theirs(logits, ids[:, None]).sum() / torch.tensor(WEIGHTS)[ids].sum()
    found = ClassLoss(LAYOUT, 2, class_weights=WEIGHTS)(logits, target)
    torch.testing.assert_close(found, expected.double())


@pytest.mark.parametrize("background", [True, False])
def test_dice_is_that_of_monai(background):
    logits, ids, target = batch()
    theirs = DiceLoss(
        softmax=True,
        to_onehot_y=True,
        batch=True,
        include_background=background,
        smooth_nr=2.0,
        smooth_dr=2.0,
    )
    ours = ClassTverskyLoss(LAYOUT, smooth=1.0, include_background=background)
    torch.testing.assert_close(ours(logits, target), theirs(logits, ids[:, None]))


def test_dice_with_a_mask_is_that_of_monai_with_an_ignored_class():
    logits, ids, target = batch(masked=True)
    ignored = torch.where(target[:, 1] > 0, ids, 255)
    hot = F.one_hot(ids, 3).movedim(-1, 1) * (ignored != 255)[:, None]
    probability = logits.softmax(1) * (ignored != 255)[:, None]
    theirs = DiceLoss(batch=True, smooth_nr=2e-5, smooth_dr=2e-5)
    torch.testing.assert_close(
        ClassTverskyLoss(LAYOUT)(logits, target), theirs(probability, hot.to(logits.dtype))
    )


def test_tversky_is_that_of_monai():
    logits, ids, target = batch()
    theirs = TverskyLoss(softmax=True, to_onehot_y=True, batch=True, alpha=0.2, beta=0.9)
    ours = ClassTverskyLoss(LAYOUT, 0.2, 0.9)
    torch.testing.assert_close(ours(logits, target), theirs(logits, ids[:, None]))


def test_focal_without_focus_is_the_cross_entropy():
    logits, _, target = batch(masked=True)
    near = ClassLoss(LAYOUT, 1e-9, class_weights=WEIGHTS)(logits, target)
    torch.testing.assert_close(near, ClassLoss(LAYOUT, 0, class_weights=WEIGHTS)(logits, target))
