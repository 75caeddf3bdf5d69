from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.metrics.meandice import compute_dice
from numpy.typing import NDArray
from torch.nn import functional as F

from custom.channels import ChannelLayout
from custom.errors import InputError
from custom.metrics import SCORES, instance_scores
from custom.scores import DICE, VOI, ClassScore, KeyMetric, SegmentationScore, validation_score
from custom.segmentation.segmenter import MutexWatershedSegmenter

OFFSETS = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 3))
SHAPE = (6, 8, 12)
SEGMENTER = MutexWatershedSegmenter(OFFSETS, bias=-0.5, long_range_stride=1)


# --- segments ---


def truth(cut: int = 5) -> NDArray[np.int64]:
    """Two objects, cut along x."""
    labels = np.ones(SHAPE, dtype=np.int64)
    labels[:, :, cut:] = 2
    return labels


def predicted(labels: NDArray[np.int64], cut: float = 0.0) -> torch.Tensor:
    """Affinities: 1 inside objects, ``cut`` across their border."""
    channels = []
    for offset in OFFSETS:
        moved = np.roll(labels, [-o for o in offset], axis=(0, 1, 2))
        channels.append(np.where(labels == moved, 1.0, cut))
    return torch.tensor(np.stack(channels), dtype=torch.float32)


def item(labels: NDArray[np.int64], prediction: torch.Tensor) -> dict[str, Any]:
    return {
        "image": torch.linspace(-1, 1, labels.size).reshape(1, *labels.shape),
        "label": torch.from_numpy(labels)[None],
        "pred": prediction,
        "voxel_size_nm": torch.tensor([16.0, 8.0, 8.0]),
    }


def evaluator(*handlers: Any, score: SegmentationScore | None = None) -> Engine:
    """An engine whose data are its outputs."""
    engine = Engine(lambda engine, batch: batch)
    if score is not None:
        score.attach(engine, "voi")
    for handler in handlers:
        handler.attach(engine)
    return engine


def evaluated(score: SegmentationScore, *items: dict[str, Any]) -> Any:
    engine = evaluator(score=score)
    engine.run([[one] for one in items])
    return engine.state


def test_a_perfect_prediction_scores_nothing() -> None:
    state = evaluated(SegmentationScore(SEGMENTER, [{}]), item(truth(), predicted(truth())))
    assert {name: state.metrics[name] for name in SCORES} == dict.fromkeys(SCORES, 0.0)


def test_scores_are_those_of_the_metrics_and_means_over_volumes() -> None:
    segments = truth(9)
    state = evaluated(
        SegmentationScore(SEGMENTER, [{}]),
        item(truth(), predicted(segments)),
        item(truth(), predicted(truth())),
    )
    expected = instance_scores(truth(), segments)
    assert expected["voi"] > 0.1
    for name in SCORES:
        assert state.metrics[name] == pytest.approx(expected[name] / 2)


def test_the_best_setting_of_the_grid_counts() -> None:
    grid = [{"bias": 0.5, "threshold": 0.1}, {"bias": -0.5}, {"bias": -0.5, "threshold": 0.01}]
    prediction = predicted(truth(), cut=0.3)
    state = evaluated(SegmentationScore(SEGMENTER, grid), item(truth(), prediction))
    assert state.metrics["voi"] == 0
    assert state.segmentation == {"bias": -0.5}


def test_the_choice_is_by_voi_times_rand_and_a_new_run_forgets() -> None:
    score = SegmentationScore(SEGMENTER, [{"bias": -0.4}, {"bias": -0.5}, {"bias": -0.6}])
    voi, rand = SCORES.index("voi"), SCORES.index("adapted_rand")
    table = np.zeros((2, 3, len(SCORES)))
    table[:, :, voi] = [[1.0, 1.2, 3.0], [1.0, 1.2, 3.0]]
    table[:, :, rand] = [[0.6, 0.1, 0.05], [0.4, 0.1, 0.05]]  # products 0.5, 0.12, 0.15
    score.rows = table.tolist()
    index, scores = score.best()
    assert (index, score.compute()) == (1, 1.2)
    assert scores["adapted_rand"] == pytest.approx(0.1)
    score.reset()
    assert score.rows == []


def test_an_empty_grid_and_unknown_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one setting"):
        SegmentationScore(SEGMENTER, [])
    with pytest.raises(InputError, match="treshold"):
        SegmentationScore(SEGMENTER, [{"treshold": 0.5}])


