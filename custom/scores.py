"""Scores of predictions at validation: of segments at their best settings, and of classes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from numpy.typing import NDArray

from custom.channels import ChannelLayout
from custom.errors import InputError
from custom.label_classes import class_names
from custom.live import FeatureVolume
from custom.metrics import SCORES, ClassCounts, class_counts, class_scores, instance_scores
from custom.segmentation.segmenter import MutexWatershedSegmenter


@dataclass(frozen=True)
class KeyMetric:
    """The score that decides which model is kept.

    Args:
        name: among the evaluator's metrics.
        title: for people.
        higher_is_better: its direction.
    """

    name: str
    title: str
    higher_is_better: bool

    @property
    def worst(self) -> float:
        """Worse than any value."""
        return float("-inf") if self.higher_is_better else float("inf")

    def better(self, new: float, best: float) -> bool:
        """Whether ``new`` is better than ``best``; MONAI's ``metric_cmp_fn``."""
        return new > best if self.higher_is_better else new < best


VOI = KeyMetric("voi", "VOI", higher_is_better=False)
DICE = KeyMetric("dice", "Dice", higher_is_better=True)


class SegmentationScore(Metric):
    """VOI at the best of a grid of segmentation settings, mean over the validation volumes.

    Every volume is segmented with every setting. The best setting has the lowest CREMI score, the
    geometric mean of VOI and adapted Rand error (VOI alone hardly notices one large object torn in
    two). ``compute`` returns the VOI there; the metrics of the engine get, beside it,
    ``voi_split``, ``voi_merge``, ``adapted_rand``, and ``engine.state.segmentation`` is the setting
    itself, which inference uses later.

    Args:
        segmenter: from affinities to segments.
        grid: settings to choose from, each some of the segmenter's arguments, such as
            ``{"bias": -0.7, "threshold": 0.5}``.
        per_section: compare every section (of z) on its own, as in ``contingency``.

    Raises:
        ValueError: the grid is empty.
        InputError: a setting is unknown.
    """

    key = VOI

    def __init__(
        self,
        segmenter: MutexWatershedSegmenter,
        grid: Sequence[Mapping[str, Any]],
        per_section: bool = False,
    ) -> None:
        if not grid:
            raise ValueError("grid must name at least one setting")
        self.segmenters = [segmenter.with_settings(**settings) for settings in grid]
        self.grid = [dict(settings) for settings in grid]
        self.per_section = per_section
        super().__init__(output_transform=_predictions)

    def reset(self) -> None:
        """Forget all volumes."""
        self.rows: list[list[list[float]]] = []

    def update(self, output: Sequence[Mapping[str, Any]]) -> None:
        """Segment and score volumes.

        Args:
            output: ``pred`` (K + L, D, H, W) probabilities, ``label`` (1, D, H, W).
        """
        for item in output:
            affinities = as_uint8(item["pred"])
            truth = item["label"][0].cpu().numpy()
            scores = [
                instance_scores(truth, labels, self.per_section)
                for labels in self._segment(affinities)
            ]
            self.rows.append([[row[name] for name in SCORES] for row in scores])

    def _segment(self, affinities: NDArray[np.uint8]) -> Iterator[NDArray[np.uint64]]:
        """Segments for every setting; fragments are made once where settings share them."""
        last = None
        for segmenter in self.segmenters:
            if last is None or not segmenter.same_fragments(last):
                fragments = segmenter.fragments(affinities)
            last = segmenter
            yield segmenter.join(fragments, affinities)

    def compute(self) -> float:
        """VOI in bits at the best setting."""
        return self.best()[1]["voi"]

    def best(self) -> tuple[int, dict[str, float]]:
        """Index of the setting with the lowest CREMI score, and all mean scores at it."""
        means = np.mean(self.rows, axis=0)
        cremi = means[:, SCORES.index("voi")] * means[:, SCORES.index("adapted_rand")]
        index = int(np.argmin(cremi))
        return index, dict(zip(SCORES, means[index].tolist(), strict=True))

    @property
    def best_segmenter(self) -> MutexWatershedSegmenter:
        """The segmenter with the best setting."""
        return self.segmenters[self.best()[0]]

    def completed(self, engine: Engine, name: str) -> None:
        """Put the scores among the engine's metrics."""
        super().completed(engine, name)
        index, scores = self.best()
        state: Any = engine.state
        state.metrics.update(scores)
        state.segmentation = self.grid[index]


class ClassScore(Metric):
    """Mean Dice of the classes but the background, over all validation volumes together.

    ``compute`` returns the mean Dice; the metrics of the engine get, beside it, all of
    ``class_scores``, which says what becomes of classes without truth.

    Args:
        names: of the classes, the background's first.
    """

    key = DICE

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        super().__init__(output_transform=_predictions)

    def reset(self) -> None:
        """Forget all volumes."""
        self.counts: list[ClassCounts] = []

    def update(self, output: Sequence[Mapping[str, Any]]) -> None:
        """Compare volumes with the truth.

        Args:
            output: ``pred`` (N, D, H, W) probabilities, ``label`` (1, D, H, W) class ids,
                ``UNKNOWN`` where they do not count.
        """
        for item in output:
            truth, predicted = item["label"][0].cpu().numpy(), predicted_classes(item["pred"])
            self.counts.append(class_counts(truth, predicted, len(self.names)))

    def compute(self) -> float:
        """Mean Dice."""
        return self.scores()["dice"]

    def scores(self) -> dict[str, float]:
        """``class_scores`` of all volumes together.

        Raises:
            InputError: none of the classes is in the truth.
        """
        scores = class_scores(reduce(add, self.counts), self.names)
        if not scores:
            raise InputError(
                f"the validation labels hold none of the classes {', '.join(self.names[1:])} where "
                f"they count: check the labels and masks of the validation entries"
            )
        return scores

    def completed(self, engine: Engine, name: str) -> None:
        """Put the scores among the engine's metrics."""
        super().completed(engine, name)
        engine.state.metrics.update(self.scores())


Score = SegmentationScore | ClassScore


def validation_score(
    layout: ChannelLayout,
    segmenter: MutexWatershedSegmenter,
    grid: Sequence[Mapping[str, Any]],
    volumes: Sequence[FeatureVolume],
    dimensions: int = 3,
) -> Score:
    """The score for what a network predicts: ``ClassScore`` or ``SegmentationScore``.

    Args:
        layout: of the network's channels.
        segmenter: as in ``SegmentationScore``, for affinities.
        grid: as there.
        volumes: whose classes have names, for classes.
        dimensions: 2: sections are compared each on its own.
    """
    if layout.num_classes:
        ids = volumes[0].metadata.get("entry", {}).get("class_ids")
        return ClassScore(class_names(ids, layout.num_classes))
    return SegmentationScore(segmenter, grid, per_section=dimensions == 2)


def predicted_classes(probabilities: torch.Tensor) -> NDArray[np.uint64]:
    """The most probable class of every voxel, (D, H, W), from (N, D, H, W); the first of equals."""
    ids: NDArray[np.uint64] = probabilities.argmax(0).cpu().numpy().astype(np.uint64)
    return ids


def _predictions(output: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    return output


def as_uint8(probabilities: torch.Tensor) -> NDArray[np.uint8]:
    """Probabilities as 0 to 255, rounded: what is stored is what is segmented."""
    scaled: NDArray[np.uint8] = (probabilities * 255).round().to(torch.uint8).cpu().numpy()
    return scaled
