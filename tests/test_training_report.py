import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from ignite.engine import Engine, Events
from PIL import Image
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from custom.history import History
from custom.panels import SlicePanel
from custom.run_settings import RunSettings
from custom.scores import VOI, SegmentationScore
from custom.step_timing import StepTiming
from custom.tensorboard import TensorBoard
from custom.training_report import TrainingReport
from tests.events import points, read
from tests.test_scores import SEGMENTER, evaluator, item, predicted, truth
from tests.test_step_timing import Batches, Clock

SCORES = {1: 1.5, 2: 0.5, 3: 0.75}
SPLIT = {"training": [{"id": "left", "offset": [0, 1, 2], "shape": [3, 4, 5]}], "validation": []}


def trained(
    folder: Path, epochs: int = 3, early: bool = False, skipped: int = 0, **stop: Any
) -> str:
    """The report of a training of three epochs of two steps, each validated."""
    clock, validation = Clock(), Engine(lambda engine, batch: None)

    def step(engine: Engine, batch: Any) -> dict[str, torch.Tensor]:
        clock.now += 8
        state: Any = engine.state
        state.step_info = {"skipped": float(state.iteration <= skipped)}
        return {"loss": torch.tensor(2.0, requires_grad=True)}

    def validate(engine: Engine) -> None:
        state: Any = validation.state
        state.epoch, score = engine.state.epoch, SCORES[engine.state.epoch]
        state.metrics = {"voi": score, "cremi": float("nan")}
        state.volume_scores = {"<right>": {"voi": score}, "far": {"voi": 2 * score, "dice": 0.25}}
        state.segmentation = {"bias": -0.1 * engine.state.epoch}

    trainer, board = Engine(step), TensorBoard(str(folder))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, validate)
    if early:
        trainer.add_event_handler(Events.EPOCH_COMPLETED(once=2), trainer.terminate)
    timing = StepTiming(clock)
    timing.attach(trainer)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.25)
    history = History(
        str(folder / "history.json"), torch.nn.Identity(), optimizer, board, validation
    )
    history.attach(trainer)
    path = folder / "report.html"
    changed = {"amp": False, "crop_size": [8, 8, 8]}
    RunSettings(board, {"amp": 0, "crop_size": "[8, 8, 8]"}, history, VOI).attach(trainer)
    report = TrainingReport(str(path), history, VOI, {"split": SPLIT}, changed, timing)
    if early:
        trainer.add_event_handler(Events.EPOCH_COMPLETED(once=2), trainer.terminate)
    report.attach(trainer)
    if stop:
        trainer.add_event_handler(Events.EPOCH_STARTED(once=2), trainer.terminate)
    trainer.run(Batches(clock, 2), max_epochs=epochs)
    return path.read_text()


class Rows(HTMLParser):
    """Cells of all rows of all tables, and texts of everything else."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.texts: list[str] = []
        self._in_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self._in_cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._in_cell:
            self.rows[-1][-1] += data


def test_a_report_has_scores_settings_data_speed_and_versions(tmp_path: Path) -> None:
    found = Rows(trained(tmp_path))
    assert {"0.500", "best VOI", "3 of 3"} <= set(found.texts)
    for row in (
        ["volume", "voi", "dice"],
        ["<right>", "0.500", ""],  # of epoch 2, the best
        ["far", "1.000", "0.250"],
        ["bias", "-0.2"],
        ["amp", "false"],
        ["crop_size", "[8, 8, 8]"],
        ["training", "left", "[0, 1, 2]", "[3, 4, 5]"],
        ["torch", torch.__version__],
    ):
        assert row in found.rows
    waited = 1 + 2 + 3 + 4 + 5 + 6
    assert f"{6 * 2 / (48 + waited):.2f}" in found.texts  # samples per second
    assert f"{waited / (48 + waited):.1%}" in found.texts
    assert not any("not come to its end" in text for text in found.texts)


def test_a_report_needs_no_other_file_and_no_network(tmp_path: Path) -> None:
    score, board = SegmentationScore(SEGMENTER, [{}]), TensorBoard(str(tmp_path / "board"))
    engine = evaluator(SlicePanel(str(tmp_path), board, score), score=score)
    engine.run([[item(truth(), predicted(truth()))]])
    page = trained(tmp_path)
    assert not re.search(r"(src|href)=.(?!data:)", page)
    assert "http" not in page.replace("http-equiv", "")
    contents = [base64.b64decode(found) for found in re.findall(r"base64,([^\"]*)", page)]
    assert contents == [
        (tmp_path / name).read_bytes() for name in ("panel_0001.png", "sections_0001.gif")
    ]
    for content in contents:
        with Image.open(io.BytesIO(content)) as image:
            darkest, brightest = image.convert("L").getextrema()
            assert darkest < 20 and brightest > 235


def test_a_training_that_early_stopping_has_ended_has_come_to_its_end(tmp_path: Path) -> None:
    found = Rows(trained(tmp_path, early=True))
    assert any("2 of 3" in text for text in found.texts)
    assert not any("not come to its end" in text for text in found.texts)


def test_a_training_that_was_stopped_has_a_report_that_says_so(tmp_path: Path) -> None:
    found = Rows(trained(tmp_path, stop=True))
    assert "1 of 3" in found.texts
    assert any("not come to its end" in text for text in found.texts)


def test_a_training_that_ended_early_has_come_to_its_end(tmp_path: Path) -> None:
    found = Rows(trained(tmp_path, early=True))
    assert "2 of 3" in found.texts
    assert not any("not come to its end" in text for text in found.texts)


def test_one_process_of_several_writes_it(tmp_path: Path) -> None:
    with (
        patch("custom.training_report.is_writer", return_value=False),
        pytest.raises(FileNotFoundError),
    ):
        trained(tmp_path)


def test_the_best_score_is_a_curve_and_settings_can_be_compared(tmp_path: Path) -> None:
    trained(tmp_path)
    assert points(tmp_path, "best/voi") == [(2, 1.5), (4, 0.5), (6, 0.5)]
    events = read(tmp_path)
    content = {
        tag: HParamsPluginData.FromString(events.SummaryMetadata(tag).plugin_data.content)
        for tag in (metadata.SESSION_START_INFO_TAG, metadata.EXPERIMENT_TAG)
    }
    given = content[metadata.SESSION_START_INFO_TAG].session_start_info.hparams
    assert given["amp"].number_value == 0
    assert given["crop_size"].string_value == "[8, 8, 8]"
    (metric,) = content[metadata.EXPERIMENT_TAG].experiment.metric_infos
    assert metric.name.tag == "best/voi"


def test_the_history_is_the_same_with_a_report(tmp_path: Path) -> None:
    trained(tmp_path)
    entries = json.loads((tmp_path / "history.json").read_text())
    assert [entry["voi"] for entry in entries] == list(SCORES.values())


@pytest.mark.parametrize("skipped", [0, 2])
def test_skipped_steps_are_a_chart_only_if_there_are_any(tmp_path: Path, skipped: int) -> None:
    assert ("Skipped steps" in trained(tmp_path, skipped=skipped)) == bool(skipped)
