from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ignite.engine import Engine

from custom.affinity_scores import (
    AffinityScores,
    affinity_counts,
    offset_name,
    scores_of_counts,
)
from custom.targets.affinities import affinities
from custom.targets.settings import target_settings
from custom.tensorboard import TensorBoard
from custom.volume_curves import VolumeCurves
from tests.events import points

OFFSETS = ((0, 0, 1), (0, -2, 0), (1, 0, 0))


def item(name: str, seed: int, shape: tuple[int, ...] = (3, 4, 5)) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    return {
        "id": name,
        "label": torch.from_numpy(draw.integers(0, 3, shape))[None],
        "mask": torch.from_numpy(draw.random(shape) < 0.8)[None],
        "pred": torch.from_numpy(draw.random((len(OFFSETS) + 10, *shape), np.float32)),
    }


def by_hand(one: dict[str, Any], offset: tuple[int, ...], background: str) -> list[int]:
    """True positives, false positives, false negatives, voxel by voxel."""
    labels, mask = one["label"][0].numpy(), one["mask"][0].numpy()
    prediction = one["pred"][OFFSETS.index(offset)].numpy()
    found = [0, 0, 0]
    for voxel in np.ndindex(labels.shape):
        other = tuple(v + o for v, o in zip(voxel, offset, strict=True))
        inside = all(0 <= v < n for v, n in zip(other, labels.shape, strict=True))
        if not inside or not (mask[voxel] and mask[other]):
            continue
        true = labels[voxel] == labels[other] and (labels[voxel] != 0 or background == "joined")
        predicted = prediction[voxel] > 0.5
        found[0] += true and predicted
        found[1] += predicted and not true
        found[2] += true and not predicted
    return found


@pytest.mark.parametrize("background", ["apart", "joined"])
@given(seed=st.integers(0, 99))
def test_counts_are_those_made_by_hand(background: str, seed: int) -> None:
    one = item("a", seed)
    counts = affinity_counts(one["pred"], one["label"][0], one["mask"][0], OFFSETS, background)
    for offset, (both, predicted, true) in zip(OFFSETS, counts.tolist(), strict=True):
        tp, fp, fn = by_hand(one, offset, background)
        assert (both, predicted - both, true - both) == (tp, fp, fn)


def test_scores_are_left_out_where_there_is_nothing_to_divide_by() -> None:
    assert scores_of_counts(3, 4, 5) == {"f1": 6 / 9, "precision": 3 / 4, "recall": 3 / 5}
    assert scores_of_counts(0, 0, 5) == {"f1": 0.0, "recall": 0.0}
    assert scores_of_counts(0, 0, 0) == {}


def test_a_perfect_prediction_scores_one() -> None:
    one = item("a", 0)
    perfect, _ = affinities(one["label"][0].numpy(), OFFSETS)
    counts = affinity_counts(torch.from_numpy(perfect), one["label"][0], one["mask"][0], OFFSETS)
    assert [scores_of_counts(*row)["f1"] for row in counts.tolist()] == [1.0] * 3


def validated(*items: dict[str, Any], **settings: Any) -> Any:
    """State of an engine whose data are its batches and outputs."""
    engine: Any = Engine(lambda engine, batch: batch)
    AffinityScores(target_settings(OFFSETS, None, **settings)).attach(engine)
    engine.run([[one] for one in items])
    return engine


def test_every_volume_and_offset_has_scores_and_there_is_one_for_all() -> None:
    items = [item("a", 1), item("b", 2, (2, 6, 3))]
    state = validated(*items).state
    hands = np.array([[by_hand(one, offset, "apart") for offset in OFFSETS] for one in items])
    for one, of_volume in zip(items, hands, strict=True):
        for offset, (tp, fp, fn) in zip(OFFSETS, of_volume, strict=True):
            found = state.affinity_scores[one["id"]][offset_name(offset)]
            assert found == {
                "f1": pytest.approx(2 * tp / (2 * tp + fp + fn)),
                "precision": pytest.approx(tp / (tp + fp)),
                "recall": pytest.approx(tp / (tp + fn)),
            }
        mean = np.mean([scores["f1"] for scores in state.affinity_scores[one["id"]].values()])
        assert state.volume_scores[one["id"]] == {"affinity_f1": pytest.approx(mean)}
    tp, fp, fn = hands.sum(axis=0).T
    assert state.metrics["affinity_f1"] == pytest.approx(np.mean(2 * tp / (2 * tp + fp + fn)))


def test_a_second_validation_forgets_the_first() -> None:
    engine = validated(item("a", 1))
    engine.run([[item("b", 2)]])
    assert list(engine.state.affinity_scores) == ["b"]


def test_labels_count_as_far_from_the_edge_of_the_mask_as_in_training() -> None:
    one = item("a", 3, (5, 6, 7))
    one["mask"][:] = True
    one["mask"][0, :, :, 4:] = False
    inner = {**one, "mask": one["mask"].clone()}
    inner["mask"][0, :, :, 3] = False
    eroded = validated(one, mask_erosion=[0, 0, 1]).state.affinity_scores
    assert eroded == validated(inner).state.affinity_scores
    assert eroded != validated(one).state.affinity_scores


def test_volumes_of_other_processes_are_among_the_scores() -> None:
    other = {"b": np.array([[1, 2, 3]] * 3)}
    with patch("custom.affinity_scores.collected", lambda found: found | other):
        assert list(validated(item("a", 1)).state.affinity_scores) == ["a", "b"]


def test_classes_have_no_affinities() -> None:
    engine: Any = Engine(lambda engine, batch: batch)
    AffinityScores(target_settings([], None, output_type="labels")).attach(engine)
    engine.run([[item("a", 1)]])
    assert not hasattr(engine.state, "affinity_scores")


def test_tensorboard_has_a_curve_for_every_volume_and_offset(tmp_path: Path) -> None:
    engine: Any = Engine(lambda engine, batch: batch)
    AffinityScores(target_settings(OFFSETS, None)).attach(engine)
    VolumeCurves(TensorBoard(str(tmp_path))).attach(engine)
    engine.state.trained_iterations = 40
    engine.state.volume_scores = {"a": {"voi": 1.5}, "b": {"voi_split": 0.25}}  # as of a metric
    engine.run([[item("a", 1)], [item("b", 2)]])
    assert points(tmp_path, "volumes/a/voi") == [(40, 1.5)]
    assert points(tmp_path, "volumes/b/voi_split") == [(40, 0.25)]
    for volume, offsets in engine.state.affinity_scores.items():
        for offset, scores in offsets.items():
            for name, value in scores.items():
                found = points(tmp_path, f"affinity_{name}/{volume}/{offset}")
                assert found == [(40, pytest.approx(value))]
    assert set(engine.state.affinity_scores["b"]) == {"0_0_1", "0_-2_0", "1_0_0"}
