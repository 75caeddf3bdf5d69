import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from custom.error_map import COLOURS
from custom.errors import InputError
from custom.panels import SlicePanel, draw_sections
from custom.pictures import MARGIN, UNKNOWN_GREY, Colours
from custom.planes import NORMAL_AXIS, PLANES
from custom.scores import ClassScore, Score, SegmentationScore
from custom.segmentation.segmenter import MutexWatershedSegmenter
from custom.shown_volume import columns, shown_box, shown_volume
from custom.tensorboard import TensorBoard
from tests.events import read
from tests.test_scores import SEGMENTER, SHAPE, class_item, evaluator, item, predicted, truth


def panel(folder: Path) -> NDArray[np.uint8]:
    with Image.open(folder / "panel_0001.png") as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def test_a_panel_shows_the_first_volume_in_three_planes(tmp_path: Path) -> None:
    score = SegmentationScore(SEGMENTER, [{}])
    board = TensorBoard(str(tmp_path / "board"))
    engine: Any = evaluator(SlicePanel(str(tmp_path), board, score), score=score)
    first, second = item(truth(), predicted(truth())), item(truth(9), predicted(truth(9)))
    engine.run([[first], [second]])
    both = panel(tmp_path)
    assert min(both.shape[:2]) > 3 * min(SHAPE)
    assert len(np.unique(both.reshape(-1, 3), axis=0)) > 20
    engine.run([[first]])
    np.testing.assert_array_equal(both, panel(tmp_path))
    engine.run([[second]])
    assert (both != panel(tmp_path)).any()
    engine.state.trained_iterations = 7
    engine.run([[first]])
    events = read(tmp_path / "board" / "pictures")
    for name in ("validation", "validation_sections"):
        steps = [event.step for event in events.Images(name)]  # in any order within a second
        assert sorted(steps) == [0, 0, 0, 7]


def drawn(one: dict[str, Any], score: Score, size: int = 128) -> dict[str, Colours]:
    """Columns of an item that is batch and output in one."""
    return columns(shown_volume(one, one, size, 9), score)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_fewer_than_three_affinities_are_shown_too(channels: int) -> None:
    """One alone is grey, the colours of others that are missing are dark."""
    offsets = ((0, 1, 0), (0, 0, 1), (1, 0, 0), (0, 0, 3))[:channels]
    score = SegmentationScore(MutexWatershedSegmenter(offsets, max_link=3), [{}])
    one = item(truth(), torch.full((channels, *SHAPE), 0.8))
    score.update([one])
    found = drawn(one, score)
    name = "affinity 1" if channels == 1 else f"affinities 1-{min(3, channels)}"
    expected = {1: [204, 204, 204], 2: [204, 204, 0]}.get(channels, [204, 204, 204])
    assert found[name][1, 1, 1].tolist() == expected
    wanted = {1: [255, 255, 255], 2: [255, 255, 0]}.get(channels, [255, 255, 255])
    assert found[f"target {name}"][1, 1, 1].tolist() == wanted


def test_targets_that_do_not_count_are_grey_and_borders_dark() -> None:
    one = item(truth(cut=5), predicted(truth(cut=5)))
    one["mask"][0, :, 7] = False
    score = SegmentationScore(SEGMENTER, [{}])
    score.update([one])
    target = drawn(one, score)["target affinities 1-3"]  # z, y, x
    assert target[2, 3, 4].tolist() == [255, 255, 0]
    assert target[2, 6, 3].tolist() == [255, UNKNOWN_GREY, 255]
    assert target[2, 7, 3].tolist() == [UNKNOWN_GREY] * 3


