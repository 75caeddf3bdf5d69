import logging
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.engines import SupervisedEvaluator
from monai.metrics.meandice import compute_dice
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from custom.affinity_scores import AffinityScores
from custom.channels import ChannelLayout
from custom.errors import InputError
from custom.metrics import SCORES, instance_scores
from custom.scores import (
    DICE,
    OF_OBJECTS,
    VOI,
    ClassScore,
    KeyMetric,
    SegmentationScore,
    chosen_key,
    joined_objects,
    keys_of_classes,
    validation_score,
)
from custom.segmentation.segmenter import MutexWatershedSegmenter
from custom.targets.settings import target_settings

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


def item(labels: NDArray[np.int64], prediction: torch.Tensor, name: str = "cube") -> dict[str, Any]:
    return {
        "id": name,
        "image": torch.linspace(-1, 1, labels.size).reshape(1, *labels.shape),
        "label": torch.from_numpy(labels)[None],
        "mask": torch.from_numpy(labels >= 0)[None],
        "pred": prediction,
        "voxel_size_nm": torch.tensor([16.0, 8.0, 8.0]),
    }


def evaluator(*handlers: Any, score: SegmentationScore | None = None) -> Engine:
    """An engine whose data are its outputs."""
    engine = Engine(lambda engine, batch: batch)
    if score is not None:
        score.attach(engine, score.key.name)
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
        item(truth(), predicted(segments), "moved"),
        item(truth(), predicted(truth()), "perfect"),
    )
    expected = instance_scores(truth(), segments)
    assert expected["voi"] > 0.1
    for name in SCORES:
        assert state.metrics[name] == pytest.approx(expected[name] / 2)
        assert state.volume_scores["moved"][name] == expected[name]
        assert state.volume_scores["perfect"][name] == 0
    cremi = (expected["voi"] * expected["adapted_rand"]) ** 0.5
    assert state.volume_scores["moved"]["cremi"] == pytest.approx(cremi)
    assert state.metrics["cremi"] == pytest.approx(cremi / 2)


def test_volumes_of_other_sizes_weigh_the_same_in_any_order() -> None:
    wide = np.ones((3, 9, 20), dtype=np.int64)
    wide[:, 4:] = 2
    items = [
        item(truth(), predicted(truth(7)), "small"),
        item(wide, predicted(np.ones_like(wide)), "wide"),
        item(truth(), predicted(truth(2)), "other"),
    ]
    states = [
        evaluated(SegmentationScore(SEGMENTER, [{}]), *order) for order in (items, items[::-1])
    ]
    assert states[0].metrics == states[1].metrics
    assert states[0].volume_scores == states[1].volume_scores
    alone = [evaluated(SegmentationScore(SEGMENTER, [{}]), one).metrics["voi"] for one in items]
    assert states[0].metrics["voi"] == pytest.approx(np.mean(alone))


def test_what_is_predicted_where_labels_do_not_count_costs_nothing() -> None:
    hidden, segments = truth(), truth()
    hidden[3:] = 0
    segments[3:] = 3 + truth(9)[3:]
    states = [
        evaluated(SegmentationScore(SEGMENTER, [{}]), item(labels, predicted(segments)))
        for labels in (truth(), hidden)
    ]
    assert [state.metrics["voi"] > 0.1 for state in states] == [True, False]


def test_a_prediction_without_any_affinity_has_scores() -> None:
    """Every voxel a fragment of its own, which the lowest affinity asked for turns to nothing."""
    grid = [{"min_affinity": 0.5}]
    state = evaluated(SegmentationScore(SEGMENTER, grid), item(truth(), torch.zeros(4, *SHAPE)))
    assert state.metrics["voi_split"] == 0
    sizes = np.array([5, 7]) / 12
    assert state.metrics["voi_merge"] == pytest.approx(float(-(sizes * np.log2(sizes)).sum()))


def test_the_best_setting_of_the_grid_counts() -> None:
    grid = [{"bias": 0.5, "threshold": 0.1}, {"bias": -0.5}, {"bias": -0.5, "threshold": 0.01}]
    prediction = predicted(truth(), cut=0.3)
    state = evaluated(SegmentationScore(SEGMENTER, grid), item(truth(), prediction))
    assert state.metrics["voi"] == 0
    assert state.segmentation == {"bias": -0.5}


def warned(caplog: pytest.LogCaptureFixture, *items: dict[str, Any], **settings: Any) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "custom.scores"):
        evaluated(SegmentationScore(SEGMENTER, [{}], **settings), *items)
    return [record.getMessage() for record in caplog.records]


