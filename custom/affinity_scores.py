"""How well affinities are predicted, offset by offset."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from torch import Tensor

from custom.distributed import collected
from custom.targets.affinities import Offset, paired_slices
from custom.targets.masks import eroded
from custom.targets.settings import TargetSettings

PREDICTED_ABOVE = 0.5


def affinity_counts(
    probabilities: Tensor,
    labels: Tensor,
    counts: Tensor,
    offsets: Sequence[Offset],
    background: str = "apart",
) -> NDArray[np.int64]:
    """Affinities that are true and predicted, predicted, and true, of every offset.

    A pair of voxels counts where both do. Its affinity is true as in ``affinities``, and predicted
    where the probability is above 0.5.

    Args:
        probabilities: (K or more, D, H, W), 0 to 1; those beyond K are not looked at.
        labels: (D, H, W), 0 is background.
        counts: (D, H, W) bool, True where labels are annotated.
        offsets: K offsets, voxels, zyx.
        background: "apart" or "joined", as in ``affinities``.

    Returns:
        (K, 3).
    """
    labels, counts = labels.to(probabilities.device), counts.to(probabilities.device)
    found = []
    for k, offset in enumerate(offsets):
        here, there = paired_slices(labels.shape, offset)
        valid = counts[here] & counts[there]
        true = valid & (labels[here] == labels[there])
        if background == "apart":
            true &= labels[here] != 0
        predicted = valid & (probabilities[k][here] > PREDICTED_ABOVE)
        found.append([int(each.sum()) for each in (true & predicted, predicted, true)])
    return np.array(found, np.int64)


def scores_of_counts(both: int, predicted: int, true: int) -> dict[str, float]:
    """``f1``, ``precision`` and ``recall``, each where there is anything to divide by."""
    pairs = {"f1": (2 * both, predicted + true), "precision": (both, predicted)}
    pairs["recall"] = (both, true)
    return {name: above / below for name, (above, below) in pairs.items() if below}


def mean_f1(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """``affinity_f1`` of scores by offset; empty where no offset has any."""
    known = [of_offset["f1"] for of_offset in scores.values() if "f1" in of_offset]
    return {"affinity_f1": float(np.mean(known))} if known else {}


def offset_name(offset: Offset) -> str:
    """Such as "0_-9_0"."""
    return "_".join(str(o) for o in offset)


class AffinityScores:
    """F1, precision and recall of every offset's affinities, where labels count as in training.

    After a validation ``engine.state.affinity_scores`` has them by volume, offset
    (``offset_name``) and score; ``affinity_f1``, the mean of F1 over the offsets, is among the
    ``volume_scores`` and, of all volumes together, among the engine's metrics. Nothing happens
    where classes are predicted.

    Attach to the evaluator, whose batches have ``id`` and ``mask``, after the metrics.

    Args:
        targets: offsets, and where labels count.
    """

    def __init__(self, targets: TargetSettings) -> None:
        self.targets = targets
        self._counts: dict[str, NDArray[np.int64]] = {}

    def attach(self, engine: Engine) -> None:
        """Count every volume, score them when all are through."""
        if self.targets.classes is None:
            engine.add_event_handler(Events.STARTED, self._forget)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _forget(self) -> None:
        self._counts = {}

    def _count(self, engine: Engine) -> None:
        state: Any = engine.state
        for given, found in zip(state.batch, state.output, strict=True):
            self._counts[given["id"]] = self._counted(given, found)

    def _counted(self, given: Mapping[str, Any], found: Mapping[str, Any]) -> NDArray[np.int64]:
        mask = eroded(given["mask"][0].cpu().numpy(), self.targets.mask_erosion)
        return affinity_counts(
            found["pred"],
            found["label"][0],
            torch.from_numpy(mask),
            self.targets.affinity_offsets,
            self.targets.affinity_background,
        )

    def __call__(self, engine: Engine) -> None:
        """Score."""
        state: Any = engine.state
        found = collected(self._counts)
        state.affinity_scores = {name: self._scores(counts) for name, counts in found.items()}
        state.metrics |= mean_f1(self._scores(np.sum(list(found.values()), axis=0)))
        of_volumes = getattr(state, "volume_scores", {})
        every = {
            name: of_volumes.get(name, {}) | mean_f1(scores)
            for name, scores in state.affinity_scores.items()
        }
        state.volume_scores = {name: scores for name, scores in every.items() if scores}

    def _scores(self, counts: NDArray[np.int64]) -> dict[str, dict[str, float]]:
        names = [offset_name(offset) for offset in self.targets.affinity_offsets]
        return {
            name: scores_of_counts(*map(int, row)) for name, row in zip(names, counts, strict=True)
        }
