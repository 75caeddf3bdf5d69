"""The scores of a segmentation as MONAI's metrics are."""

from collections.abc import Sequence

import torch
from monai.metrics.metric import CumulativeIterationMetric
from torch import Tensor

from custom.metrics import SCORES, instance_scores


class InstanceSegmentationMetric(CumulativeIterationMetric):
    """Mean over images of VOI and adapted Rand error, for MONAI's evaluators and handlers.

    Called with ``y_pred`` and ``y``, label arrays (B, 1, D, H, W) or lists of (1, D, H, W), of an
    integer dtype (floats would round ids). Lower is better: give the evaluator
    ``metric_cmp_fn`` and the checkpoint saver ``key_metric_negative_sign``.

    Args:
        scores: which scores, in this order, among ``voi_split``, ``voi_merge``, ``voi`` (bits)
            and ``adapted_rand``.

    Raises:
        ValueError: no score, or an unknown one; on call, shapes differ.
        TypeError: on call, labels do not hold integers.
    """

    def __init__(self, scores: Sequence[str] = SCORES) -> None:
        super().__init__()
        unknown = [score for score in scores if score not in SCORES]
        if unknown or not scores:
            raise ValueError(f"scores must be some of {SCORES}, got {list(scores)}")
        self.scores = tuple(scores)

    def aggregate(self) -> Tensor:
        """Mean of every score over the images since the last reset, (len(scores),) float64."""
        buffer: Tensor | None = self.get_buffer()  # type: ignore[no-untyped-call]  # MONAI's
        if buffer is None:
            raise ValueError("no image was scored since the last reset")
        return torch.mean(buffer, dim=0)

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: object) -> Tensor:
        """Scores of every image, (B, len(scores)) float64."""
        if y is None:
            raise ValueError("y, the true labels, is needed")
        rows = []
        for segmentation, truth in zip(y_pred.cpu().numpy(), y.cpu().numpy(), strict=True):
            scores = instance_scores(truth, segmentation)
            rows.append([scores[name] for name in self.scores])
        return torch.tensor(rows, dtype=torch.float64)