def test_one_segment_for_several_objects_at_the_best_setting_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = np.ones(SHAPE, dtype=np.int64)
    items = [
        item(truth(), predicted(whole), "joined"),
        item(truth(), predicted(truth(9)), "cut"),
        item(whole, predicted(whole), "alone"),
        item(truth(), predicted(whole), "too"),
    ]
    (line,) = warned(caplog, *items)
    assert "one single segment for all objects of 'joined' (2), 'too' (2)" in line
    assert "train longer" in line and "'bias'" in line and "segmentation_grid" in line
    assert warned(caplog, *items[1:3]) == []
    with patch("custom.scores.is_writer", return_value=False):
        assert warned(caplog, *items) == []


def test_another_setting_than_the_best_may_join_everything(
    caplog: pytest.LogCaptureFixture,
) -> None:
    score = SegmentationScore(SEGMENTER, [{"bias": 0.5, "threshold": 0.1}, {"bias": -0.5}])
    with caplog.at_level(logging.WARNING, "custom.scores"):
        evaluated(score, item(truth(), predicted(truth(), cut=0.3)))
    assert score.joined == {"cube": [2, 0]}
    assert caplog.records == []


def test_joined_objects_are_all_or_none() -> None:
    whole, known = np.full(SHAPE, 7), truth()
    known[0] = 0
    sections = np.broadcast_to(np.arange(1, 7)[:, None, None], SHAPE)
    assert joined_objects(known, whole) == 2
    assert joined_objects(known, np.where(known, 7, truth())) == 2  # the rest does not count
    assert joined_objects(known, truth(6)) == 0
    assert joined_objects(known, 0 * whole) == 0  # no segment at all
    assert joined_objects(0 * known, whole) == joined_objects(whole, whole) == 0
    assert joined_objects(known, sections) == 0
    assert joined_objects(known, sections, per_section=True) == 5 * 2
    assert joined_objects(whole, sections, per_section=True) == 0


def scored(*settings: tuple[float, float], key: KeyMetric = VOI) -> SegmentationScore:
    """Two volumes whose mean VOI and mean adapted Rand error at each setting are these."""
    grid = [{"bias": -0.1 * number} for number in range(len(settings))]
    score = SegmentationScore(SEGMENTER, grid, key=key)
    for name, sign in (("one", 0.5), ("two", 1.5)):
        score.rows[name] = [
            {"voi_split": sign, "voi_merge": 2 - sign, "voi": sign * voi, "adapted_rand": rand}
            for voi, rand in settings
        ]
    return score


OF_SEGMENTS = [key for key in OF_OBJECTS if key.name != "affinity_f1"]


@pytest.mark.parametrize("key", OF_SEGMENTS, ids=lambda key: str(key.name))
def test_the_setting_is_chosen_by_voi_times_rand_whichever_score_is_the_key(key: KeyMetric) -> None:
    score = scored((1.0, 0.5), (1.2, 0.1), (3.0, 0.05), key=key)  # products 0.5, 0.12, 0.15
    index, scores = score.best()
    assert index == 1
    assert scores["voi"] == pytest.approx(1.2) and scores["cremi"] == pytest.approx(0.12**0.5)
    assert score.compute() == scores[key.name]
    assert score.volume_scores()["two"]["voi"] == pytest.approx(1.8)
    score.reset()
    assert score.rows == {}


def test_means_are_the_same_to_the_last_digit_in_any_order_of_the_volumes() -> None:
    """Processes share the volumes out; the best model must not depend on how."""
    rows = {
        str(value): [dict.fromkeys(SCORES, value)] for value in (0.1, 0.2, 0.3)
    }  # their sum has another last digit from the other end
    means = []
    for names in (list(rows), list(rows)[::-1]):
        score = SegmentationScore(SEGMENTER, [{}])
        score.rows = {name: rows[name] for name in names}
        means.append(score.scores())
    assert means[0] == means[1]


@pytest.mark.parametrize(
    ("settings", "best"),
    [([(2.0, 0.0), (1.0, 0.0)], 1), ([(2.0, 0.5), (1.0, 1.0)], 1), ([(1.0, 0.5)] * 3, 0)],
    ids=["no Rand error", "equal products", "equal scores"],
)
def test_of_equal_settings_the_one_of_lowest_voi_counts_then_the_first(
    settings: list[tuple[float, float]], best: int
) -> None:
    assert scored(*settings).best()[0] == best


