"""Scores of predictions at validation: of segments at their best settings, and of classes."""

import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from ignite.metrics.metric import EpochWise, MetricUsage
from numpy.typing import NDArray

from custom.affinity_scores import AffinityScores
from custom.best_setting import best_setting, with_cremi
from custom.channels import ChannelLayout
from custom.distributed import collected, is_writer
from custom.errors import InputError
from custom.label_classes import class_names
from custom.live import FeatureVolume
from custom.metrics import ClassCounts, class_counts, class_scores, instance_scores
from custom.segmentation.method import SegmentationMethod, same_fragments
from custom.segmentation_settings import method_name

logger = logging.getLogger(__name__)

EPOCH_WISE = EpochWise()


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

OF_OBJECTS = (
    VOI,
    KeyMetric("voi_split", "VOI split", higher_is_better=False),
    KeyMetric("voi_merge", "VOI merge", higher_is_better=False),
    KeyMetric("adapted_rand", "adapted Rand error", higher_is_better=False),
    KeyMetric("cremi", "CREMI score", higher_is_better=False),
    KeyMetric("affinity_f1", "affinity F1", higher_is_better=True),
)
"""Key metrics of predicted affinities, the default first."""


def keys_of_classes(names: Sequence[str]) -> list[KeyMetric]:
    """Key metrics of predicted classes, the default first: the means, then those of every class.

    Args:
        names: of the classes, the background's first.
    """
    iou = KeyMetric("iou", "IoU", higher_is_better=True)
    single = [
        KeyMetric(f"{mean.name}_{name}", f"{mean.title} of {name}", higher_is_better=True)
        for mean in (DICE, iou)
        for name in names[1:]
    ]
    return [DICE, iou, *single]


def chosen_key(name: str | None, known: Sequence[KeyMetric]) -> KeyMetric:
    """The key metric of this name; the first of the known ones where none is given.

    Raises:
        InputError: the name is not known; the message lists those that are.
    """
    if name is None:
        return known[0]
    by_name = {key.name: key for key in known}
    if name not in by_name:
        raise InputError(f"key_metric_name must be one of {', '.join(by_name)}, got {name!r}.")
    return by_name[name]


class VolumeScore(Metric):
    """Scores of whole volumes, each by its id, and of all of them together.

    After a validation the engine's metrics hold all of ``scores``, and
    ``engine.state.volume_scores`` those of every volume. Attach under the key's name.

    Args:
        key: the score that ``compute`` returns.
    """

    def __init__(self, key: KeyMetric) -> None:
        self.key = key
        super().__init__()

    @abstractmethod
    def update(self, output: Sequence[Mapping[str, Any]]) -> None:
        """Score volumes.

        Args:
            output: of every volume its ``id``, ``pred`` (C, D, H, W) probabilities and ``label``
                (1, D, H, W).
        """

    @abstractmethod
    def scores(self) -> dict[str, float]:
        """Scores of all volumes together, by name."""

    @abstractmethod
    def volume_scores(self) -> dict[str, dict[str, float]]:
        """Scores of every volume, by id and name."""

    def iteration_completed(self, engine: Engine) -> None:
        """Score the engine's output under the ids of its batch."""
        state: Any = engine.state
        pairs = zip(state.output, state.batch, strict=True)
        self.update([{**output, "id": volume["id"]} for output, volume in pairs])

    def compute(self) -> float:
        """The key metric, one of ``scores``."""
        return self.scores()[self.key.name]

    @abstractmethod
    def gather(self) -> None:
        """Take over what other processes have found on their volumes; every process calls it."""

    def completed(self, engine: Engine, name: str) -> None:
        """Put the scores of the volumes of all processes into the engine's state of each."""
        self.gather()
        state: Any = engine.state
        state.metrics.update(self.scores())
        state.volume_scores = self.volume_scores()


