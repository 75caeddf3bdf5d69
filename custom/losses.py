"""Losses over the channels of ``ChannelLayout``: logits in, one number out."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from custom.channels import ChannelLayout


class BoundaryWeightedAffinityLoss(nn.Module):
    """Weighted cross entropy of the affinities plus squared error of the LSDs.

    With ``w`` the weight channel and ``v`` the validity of an affinity::

        affinity = sum(v w bce(logit, affinity)) / sum(v w)
        lsd      = mean of (sigmoid(logit) - lsd)^2 over the LSD channels of masked-in voxels
        loss     = affinity + lsd_weight * lsd

    The sums run over the whole batch; a sum over nothing is 0. What is masked out contributes
    exactly 0 to the value and to the gradient, even where the prediction is not finite.
    Computed in float32, or in float64 for float64 predictions.

    Args:
        layout: of the channels; affinities, with or without LSDs.
        lsd_weight: factor of the LSD term.

    Attributes:
        components: the terms of the last call, unweighted and detached: ``affinity``, ``lsd``.

    Raises:
        ValueError: the weight is negative; on call, prediction and target do not
            have the channels of ``ChannelLayout`` or do not match.
    """

    def __init__(
        self,
        layout: ChannelLayout,
        lsd_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if lsd_weight < 0:
            raise ValueError(f"lsd_weight must not be negative, got {lsd_weight}")
        self.layout = layout
        self.lsd_weight = lsd_weight
        self.components: dict[str, Tensor] = {}

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Loss of ``prediction`` (B, K + L, D, H, W), logits, against ``target``."""
        layout = self.layout
        expected = (prediction.shape[0], layout.num_targets, *prediction.shape[2:])
        if prediction.shape[1] != layout.num_outputs or tuple(target.shape) != expected:
            raise ValueError(
                f"prediction must be (B, {layout.num_outputs}, D, H, W) and target "
                f"(B, {layout.num_targets}, D, H, W) of the same size, got "
                f"{tuple(prediction.shape)} and {tuple(target.shape)}"
            )
        with torch.autocast(prediction.device.type, enabled=False):
            dtype = torch.promote_types(prediction.dtype, torch.float32)
            affinity = self._affinity_term(prediction.to(dtype), target.to(dtype))
            lsd = self._lsd_term(prediction.to(dtype), target.to(dtype))
        self.components = {"affinity": affinity.detach(), "lsd": lsd.detach()}
        return affinity + self.lsd_weight * lsd

    def _affinity_term(self, prediction: Tensor, target: Tensor) -> Tensor:
        layout = self.layout
        valid = target[:, layout.valid] > 0
        logits = torch.where(valid, prediction[:, layout.affinities], 0.0)
        truth = torch.where(valid, target[:, layout.affinities], 0.0)
        weight = torch.where(valid, target[:, layout.weight], 0.0)
        bce = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        return _ratio((bce * weight).sum(), weight.sum())

    def _lsd_term(self, prediction: Tensor, target: Tensor) -> Tensor:
        layout = self.layout
        mask = target[:, layout.lsd_mask] > 0
        logits = torch.where(mask, prediction[:, layout.lsds], 0.0)
        truth = torch.where(mask, target[:, layout.lsds], 0.5)  # the sigmoid of 0
        error = (torch.sigmoid(logits) - truth).square()
        return _ratio(error.sum(), mask.sum() * max(1, layout.num_lsds))


def _ratio(total: Tensor, count: Tensor) -> Tensor:
    """``total / count``, 0 where nothing counts."""
    return total / torch.where(count > 0, count, 1)