def test_sections_are_painted_like_the_objects_that_they_cut() -> None:
    """Every section has segments of its own, and truth's colours all the same."""
    in_plane = MutexWatershedSegmenter(((0, 1, 0), (0, 0, 1)), bias=-0.5)
    score = SegmentationScore(in_plane, [{}], per_section=True)
    seen = item(truth(), predicted(truth())[1:3])
    score.update([seen])
    found = drawn(seen, score)
    np.testing.assert_array_equal(found["truth"], found["segmentation"])
    np.testing.assert_array_equal(found["errors"], found["raw"] // 2)


def test_a_planted_error_is_painted_where_it_is() -> None:
    """The border is predicted two voxels off, so a slab of one object joins the other."""
    score = SegmentationScore(SEGMENTER, [{}])
    one = item(truth(cut=5), predicted(truth(cut=7)))
    score.update([one])
    errors = drawn(one, score)["errors"]
    coloured = np.ptp(errors.astype(int), axis=-1) > 0
    expected = np.zeros(SHAPE, bool)
    expected[:, :, 5:7] = True
    np.testing.assert_array_equal(coloured, expected)
    assert set(map(tuple, errors[coloured])) == {COLOURS["split and merge"][1]}


def test_a_panel_of_classes_shows_truth_probability_classes_and_errors() -> None:
    labels = truth()  # class 1 left, class 2 right
    labels[:, :4] = -1
    one = class_item(labels, np.where(labels < 0, 0, labels))
    found = drawn(one, ClassScore(["background", "a", "b"]))
    unknown, known = (1, 2, 3), (1, 6, 3)
    assert found["not background"][unknown].tolist() == [102] * 3  # one minus 0.6
    assert found["not background"][known].tolist() == [229] * 3  # one minus 0.1
    np.testing.assert_array_equal(found["truth"][known], found["classes"][known])
    assert (found["truth"][unknown] != found["classes"][unknown]).any()
    np.testing.assert_array_equal(found["errors"], found["raw"] // 2)


# --- what is shown ---


def test_the_box_lies_in_the_middle_of_what_counts() -> None:
    counts = np.zeros((40, 50, 60), bool)
    counts[2:8, 10:50, 30:50] = True
    box = shown_box(counts, 20)
    assert [(s.start, s.stop) for s in box] == [(0, 20), (20, 40), (30, 50)]
    assert shown_box(np.zeros((4, 30, 5), bool), 20) == (slice(0, 4), slice(5, 25), slice(0, 5))


def test_pictures_of_a_large_volume_show_a_box_of_it() -> None:
    """What lies elsewhere changes nothing, and what is kept is no view of the volume."""
    labels = np.ones((20, 20, 36), np.int64)
    labels[:, :, 18:] = 2
    one = item(labels, predicted(labels))
    score = SegmentationScore(SEGMENTER, [{}])
    score.update([one])
    shown = shown_volume(one, one, 16, 4)
    before = columns(shown, score)
    assert before["raw"].shape == (16, 16, 16, 3)
    assert shown.prediction.shape == (4, 16, 16, 16)
    assert len(np.unique(shown.truth)) == 2
    one["pred"][:], one["label"][:] = 0, 0
    for name, colours in columns(shown, score).items():
        np.testing.assert_array_equal(colours, before[name])


@pytest.mark.parametrize("layout", ["tokens", "dense", "none"])
def test_features_of_a_planted_object_have_another_colour_where_it_is(layout: str) -> None:
    """Patches of 4 voxels; the object fills one corner of the middle slices."""
    size, given = 16, item(np.ones((16, 16, 16), np.int64), torch.zeros(4, 16, 16, 16))
    there = torch.zeros(size, size, size)
    there[4:12, 4:12, 8:16] = 1.0
    values = torch.stack([there, 0.5 - there, 0.1 * there])
    if layout == "dense":
        given["features"] = values
    elif layout == "tokens":
        coarse = values[:, 2::4, 2::4, 2::4]
        for plane in ("xy", "xz"):  # yz was not cached
            step = [4.0, 4.0, 4.0]
            given[f"tokens_{plane}"] = coarse.half()
            given[f"placement_{plane}"] = torch.tensor([[0.0] * 3, step])
    features = shown_volume(given, given, 128, 4).features
    if layout == "none":
        assert features == {}
        return
    assert [features[plane].shape for plane in PLANES] == [
        (1, 16, 16, 3), (16, 1, 16, 3), (16, 16, 1, 3)
    ]  # fmt: skip
    for plane, axis in NORMAL_AXIS.items():
        if layout == "tokens" and plane == "yz":
            assert not features[plane].any()
            continue
        inside = np.take(there.numpy() > 0, [8], axis=axis)
        inner, outer = (np.unique(features[plane][m], axis=0) for m in (inside, ~inside))
        assert len(inner) == len(outer) == 1 and (inner != outer).any()


# --- the files ---


def frames(content: bytes) -> list[NDArray[np.uint8]]:
    with Image.open(io.BytesIO(content)) as image:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]


@pytest.mark.parametrize(("depth", "expected"), [(1, 1), (6, 6), (48, 48), (50, 25)])
def test_an_animation_has_a_frame_for_every_section(depth: int, expected: int) -> None:
    """Of more than 48, every second; sections that look alike are there all the same."""
    labels = np.ones((depth, 16, 20), np.int64)
    one = item(labels, predicted(labels))
    one["image"][:] = 0
    last = depth - (2 if depth == 50 else 1)
    one["image"][0, last, 4:8, 3:9] = 1  # planted in the last one shown
    score = SegmentationScore(SEGMENTER, [{}])
    score.update([one])
    shown = shown_volume(one, one, 128, 4)
    found = frames(draw_sections(shown, columns(shown, score)))
    assert len(found) == expected
    raw = [frame[MARGIN:, :20].astype(int) for frame in found]
    box = (slice(4, 8), slice(3, 9))
    bright = [frame[box].mean() - frame[10:, 10:].mean() for frame in raw]
    assert bright[-1] > 100
    assert all(abs(b) < 2 for b in bright[:-1])


def test_old_pictures_go(tmp_path: Path) -> None:
    for name in ("panel_0000.png", "panel_9999.png", "panel_10000.png", "panel.png"):
        (tmp_path / name).touch()
    score = SegmentationScore(SEGMENTER, [{}])
    board = TensorBoard(str(tmp_path / "board"), pictures_kept=1)
    engine = evaluator(SlicePanel(str(tmp_path), board, score), score=score)
    engine.run([[item(truth(), predicted(truth()))]])
    kept = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert kept == {"panel.png", "panel_10000.png", "sections_0001.gif"}


def test_a_size_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="picture_size"):
        SlicePanel(str(tmp_path), TensorBoard(str(tmp_path)), SegmentationScore(SEGMENTER, [{}]), 3)