class SegmentationScore(VolumeScore):
    """VOI and adapted Rand error at the best of a grid of segmentation settings, means of volumes.

    Every volume is segmented with every setting. The best setting has the lowest CREMI score, the
    geometric mean of mean VOI and mean adapted Rand error (VOI alone hardly notices one large
    object torn in two), whichever score the key metric is; of equal ones it has the lowest VOI,
    then the first place in the grid. Scores are ``voi_split``, ``voi_merge``, ``voi``,
    ``adapted_rand`` and ``cremi`` there, and ``engine.state.segmentation`` is the setting itself,
    which inference uses later. A warning names volumes
    whose several objects are one single segment there.

    Args:
        segmenter: from affinities to segments.
        grid: settings to choose from, each some of the segmenter's arguments, such as
            ``{"bias": -0.7, "threshold": 0.5}``.
        per_section: compare every section (of z) on its own, as in ``contingency``.
        key: the score that decides which model is kept.
        affinity_scores: adds its scores whenever these are there, ``affinity_f1`` among them.

    Raises:
        ValueError: the grid is empty.
        InputError: a setting is unknown.
    """

    def __init__(
        self,
        segmenter: SegmentationMethod,
        grid: Sequence[Mapping[str, Any]],
        per_section: bool = False,
        key: KeyMetric = VOI,
        affinity_scores: AffinityScores | None = None,
    ) -> None:
        if not grid:
            raise ValueError("grid must name at least one setting")
        self.segmenters = [segmenter.with_settings(**settings) for settings in grid]
        self.grid = [dict(settings) for settings in grid]
        self.per_section = per_section
        self.affinity_scores = affinity_scores
        super().__init__(key)

    def attach(self, engine: Engine, name: str, usage: str | MetricUsage = EPOCH_WISE) -> None:
        """As ignite's; MONAI compares the key metric after this, whichever it is."""
        super().attach(engine, name, usage)
        if self.affinity_scores is not None:
            self.affinity_scores.attach(engine)

    def reset(self) -> None:
        """Forget all volumes."""
        self.rows: dict[str, list[dict[str, float]]] = {}
        self.joined: dict[str, list[int]] = {}

    def update(self, output: Sequence[Mapping[str, Any]]) -> None:
        """Segment volumes with every setting, score them; affinities are ``pred``'s first."""
        for item in output:
            affinities = as_uint8(item["pred"])
            truth = item["label"][0].cpu().numpy()
            self.rows[item["id"]], self.joined[item["id"]] = [], []
            for labels in self._segment(affinities):
                row = with_cremi(instance_scores(truth, labels, self.per_section))
                self.rows[item["id"]].append(row)
                self.joined[item["id"]].append(joined_objects(truth, labels, self.per_section))

    def gather(self) -> None:
        """The rows of all volumes."""
        self.rows = collected(self.rows)
        self.joined = collected(self.joined)

    def _segment(self, affinities: NDArray[np.uint8]) -> Iterator[NDArray[np.uint64]]:
        """Segments for every setting; fragments are made once where settings share them."""
        last = None
        for segmenter in self.segmenters:
            if last is None or not same_fragments(segmenter, last):
                fragments = segmenter.fragments(affinities)
            last = segmenter
            yield segmenter.join(fragments, affinities)

    def scores(self) -> dict[str, float]:
        """Mean scores at the best setting; ``cremi`` is that of the means."""
        return self.best()[1]

    def volume_scores(self) -> dict[str, dict[str, float]]:
        """Scores of every volume at the best setting of all."""
        index, _ = self.best()
        return {name: dict(rows[index]) for name, rows in self.rows.items()}

    def best(self) -> tuple[int, dict[str, float]]:
        """Index of the best setting, and the mean scores at it."""
        index, means = best_setting(self.rows.values())
        return index, means[index]

    @property
    def best_segmenter(self) -> SegmentationMethod:
        """The segmenter with the best setting."""
        return self.segmenters[self.best()[0]]

    def completed(self, engine: Engine, name: str) -> None:
        """Put scores and setting into the engine's state."""
        super().completed(engine, name)
        state: Any = engine.state
        index, _ = self.best()
        state.segmentation = self.grid[index]
        state.segmentation_method = method_name(self.segmenters[index])
        joined = {name: objects[index] for name, objects in self.joined.items() if objects[index]}
        if joined and is_writer():
            segment = "one single segment" + (" in every section" if self.per_section else "")
            logger.warning(
                "even the best setting gives %s for all objects of %s: train longer, or add "
                "settings that cut more to segmentation_grid (of the mutex watershed a lower "
                "'bias')",
                segment,
                ", ".join(f"'{name}' ({objects})" for name, objects in joined.items()),
            )


