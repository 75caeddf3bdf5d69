import tracemalloc
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from ignite.engine import Engine
from monai.handlers import IgniteMetricHandler
from monai.metrics.meandice import compute_dice
from monai.metrics.meaniou import compute_iou
from skimage import metrics as skimage_metrics

from custom.instance_metric import InstanceSegmentationMetric
from custom.metrics import (
    SCORES,
    UNKNOWN,
    ObjectCounts,
    adapted_rand_error,
    average_precisions,
    class_counts,
    class_counts_of_pairs,
    class_scores,
    contingency,
    instance_scores,
    object_counts,
    variation_of_information,
)
from tests.oracles import pair_counts

SHAPES = array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5)
BIG = 2**63  # neighbours of this id are equal in float64


@st.composite
def pairs(draw, low=0):
    """Truth and segmentation of one shape."""
    shape = draw(SHAPES)
    return tuple(draw(arrays(np.int64, shape, elements=st.integers(low, 4))) for _ in range(2))


def objects(*ids):
    return np.repeat(np.array(ids, dtype=np.uint64), 4).reshape(1, 2, -1)


@pytest.mark.parametrize(
    ("truth", "segmentation", "split", "merge", "rand"),
    [
        pytest.param(objects(1, 1), objects(5, 6), 1, 0, 1 - 24 / 40, id="one object in halves"),
        pytest.param(objects(1, 2), objects(9, 9), 0, 1, 1 - 24 / 40, id="two objects joined"),
        pytest.param(objects(1, 2), objects(BIG, BIG + 1), 0, 0, 0, id="large ids stay apart"),
        pytest.param(objects(0, 1), objects(3, 3), 0, 0, 0, id="unknown truth is ignored"),
        pytest.param(objects(1, 1), objects(0, 5), 1, 0, 1 - 24 / 40, id="unassigned is a segment"),
        pytest.param(objects(0, 0), objects(1, 2), 0, 0, 0, id="no truth at all"),
        pytest.param(objects(1, 1, 2, 2), objects(1, 2, 1, 2), 1, 1, 1 - 24 / 56, id="crossed"),
    ],
)
def test_scores_computed_by_hand(truth, segmentation, split, merge, rand):
    assert variation_of_information(truth, segmentation) == pytest.approx((split, merge))
    assert adapted_rand_error(truth, segmentation) == pytest.approx(rand)


@pytest.mark.parametrize(
    ("truth", "segmentation", "ap", "ap_50", "ap_75"),
    [
        pytest.param(objects(1, 2), objects(8, 9), 1, 1, 1, id="perfect"),
        pytest.param(objects(1, 2), objects(9, 9), 0, 0, 0, id="half is no match"),
        pytest.param(
            objects(1, 1, 1, 2), objects(8, 8, 9, 9), 4 / 30, 1 / 3, 0, id="two thirds, and half"
        ),
        pytest.param(objects(1, 1, 1, 0), objects(8, 8, 8, 8), 1, 1, 1, id="unknown truth"),
        pytest.param(objects(1, 2), objects(8, 0), 0.5, 0.5, 0.5, id="0 is no segment"),
        pytest.param(objects(0, 0), objects(8, 9), 1, 1, 1, id="nothing"),
        pytest.param(objects(1, 1, 1, 1), objects(8, 8, 8, 9), 0.25, 0.5, 0, id="exactly 0.75"),
    ],
)
def test_average_precisions_computed_by_hand(truth, segmentation, ap, ap_50, ap_75):
    found = average_precisions(truth, segmentation)
    assert found == pytest.approx({"ap": ap, "ap_50": ap_50, "ap_75": ap_75})


@given(pairs())
def test_average_precision_counts_matches_of_every_pair(pair):
    truth, segmentation = pair
    objects, segments = (np.setdiff1d(ids, 0) for ids in (truth, segmentation[truth != 0]))
    ious = [
        np.sum((truth == o) & (segmentation == s))
        / np.sum((truth == o) | ((segmentation == s) & (truth != 0)))
        for o in objects
        for s in segments
    ]
    for name, threshold in (("ap_50", 0.5), ("ap_75", 0.75)):
        matches = np.sum(np.array(ious) > threshold)
        together = len(objects) + len(segments) - matches
        expected = matches / together if together else 1
        assert average_precisions(truth, segmentation)[name] == pytest.approx(expected)