def test_the_key_may_be_a_score_of_the_affinities_themselves() -> None:
    """MONAI compares it with the best so far, so it must be there by then."""
    volumes: Any = []
    found = validation_score(
        *(ChannelLayout(4), SEGMENTER, [{}], volumes),
        key_metric_name="affinity_f1",
        affinity_scores=AffinityScores(target_settings(OFFSETS, None)),
    )
    seen = item(truth(), predicted(truth(8))) | {"mask": torch.ones(1, *SHAPE, dtype=torch.bool)}
    network = nn.Identity()
    engine = SupervisedEvaluator(
        "cpu",
        [[seen]],  # type: ignore[arg-type]
        network,
        epoch_length=1,
        iteration_update=lambda engine, batch: batch,
        key_val_metric={found.key.name: found},
        metric_cmp_fn=found.key.better,
        decollate=False,
    )
    engine.run()
    state: Any = engine.state
    assert 0 < state.metrics["affinity_f1"] == state.best_metric < 1
    assert state.metrics["voi"] > 0
    assert state.volume_scores["cube"] == pytest.approx(state.metrics)


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
        assert together.rows["cube"][number] == alone.rows["cube"][0]


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


def class_item(
    labels: NDArray[np.int64], found: NDArray[np.int64], name: str = "cube"
) -> dict[str, Any]:
    probabilities = F.one_hot(torch.from_numpy(found), 3).movedim(-1, 0).float() * 0.5 + 0.1
    return item(labels, probabilities, name)


def class_evaluated(*items: dict[str, Any], key: KeyMetric = DICE) -> Any:
    engine = evaluator()
    ClassScore(NAMES, key).attach(engine, key.name)
    engine.run([[one] for one in items])
    return engine.state


def test_classes_are_scored_over_all_volumes_together() -> None:
    random = np.random.default_rng(0)
    truth, found = random.integers(0, 3, (2, 2, *SHAPE))
    truth[0, :3] = -1  # unknown
    items = [class_item(*pair) for pair in zip(truth, found, ("one", "two"), strict=True)]
    state = class_evaluated(*items)
    known = torch.from_numpy(truth >= 0).flatten()
    one_hot = [
        (F.one_hot(torch.from_numpy(np.maximum(labels, 0)).flatten(), 3).T * known).float()[None]
        for labels in (found, truth)
    ]
    expected = compute_dice(*one_hot, include_background=False)[0]
    assert state.metrics["dice"] == pytest.approx(float(expected.mean()))
    single = [state.metrics[f"dice_{name}"] for name in NAMES[1:]]
    assert single == pytest.approx(expected.tolist())
    for name, one in zip(("one", "two"), items, strict=True):
        assert state.volume_scores[name] == class_evaluated(one).metrics


def test_a_volume_of_background_has_no_scores_of_its_own_and_counts_all_the_same() -> None:
    truth = np.ones(SHAPE, dtype=np.int64)
    items = class_item(truth, truth, "mito"), class_item(0 * truth, truth, "background")
    state = class_evaluated(*items)
    assert state.volume_scores["background"] == {}
    assert state.metrics["dice"] == pytest.approx(2 / 3)
    assert class_evaluated(items[0]).metrics["dice"] == 1


@pytest.mark.parametrize("name", ["dice", "iou", "dice_mito", "iou_mito"])
def test_any_score_of_classes_may_be_the_key(name: str) -> None:
    key = chosen_key(name, keys_of_classes(NAMES))
    score = ClassScore(NAMES, key)
    truth = np.random.default_rng(0).integers(0, 2, SHAPE)
    score.update([class_item(truth, truth[::-1].copy())])
    assert 0 < score.compute() == score.scores()[name] < 1
    assert key.better(0.8, 0.7)


def test_a_key_that_the_truth_gives_no_score_for_is_said() -> None:
    key = chosen_key("dice_er", keys_of_classes(NAMES))
    truth = np.ones(SHAPE, dtype=np.int64)
    with pytest.raises(InputError, match=r"'dice_er', but .* choose one of dice, iou, dice_mito"):
        class_evaluated(class_item(truth, truth), key=key)


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


@pytest.mark.parametrize(
    ("key", "new", "best"),
    [
        *((key, 0.5, 0.6) for key in OF_SEGMENTS),
        (OF_OBJECTS[-1], 0.6, 0.5),
        *((key, 0.6, 0.5) for key in keys_of_classes(NAMES)),
    ],
)
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
    for layout, name in ((ChannelLayout(4), "voi_merge"), (ChannelLayout(0, 0, 3), "iou_er")):
        assert validation_score(layout, SEGMENTER, [{}], volumes, 3, name).key.name == name
    with pytest.raises(InputError, match=r"one of voi, voi_split, .*, cremi, got 'dice'"):
        validation_score(ChannelLayout(4), SEGMENTER, [{}], volumes, 3, "dice")
    with pytest.raises(InputError, match=r"one of dice, iou, dice_mito, .*, iou_er, got 'voi'"):
        validation_score(ChannelLayout(0, 0, 3), SEGMENTER, [{}], volumes, 3, "voi")
    with pytest.raises(InputError, match="segmentation_grid must name at least one"):
        validation_score(ChannelLayout(4), SEGMENTER, [], volumes)