def joined_objects(
    truth: NDArray[np.integer], segmentation: NDArray[np.integer], per_section: bool = False
) -> int:
    """How many true objects one single segment has swallowed; 0 unless it is all of them.

    Args:
        truth: (D, H, W) labels; 0 is unknown and ignored.
        segmentation: (D, H, W) labels; 0 is no segment.
        per_section: every section has one segment, and an object counts in each of its sections.
    """
    sections = zip(truth, segmentation, strict=True) if per_section else [(truth, segmentation)]
    counts = [0]
    for true, found in sections:
        known = true != 0
        segments = found[known]
        if segments.size and (segments[0] == 0 or (segments != segments[0]).any()):
            return 0
        counts.append(np.unique(true[known]).size)
    return sum(counts) if max(counts) > 1 else 0


class ClassScore(VolumeScore):
    """Dice and IoU of the classes but the background, over all validation volumes together.

    Scores are those of ``class_scores``, which says what becomes of classes without truth.

    Args:
        names: of the classes, the background's first.
        key: the score that decides which model is kept.
    """

    def __init__(self, names: Sequence[str], key: KeyMetric = DICE) -> None:
        self.names = list(names)
        super().__init__(key)

    def reset(self) -> None:
        """Forget all volumes."""
        self.counts: dict[str, ClassCounts] = {}

    def update(self, output: Sequence[Mapping[str, Any]]) -> None:
        """Compare volumes with class ids, ``UNKNOWN`` where they do not count."""
        for item in output:
            truth, predicted = item["label"][0].cpu().numpy(), predicted_classes(item["pred"])
            self.counts[item["id"]] = class_counts(truth, predicted, len(self.names))

    def gather(self) -> None:
        """The counts of all volumes."""
        self.counts = collected(self.counts)

    def scores(self) -> dict[str, float]:
        """``class_scores`` of all volumes together.

        Raises:
            InputError: none of the classes is in the truth, or not that of the key.
        """
        scores = class_scores(reduce(add, self.counts.values()), self.names)
        if not scores:
            raise InputError(
                f"the validation labels hold none of the classes {', '.join(self.names[1:])} where "
                f"they count: check the labels and masks of the validation entries"
            )
        if self.key.name not in scores:
            raise InputError(
                f"key_metric_name is '{self.key.name}', but the validation labels give no such "
                f"score: choose one of {', '.join(scores)}, or add a volume that has the class"
            )
        return scores

    def volume_scores(self) -> dict[str, dict[str, float]]:
        """``class_scores`` of every volume; empty for one that has background alone."""
        return {name: class_scores(counts, self.names) for name, counts in self.counts.items()}


Score = SegmentationScore | ClassScore


def validation_score(
    layout: ChannelLayout,
    segmenter: SegmentationMethod,
    grid: Sequence[Mapping[str, Any]],
    volumes: Sequence[FeatureVolume],
    dimensions: int = 3,
    key_metric_name: str | None = None,
    affinity_scores: AffinityScores | None = None,
) -> Score:
    """The score for what a network predicts: ``ClassScore`` or ``SegmentationScore``.

    Args:
        layout: of the network's channels.
        segmenter: as in ``SegmentationScore``, for affinities.
        grid: as there.
        volumes: whose classes have names, for classes.
        dimensions: 2: sections are compared each on its own.
        key_metric_name: the score that decides which model is kept: of affinities one of
            ``OF_OBJECTS``, of classes one of ``keys_of_classes``; None for VOI, or mean Dice.
        affinity_scores: as in ``SegmentationScore``; not looked at for classes.

    Raises:
        InputError: there is no such score, a setting is unknown, the grid is empty.
    """
    if layout.num_classes:
        ids = volumes[0].metadata.get("entry", {}).get("class_ids")
        names = class_names(ids, layout.num_classes)
        return ClassScore(names, chosen_key(key_metric_name, keys_of_classes(names)))
    if not grid:
        raise InputError("segmentation_grid must name at least one setting, such as {}.")
    known = [key for key in OF_OBJECTS if affinity_scores or key.name != "affinity_f1"]
    key = chosen_key(key_metric_name, known)
    return SegmentationScore(segmenter, grid, dimensions == 2, key, affinity_scores)


def predicted_classes(probabilities: torch.Tensor) -> NDArray[np.uint64]:
    """The most probable class of every voxel, (D, H, W), from (N, D, H, W); the first of equals."""
    ids: NDArray[np.uint64] = probabilities.argmax(0).cpu().numpy().astype(np.uint64)
    return ids


def as_uint8(probabilities: torch.Tensor) -> NDArray[np.uint8]:
    """Probabilities as 0 to 255, rounded: what is stored is what is segmented."""
    scaled: NDArray[np.uint8] = (probabilities * 255).round().to(torch.uint8).cpu().numpy()
    return scaled
