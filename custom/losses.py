"""Losses of affinities and LSDs, and sums of losses: logits in, one number out."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from custom.channels import ChannelLayout
from custom.distributed import total
from custom.errors import InputError
from custom.json_fields import flag
from custom.loss_terms import (
    LossTerm,
    focused,
    in_range,
    positive_numbers,
    ratio,
    refuse_missing,
    tversky,
)


class AffinityLoss(LossTerm):
    """Cross entropy of the affinities, plain or focal.

    With ``t`` the truth, ``t' = (1 - label_smoothing) t + label_smoothing / 2``, ``p`` the sigmoid
    of the logit, ``b`` the balance, ``v`` the validity and ``w`` the weight of a voxel::

        p_t  = t' p + (1 - t') (1 - p)
        each = (1 - p_t)^gamma a (-b t' log p - (1 - t') log(1 - p))
        a    = alpha t' + (1 - alpha) (1 - t')       1 without alpha
        loss = sum(v w each) / sum(v w)              over the whole batch and all offsets

    ``gamma = 0`` is the binary cross entropy of torch; ``b`` and ``a`` do not enter ``p_t``.

    Args:
        layout: of the channels; needs affinities.
        gamma: of the focal loss, from 0 on.
        alpha: share of the positives, 0 to 1; None to leave both sides as they are.
        label_smoothing: 0 to 1; 0.04 makes the truth 0.02 and 0.98.
        boundary_weighted: take ``w`` from the target; 1 otherwise.
        positive_weight: ``b``, one for all offsets or one each, such as negatives / positives.
        factor: as in ``LossTerm``.

    Raises:
        InputError: a value is out of range, or both ``alpha`` and ``positive_weight`` are given.

    Source:
        Lin et al. 2017, Focal Loss for Dense Object Detection, ICCV.
    """

    name = "affinity"

    def __init__(
        self,
        layout: ChannelLayout,
        gamma: float = 0.0,
        alpha: float | None = None,
        label_smoothing: float = 0.0,
        boundary_weighted: bool = False,
        positive_weight: float | Sequence[float] | None = None,
        factor: float = 1.0,
    ) -> None:
        super().__init__(layout, "affinities", factor)
        loss = type(self).__name__
        if alpha is not None and positive_weight is not None:
            raise InputError(
                f"loss: alpha and positive_weight of {loss} both weigh the positives; leave one "
                f"out, or set class_balance to null"
            )
        self.gamma = in_range(gamma, "gamma", loss)
        self.alpha = None if alpha is None else in_range(alpha, "alpha", loss, high=1)
        self.label_smoothing = in_range(label_smoothing, "label_smoothing", loss, high=1)
        self.boundary_weighted = flag(boundary_weighted, "boundary_weighted")
        self.positive_weight = positive_numbers(
            positive_weight, layout.num_affinities, "positive_weight", loss
        )

    def value(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Weighted mean over the affinities that count."""
        valid, weight = self.counted(target, self.boundary_weighted)
        logits = torch.where(valid, prediction[:, self.layout.affinities], 0.0)
        truth = torch.where(valid, target[:, self.layout.affinities], 0.0)
        if self.label_smoothing:
            truth = (1 - self.label_smoothing) * truth + self.label_smoothing / 2
        balance = _per_offset(self.positive_weight, logits)
        each = F.binary_cross_entropy_with_logits(
            logits, truth, pos_weight=balance, reduction="none"
        )
        if self.gamma:
            each = focused(each, _log_miss(logits, truth), self.gamma)
        if self.alpha is not None:
            each = each * (self.alpha * truth + (1 - self.alpha) * (1 - truth))
        return ratio((each * weight).sum(), weight.sum())


