"""Losses of semantic classes: logits in, one number out."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from custom.channels import ChannelLayout
from custom.errors import InputError
from custom.json_fields import flag
from custom.loss_terms import LossTerm, focused, in_range, positive_numbers, ratio, tversky


class ClassTerm(LossTerm):
    """A loss of classes: what those have in common.

    Args:
        layout: of the channels; needs classes.
        class_weights: N numbers, one per class, background first; None for all alike.
        boundary_weighted: weigh voxels by the target's weight.
        factor: as in ``LossTerm``.

    Raises:
        InputError: the network has no classes; there are not N positive weights. On call: the
            target has a class that the network does not have.
    """

    def __init__(
        self,
        layout: ChannelLayout,
        class_weights: Sequence[float] | None,
        boundary_weighted: bool,
        factor: float,
    ) -> None:
        super().__init__(layout, "classes", factor)
        self.class_weights = positive_numbers(
            class_weights, layout.num_classes, "class_weights", type(self).__name__
        )
        self.boundary_weighted = flag(boundary_weighted, "boundary_weighted")

    def weights_like(self, values: Tensor) -> Tensor:
        """(N,), beside ``values``."""
        given = self.class_weights or [1.0] * self.layout.num_classes
        return torch.tensor(given, dtype=values.dtype, device=values.device)

    def parts(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, N, D, H, W), ids (B, D, H, W) and weights (B, D, H, W) of voxels.

        Where the target is not valid, logits, ids and weights are 0.
        """
        valid, weight = self.counted(target, self.boundary_weighted)
        logits = torch.where(valid, prediction[:, self.layout.classes], 0.0)
        ids = torch.where(valid, target[:, self.layout.class_id], 0.0).long()
        highest = self.layout.num_classes - 1
        if ids.numel() and not 0 <= ids.min() <= ids.max() <= highest:
            raise InputError(
                f"labels hold the class {int(ids.min() if ids.min() < 0 else ids.max())}, but "
                f"num_classes allows 0 to {highest}; raise num_classes or correct the labels"
            )
        return logits, ids[:, 0], weight[:, 0]


class ClassLoss(ClassTerm):
    """Cross entropy of the classes, plain or focal.

    With ``q`` the truth, ``1 - label_smoothing + label_smoothing / N`` at the true class ``y`` and
    ``label_smoothing / N`` elsewhere, ``p`` the softmax, ``c`` the class weights, ``v`` the
    validity and ``w`` the weight of a voxel::

        each = (1 - sum(q p))^gamma sum(-c q log p)      sums over the classes
        loss = sum(v w each) / sum(v w c_y)              over the whole batch

    ``gamma = 0`` is the cross entropy of torch; class weights do not enter ``(1 - sum(q p))``.

    Args:
        layout: of the channels; needs classes.
        gamma: of the focal loss, from 0 on.
        label_smoothing: 0 to 1.
        class_weights, boundary_weighted, factor: as in ``ClassTerm``.

    Raises:
        InputError: a value is out of range; as ``ClassTerm``.

    Source:
        Lin et al. 2017, Focal Loss for Dense Object Detection, ICCV.
    """

    name = "class"

    def __init__(
        self,
        layout: ChannelLayout,
        gamma: float = 0.0,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        boundary_weighted: bool = False,
        factor: float = 1.0,
    ) -> None:
        super().__init__(layout, class_weights, boundary_weighted, factor)
        loss = type(self).__name__
        self.gamma = in_range(gamma, "gamma", loss)
        self.label_smoothing = in_range(label_smoothing, "label_smoothing", loss, high=1)

    def value(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Weighted mean over the voxels that count."""
        logits, ids, weight = self.parts(prediction, target)
        balance = self.weights_like(logits)
        each = F.cross_entropy(
            logits,
            ids,
            weight=balance,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        if self.gamma:
            each = focused(each, self._log_miss(logits, ids), self.gamma)
        return ratio((each * weight).sum(), (weight * balance[ids]).sum())

    def _log_miss(self, logits: Tensor, ids: Tensor) -> Tensor:
        """``log(1 - sum(q p))``, exact for any logit."""
        true = F.one_hot(ids, self.layout.num_classes).movedim(-1, 1).bool()
        others = logits.log_softmax(dim=1).masked_fill(true, -torch.inf)
        hard = others.logsumexp(dim=1)
        if not self.label_smoothing:
            return hard
        spread = self.label_smoothing * (1 - 1 / self.layout.num_classes)
        return torch.log((1 - self.label_smoothing) * hard.exp() + spread)


class ClassTverskyLoss(ClassTerm):
    """One minus the Tversky index of the classes, weighted mean over them; by default Dice.

    As ``AffinityTverskyLoss``, with the softmax for ``p``.

    Args:
        layout: of the channels; needs classes.
        alpha: weight of false positives.
        beta: weight of false negatives.
        smooth: above 0; keeps the loss of classes that are not there smooth.
        include_background: whether class 0 is in the mean.
        class_weights, boundary_weighted, factor: as in ``ClassTerm``.

    Raises:
        InputError: a value is out of range; as ``ClassTerm``.

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
        include_background: bool = True,
        class_weights: Sequence[float] | None = None,
        boundary_weighted: bool = False,
        factor: float = 1.0,
    ) -> None:
        super().__init__(layout, class_weights, boundary_weighted, factor)
        loss = type(self).__name__
        self.alpha = in_range(alpha, "alpha", loss)
        self.beta = in_range(beta, "beta", loss)
        self.smooth = in_range(smooth, "smooth", loss, low=1e-9)
        self.first = 0 if flag(include_background, "include_background") else 1

    def value(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Weighted mean over the classes."""
        logits, ids, weight = self.parts(prediction, target)
        truth = F.one_hot(ids, self.layout.num_classes).movedim(-1, 1).to(logits.dtype)
        each = tversky(
            logits.softmax(dim=1), truth, weight[:, None], self.alpha, self.beta, self.smooth
        )[self.first :]
        balance = self.weights_like(logits)[self.first :]
        return (each * balance).sum() / balance.sum()