@given(pairs(low=-1))
def test_class_counts_of_pairs_are_those_of_the_voxels(pair):
    truth, found = pair[0].ravel(), np.maximum(pair[1], 0).ravel()
    counts = np.arange(truth.size)
    expected = class_counts(np.repeat(truth, counts), np.repeat(found, counts), 5)
    for name, values in vars(class_counts_of_pairs(truth, found, counts, 5)).items():
        np.testing.assert_array_equal(values, getattr(expected, name))


@given(pairs())
def test_information_equals_scikit_image(pair):
    truth, segmentation = pair
    known = truth != 0
    if not known.any():
        return
    split, merge = skimage_metrics.variation_of_information(truth[known], segmentation[known])
    assert variation_of_information(truth, segmentation) == pytest.approx((split, merge), abs=1e-9)


@given(pairs())
def test_rand_error_equals_the_loop_over_pairs(pair):
    together, in_truth, in_segments = pair_counts(*pair)
    expected = 1 - 2 * together / (in_truth + in_segments) if in_truth + in_segments else 0
    assert adapted_rand_error(*pair) == pytest.approx(expected)


def test_rand_error_equals_scikit_image():
    rng = np.random.default_rng(0)
    truth, segmentation = rng.integers(0, 6, (2, 9, 10, 11))
    expected, _, _ = skimage_metrics.adapted_rand_error(truth, segmentation, ignore_labels=(0,))
    assert adapted_rand_error(truth, segmentation) == pytest.approx(expected)


@given(pairs(low=1))
def test_split_and_merge_change_places_with_the_arguments(pair):
    a, b = pair
    assert variation_of_information(a, b) == pytest.approx(variation_of_information(b, a)[::-1])
    assert adapted_rand_error(a, b) == pytest.approx(adapted_rand_error(b, a))


@given(pair=pairs(), seed=st.integers(0, 9))
def test_relabelling_changes_nothing(pair, seed):
    truth, segmentation = pair
    new = np.random.default_rng(seed).permutation(5).astype(np.uint64) + np.uint64(BIG)
    renamed = np.where(truth == 0, np.uint64(0), new[truth])
    before, after = (
        instance_scores(truth, segmentation),
        instance_scores(renamed, new[segmentation]),
    )
    assert after == pytest.approx(before, abs=1e-9)


@given(pairs())
def test_identical_partitions_score_zero(pair):
    truth, _ = pair
    assert list(instance_scores(truth, truth * 3 + 1).values()) == pytest.approx([0] * 4, abs=1e-9)


@given(pairs())
def test_scores_are_in_range(pair):
    scores = instance_scores(*pair)
    assert list(scores) == list(SCORES)
    assert min(scores.values()) >= 0
    assert scores["adapted_rand"] <= 1
    assert scores["voi"] == scores["voi_split"] + scores["voi_merge"]


@given(pairs())
def test_the_contingency_table_counts_every_known_voxel_once(pair):
    truth, segmentation = pair
    table = contingency(truth, segmentation)
    ids, sizes = np.unique(truth[truth != 0], return_counts=True)
    segment_ids, segment_sizes = np.unique(segmentation[truth != 0], return_counts=True)
    np.testing.assert_array_equal(table.truth_sizes, sizes)
    np.testing.assert_array_equal(table.segment_sizes, segment_sizes)
    for count, i, j in zip(table.counts, table.truth, table.segment, strict=True):
        assert count == ((truth == ids[i]) & (segmentation == segment_ids[j])).sum() > 0


@given(pairs(), st.integers(1, 40), st.booleans())
def test_the_table_is_the_same_in_slabs_of_any_size(pair, size, per_section):
    whole = contingency(*pair, per_section)
    with patch("custom.metrics.SLAB_VOXELS", size):
        parts = contingency(*pair, per_section)
    for field in ("counts", "truth", "segment"):
        np.testing.assert_array_equal(getattr(parts, field), getattr(whole, field))