def test_shared_fragments_give_the_same_scores_as_fragments_of_their_own() -> None:
    prediction = predicted(truth(), cut=0.6)
    grid: list[dict[str, Any]] = [
        {"threshold": t, "quantile": q} for t, q in ((0.2, 0.5), (0.9, 0.9))
    ]
    together = SegmentationScore(SEGMENTER, grid)
    evaluated(together, item(truth(), prediction))
    for number, settings in enumerate(grid):
        alone = SegmentationScore(SEGMENTER, [settings])
        evaluated(alone, item(truth(), prediction))
        assert together.rows[0][number] == alone.rows[0][0]


def test_sections_are_scored_each_on_its_own() -> None:
    """In-plane affinities: one object through all sections is one segment in each."""
    in_plane = MutexWatershedSegmenter(((0, 1, 0), (0, 0, 1)), bias=-0.5)
    whole = np.ones(SHAPE, dtype=np.int64)
    seen = item(whole, torch.ones(2, *SHAPE))
    together, apart = (SegmentationScore(in_plane, [{}], per_section=p) for p in (False, True))
    assert evaluated(together, seen).metrics["voi"] == pytest.approx(np.log2(SHAPE[0]))
    assert evaluated(apart, seen).metrics["voi"] == 0


# --- classes ---

NAMES = ["background", "mito", "er"]


def class_item(labels: NDArray[np.int64], found: NDArray[np.int64]) -> dict[str, Any]:
    probabilities = F.one_hot(torch.from_numpy(found), 3).movedim(-1, 0).float() * 0.5 + 0.1
    return item(labels, probabilities)


def class_evaluated(*items: dict[str, Any]) -> Any:
    engine = evaluator()
    ClassScore(NAMES).attach(engine, "dice")
    engine.run([[one] for one in items])
    return engine.state


def test_classes_are_scored_over_all_volumes_together() -> None:
    random = np.random.default_rng(0)
    truth, found = random.integers(0, 3, (2, 2, *SHAPE))
    truth[0, :3] = -1  # unknown
    state = class_evaluated(*map(class_item, truth, found))
    known = torch.from_numpy(truth >= 0).flatten()
    one_hot = [
        (F.one_hot(torch.from_numpy(np.maximum(labels, 0)).flatten(), 3).T * known).float()[None]
        for labels in (found, truth)
    ]
    expected = compute_dice(*one_hot, include_background=False)[0]
    assert state.metrics["dice"] == pytest.approx(float(expected.mean()))
    single = [state.metrics[f"dice_{name}"] for name in NAMES[1:]]
    assert single == pytest.approx(expected.tolist())


def test_a_perfect_class_prediction_scores_one_and_unknown_voxels_do_not_count() -> None:
    truth = np.random.default_rng(0).integers(0, 3, SHAPE)
    hidden = truth.copy()
    hidden[2:] = -1
    wrong_there = np.where(hidden < 0, 1, truth)
    for labels, found in ((truth, truth), (hidden, wrong_there)):
        metrics = class_evaluated(class_item(labels, found)).metrics
        assert {name: metrics[name] for name in ("dice", "dice_mito", "iou", "iou_er")} == {
            **dict.fromkeys(("dice", "dice_mito", "iou", "iou_er"), 1.0)
        }


def test_a_class_without_truth_has_no_score_and_costs_the_others() -> None:
    truth = np.ones(SHAPE, dtype=np.int64)
    found = truth.copy()
    found[:3] = 2
    metrics = class_evaluated(class_item(truth, found)).metrics
    assert "dice_er" not in metrics
    assert metrics["dice"] == metrics["dice_mito"] == pytest.approx(2 / 3)


def test_truth_without_classes_is_said() -> None:
    nothing = np.zeros(SHAPE, dtype=np.int64)
    with pytest.raises(InputError, match="hold none of the classes mito, er"):
        class_evaluated(class_item(nothing, nothing))


# --- which score, and its direction ---


@pytest.mark.parametrize(("key", "new", "best"), [(VOI, 0.5, 0.6), (DICE, 0.6, 0.5)])
def test_a_score_knows_its_direction(key: KeyMetric, new: float, best: float) -> None:
    assert key.better(new, best) and not key.better(best, new) and not key.better(new, new)
    assert key.better(0.0, key.worst) and not key.better(key.worst, 0.0)


def test_what_is_predicted_decides_the_score() -> None:
    volumes: Any = [type("V", (), {"metadata": {"entry": {"class_ids": {"mito": 1, "er": 2}}}})()]
    found = validation_score(ChannelLayout(0, 0, 3), SEGMENTER, [{}], volumes)
    assert isinstance(found, ClassScore) and found.names == NAMES and found.key is DICE
    for dimensions in (2, 3):
        segments = validation_score(ChannelLayout(4), SEGMENTER, [{}], volumes, dimensions)
        assert isinstance(segments, SegmentationScore) and segments.key is VOI
        assert segments.per_section is (dimensions == 2)
