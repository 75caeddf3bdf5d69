from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from custom.panels import SlicePanel, draw_panel
from custom.scores import ClassScore, SegmentationScore
from custom.segmentation.segmenter import MutexWatershedSegmenter
from custom.tensorboard import TensorBoard
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
    events = EventAccumulator(str(tmp_path / "board" / "pictures"))
    events.Reload()
    assert [e.step for e in events.Images("validation")] == [0, 0, 0, 7]


def columns(sheet: NDArray[np.uint8], number: int) -> list[NDArray[np.uint8]]:
    """The pictures of the first row, below their names."""
    width = sheet.shape[1] // number
    return [sheet[16:220, i * width : (i + 1) * width - 4] for i in range(number)]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_fewer_than_three_affinities_are_shown_too(channels: int) -> None:
    """One alone is grey, the colours of others that are missing are dark."""
    offsets = ((0, 1, 0), (0, 0, 1), (1, 0, 0), (0, 0, 3))[:channels]
    score = SegmentationScore(MutexWatershedSegmenter(offsets, max_link=3), [{}])
    one = item(truth(), torch.full((channels, *SHAPE), 0.8))
    score.update([one])
    _, _, shown, _ = columns(draw_panel(one, score), 4)
    expected = {1: [204, 204, 204], 2: [204, 204, 0]}.get(channels, [204, 204, 204])
    assert shown[20, 20].tolist() == expected


def test_sections_are_painted_like_the_objects_that_they_cut() -> None:
    """Every section has segments of its own, and truth's colours all the same."""
    in_plane = MutexWatershedSegmenter(((0, 1, 0), (0, 0, 1)), bias=-0.5)
    score = SegmentationScore(in_plane, [{}], per_section=True)
    seen = item(truth(), predicted(truth())[1:3])
    score.update([seen])
    sheet = draw_panel(seen, score)
    width = sheet.shape[1] // 4
    true, found = sheet[:, width : 2 * width], sheet[:, 3 * width :]
    rows = [r for r in range(len(sheet)) if (true[r, 2:-4] != 255).all()]
    assert len(rows) > 100
    np.testing.assert_array_equal(true[rows, :-4], found[rows, :-4])


def test_a_panel_of_classes_shows_truth_probability_and_classes() -> None:
    labels = truth()  # class 1 left, class 2 right
    labels[:, :4] = -1
    one = class_item(labels, np.where(labels < 0, 0, labels))
    _, true, probability, found = columns(draw_panel(one, ClassScore(["background", "a", "b"])), 4)
    unknown, known = (10, 20), (150, 20)
    assert len(set(true[unknown].tolist())) == 1 and 0 < true[unknown][0] < 255
    assert probability[unknown].tolist() == [102] * 3  # one minus 0.6
    assert probability[known].tolist() == [229] * 3  # one minus 0.1
    np.testing.assert_array_equal(true[known], found[known])
    assert not found[unknown].any()