def test_the_memory_of_a_comparison_does_not_grow_with_the_volume():
    """What it needs beside the arrays, which are 16 bytes per voxel here."""
    labels = np.ones((8, 64, 64), dtype=np.int64)
    with patch("custom.metrics.SLAB_VOXELS", 64 * 64):
        peaks = []
        for truth in (labels, np.concatenate([labels] * 8)):
            tracemalloc.start()
            instance_scores(truth, truth)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_objects_are_counted_where_the_truth_is_known():
    truth, segmentation = objects(0, 1, 1, 2), objects(9, 0, 5, 6)
    assert object_counts(truth, segmentation) == ObjectCounts(truth=2, segmentation=2)


@pytest.mark.parametrize("score", [variation_of_information, adapted_rand_error, object_counts])
def test_rejects_what_cannot_be_compared(score):
    labels = np.ones((2, 3, 4), dtype=int)
    with pytest.raises(ValueError, match="must have the same shape"):
        score(labels, labels[1:])
    with pytest.raises(TypeError, match="segmentation must hold integer ids, got float32"):
        score(labels, labels.astype(np.float32))


def two_images():
    """A batch of two: the first cut in halves, the second perfect; ids that float32 would join."""
    truth = np.stack([objects(1, 1), objects(1, 2)]).astype(np.int64) + 2**24
    segmentation = np.stack([objects(5, 6), objects(3, 4)]).astype(np.int64) + 2**24
    return torch.from_numpy(segmentation)[:, None], torch.from_numpy(truth)[:, None]


def test_the_metric_averages_over_images():
    metric = InstanceSegmentationMetric()
    y_pred, y = two_images()
    rows = metric(y_pred, y)
    assert rows.shape == (2, 4)
    assert metric.aggregate().tolist() == pytest.approx([0.5, 0, 0.5, (1 - 24 / 40) / 2])
    metric(list(y_pred[1:]), list(y[1:]))
    assert metric.aggregate()[0] == pytest.approx(1 / 3)
    metric.reset()
    with pytest.raises(ValueError, match="no image was scored"):
        metric.aggregate()


def test_the_metric_runs_in_an_ignite_engine():
    engine = Engine(lambda engine, batch: batch)
    handler = IgniteMetricHandler(InstanceSegmentationMetric(["voi"]))
    handler.attach(engine, "voi")
    state = engine.run([two_images()], max_epochs=2)
    assert state.metrics["voi"] == pytest.approx(0.5)
    assert state.metric_details["voi"].shape == (2, 1)


def test_the_metric_refuses_float_labels():
    y_pred, y = two_images()
    with pytest.raises(TypeError, match="segmentation must hold integer ids"):
        InstanceSegmentationMetric()(y_pred.float(), y)


@pytest.mark.parametrize("scores", [["voi", "dice"], []])
def test_the_metric_rejects_unknown_scores(scores):
    with pytest.raises(ValueError, match="scores must be some of"):
        InstanceSegmentationMetric(scores)


# --- section by section ---


@given(pairs())
def test_sections_score_like_volumes_that_share_no_id(pair):
    truth, segmentation = pair
    apart = [
        np.where(labels == low, labels, labels + 10 * np.arange(len(labels))[:, None, None])
        for labels, low in ((truth, 0), (segmentation, None))
    ]
    assert instance_scores(*pair, per_section=True) == pytest.approx(instance_scores(*apart))
    counted = object_counts(*pair, per_section=True)
    assert counted.truth == np.unique(apart[0][truth > 0]).size
    assert counted.segmentation == np.unique(apart[1][(truth > 0) & (segmentation > 0)]).size


def test_a_section_alone_scores_like_a_volume():
    rng = np.random.default_rng(0)
    truth, segmentation = rng.integers(0, 4, (2, 1, 9, 11))
    expected = instance_scores(truth, segmentation)
    assert instance_scores(truth, segmentation, per_section=True) == expected