class AffinityTverskyLoss(LossTerm):
    """One minus the Tversky index of the affinities, mean over the offsets; by default Dice.

    With ``p`` the sigmoid of the logit, ``t`` the truth and ``u`` the weight of a voxel, sums over
    the whole batch, for every offset::

        TP = sum(u p t),  FP = sum(u p (1 - t)),  FN = sum(u (1 - p) t)
        1 - (TP + smooth) / (TP + alpha FP + beta FN + smooth)

    Offsets without any valid voxel do not count. ``alpha = beta = 0.5`` is MONAI's ``DiceLoss``
    with twice the ``smooth``.

    Args:
        layout: of the channels; needs affinities.
        alpha: weight of false positives.
        beta: weight of false negatives.
        smooth: above 0; keeps the loss of channels without positives smooth.
        boundary_weighted: ``u`` has the target's weight as a factor.
        positive_weight: ``u`` is so many times larger at positives; one for all or one each.
        factor: as in ``LossTerm``.

    Raises:
        InputError: a value is out of range.

    Source:
        Salehi et al. 2017, Tversky loss function for image segmentation, MLMI.
    """

    name = "tversky"

    def __init__(
        self,
        layout: ChannelLayout,
        alpha: float = 0.5,
        beta: float = 0.5,
        smooth: float = 1e-5,
        boundary_weighted: bool = False,
        positive_weight: float | Sequence[float] | None = None,
        factor: float = 1.0,
    ) -> None:
        super().__init__(layout, "affinities", factor)
        loss = type(self).__name__
        self.alpha = in_range(alpha, "alpha", loss)
        self.beta = in_range(beta, "beta", loss)
        self.smooth = in_range(smooth, "smooth", loss, low=1e-9)
        self.boundary_weighted = flag(boundary_weighted, "boundary_weighted")
        self.positive_weight = positive_numbers(
            positive_weight, layout.num_affinities, "positive_weight", loss
        )

    def value(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean over the offsets that count."""
        valid, weight = self.counted(target, self.boundary_weighted)
        logits = torch.where(valid, prediction[:, self.layout.affinities], 0.0)
        truth = torch.where(valid, target[:, self.layout.affinities], 0.0)
        balance = _per_offset(self.positive_weight, logits)
        if balance is not None:
            weight = weight * (1 + truth * (balance - 1))
        each = tversky(torch.sigmoid(logits), truth, weight, self.alpha, self.beta, self.smooth)
        counts = total(valid.any(dim=0).flatten(1).any(dim=1).to(each.dtype)) > 0
        return (each * counts).sum() / counts.sum().clamp(min=1)


class LsdLoss(LossTerm):
    """Error of the LSDs, mean over all their channels where they count; no object, no error.

    With ``d`` the sigmoid of the logit minus the LSD: ``d^2``, or with ``beta`` the smooth L1 form,
    ``d^2 / (2 beta)`` below ``beta`` and ``|d| - beta / 2`` above.

    Args:
        layout: of the channels; needs LSDs, six or ten channels.
        beta: of smooth L1, above 0; None for the squared error.
        factor: as in ``LossTerm``: the lambda of affinities + lambda LSDs.

    Raises:
        InputError: a value is out of range.
    """

    name = "lsd"

    def __init__(
        self, layout: ChannelLayout, beta: float | None = None, factor: float = 1.0
    ) -> None:
        super().__init__(layout, "lsds", factor)
        self.beta = None if beta is None else in_range(beta, "beta", type(self).__name__, low=1e-9)

    def value(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean over the channels of the voxels that count."""
        layout = self.layout
        mask = target[:, layout.lsd_mask] > 0
        found = torch.sigmoid(torch.where(mask, prediction[:, layout.lsds], 0.0))
        truth = torch.where(mask, target[:, layout.lsds], 0.5)  # the sigmoid of 0
        if self.beta is None:
            each = (found - truth).square()
        else:
            each = F.smooth_l1_loss(found, truth, beta=self.beta, reduction="none")
        return ratio(each.sum(), mask.sum() * layout.num_lsds)


class SumOfLosses(nn.Module):
    """Sum of several losses, each times its own factor.

    A term that the configuration switches off (``"_disabled_"``) is not there.

    Args:
        terms: by the names that they have among the components.

    Attributes:
        components: the terms of the last call by name, without their factors and detached.

    Raises:
        InputError: there are no terms.
    """

    def __init__(self, terms: Mapping[str, LossTerm]) -> None:
        super().__init__()
        if not terms:
            raise InputError(
                "loss: SumOfLosses has no terms for this output_type; choose another loss"
            )
        self.terms = dict(terms)  # they have no parameters
        self.layout = next(iter(self.terms.values())).layout
        self.components: dict[str, Tensor] = {}

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Loss of ``prediction`` (B, outputs, D, H, W), logits, against ``target``."""
        values = [term(prediction, target) for term in self.terms.values()]
        self.components = {
            name: value for name, term in self.terms.items() for value in term.components.values()
        }
        return torch.stack(values).sum()


class BoundaryWeightedAffinityLoss(SumOfLosses):
    """Weighted cross entropy of the affinities plus, where there are any, squared error of LSDs.

    ``AffinityLoss`` with the target's weights, plus ``lsd_weight`` times ``LsdLoss``.

    Args:
        layout: of the channels; affinities, with or without LSDs.
        lsd_weight: factor of the LSD term.
        positive_weight: as in ``AffinityLoss``.

    Attributes:
        components: the terms of the last call, unweighted and detached: ``affinity``, ``lsd``.

    Raises:
        InputError: the network has no affinities; a weight is out of range.
    """

    def __init__(
        self,
        layout: ChannelLayout,
        lsd_weight: float = 1.0,
        positive_weight: float | Sequence[float] | None = None,
    ) -> None:
        refuse_missing(layout, "affinities", type(self).__name__)
        if lsd_weight < 0:
            raise InputError(f"lsd_weight must not be negative, got {lsd_weight}")
        terms: dict[str, LossTerm] = {
            "affinity": AffinityLoss(
                layout, boundary_weighted=True, positive_weight=positive_weight
            )
        }
        if layout.num_lsds:
            terms["lsd"] = LsdLoss(layout, factor=lsd_weight)
        super().__init__(terms)


def _per_offset(values: Sequence[float] | None, like: Tensor) -> Tensor | None:
    """(K, 1, 1, 1), beside ``like``."""
    if values is None:
        return None
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None, None]


def _log_miss(logits: Tensor, truth: Tensor) -> Tensor:
    """``log(1 - p_t)`` with ``1 - p_t = t (1 - p) + (1 - t) p``, exact for any logit."""
    return torch.logaddexp(
        torch.log(truth) + F.logsigmoid(-logits), torch.log1p(-truth) + F.logsigmoid(logits)
    )