def test_objects_through_sections_are_no_split_and_background_no_merge():
    """One object in three sections; segments of their own there, one section left out."""
    truth = np.full((3, 4, 5), 7)
    segmentation = np.arange(3)[:, None, None] + np.zeros_like(truth)
    assert instance_scores(truth, segmentation)["voi"] > 1
    assert instance_scores(truth, segmentation, per_section=True)["voi"] == 0
    blank = np.zeros_like(truth)
    assert instance_scores(truth, blank, per_section=True)["voi"] == 0
    assert object_counts(truth, segmentation, per_section=True) == ObjectCounts(3, 2)
    assert object_counts(truth, segmentation) == ObjectCounts(1, 2)


# --- classes ---

NAMES = ["background", "mito", "er", "nucleus"]


def test_class_scores_computed_by_hand():
    truth = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, UNKNOWN, UNKNOWN])
    found = np.array([0, 1, 3, 1, 1, 1, 2, 2, 0, 1, 3], np.uint64)
    counts = class_counts(truth, found, 4)
    assert counts.truth.tolist() == [3, 4, 2, 0]
    assert counts.prediction.tolist() == [2, 4, 2, 1]
    assert counts.shared.tolist() == [1, 3, 1, 0]
    expected = {"dice_mito": 6 / 8, "dice_er": 2 / 4, "iou_mito": 3 / 5, "iou_er": 1 / 3}
    expected |= {"dice": (6 / 8 + 2 / 4) / 2, "iou": (3 / 5 + 1 / 3) / 2}
    assert class_scores(counts, NAMES) == pytest.approx(expected)


CLASS_IDS = st.integers(UNKNOWN, 3)


@given(SHAPES.flatmap(lambda s: st.tuples(*[arrays(np.int64, s, elements=CLASS_IDS)] * 2)))
def test_dice_and_iou_equal_monai(pair):
    """MONAI leaves classes without truth out, too, and takes voxels without a class."""
    truth, found = pair[0], np.maximum(pair[1], 0)
    one_hot = [
        torch.from_numpy((np.arange(4)[:, None, None, None] == labels) & (truth >= 0))[None].float()
        for labels in (found, truth)
    ]
    counts = class_counts(truth, found, 4)
    for ours, theirs in ((counts.dice, compute_dice), (counts.iou, compute_iou)):
        np.testing.assert_allclose(ours, theirs(*one_hot)[0], rtol=1e-6)


@given(SHAPES.flatmap(lambda s: arrays(np.int64, s, elements=CLASS_IDS)))
def test_a_perfect_prediction_scores_one(truth):
    scores = class_scores(class_counts(truth, np.maximum(truth, 0), 4), NAMES)
    assert set(scores.values()) <= {1.0}
    assert len(scores) == (2 + 2 * len(there) if (there := set(truth[truth > 0])) else 0)


def test_renamed_classes_score_under_their_new_names():
    rng = np.random.default_rng(0)
    truth, found = rng.integers(0, 4, (2, 5, 6, 7))
    before = class_counts(truth, found, 4).dice
    new = np.array([0, 3, 1, 2])
    np.testing.assert_array_equal(class_counts(new[truth], new[found], 4).dice[new], before)


def test_counts_of_volumes_add_up_to_those_of_both_together():
    rng = np.random.default_rng(0)
    truth, found = rng.integers(0, 4, (2, 6, 6, 7))
    parts = [class_counts(truth[part], found[part], 4) for part in (slice(2), slice(2, 6))]
    for ours, whole in zip(
        vars(parts[0] + parts[1]).values(),
        vars(class_counts(truth, found, 4)).values(),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, whole)


@pytest.mark.parametrize(
    ("truth", "found", "message"),
    [
        ([0, 4], [0, 1], "below num_classes 4, got 4"),
        ([0, 1], [0, 4], "got 4"),
        ([0], [0, 1], "shape"),
    ],
)
def test_class_ids_beyond_the_classes_are_refused(truth, found, message):
    with pytest.raises(ValueError, match=message):
        class_counts(np.array(truth), np.array(found), 4)
