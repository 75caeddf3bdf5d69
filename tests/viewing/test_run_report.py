import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from scripts.report import report

from custom.errors import InputError
from custom.evaluation import SegmentationEvaluator
from custom.outputs.images import MARKER
from custom.viewing.finished_output import find_outputs
from custom.viewing.object_sizes import histogram, object_volumes_um3, size_chart
from custom.viewing.output_pictures import output_pictures
from custom.viewing.run_report import find_run, write_run_report
from custom.volumes import open_array
from custom.zarr_metadata import update_group
from tests.viewing import planted_output

ORANGE = (255, 170, 40)  # of splits, in error_map


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with output, scores, history and records; not to be changed."""
    folder = tmp_path_factory.mktemp("evaluated")
    write_evaluated(folder)
    history = [{"epoch": e, "train_loss": 1 / e, "voi": 2 / e} for e in (1, 2, 3)]
    (folder / "eval" / "history.json").write_text(json.dumps(history))
    for place, kind in (("output", "inference"), ("eval", "evaluating")):
        write_record(folder, place, kind)
    return folder


def write_evaluated(folder: Path) -> Path:
    """An output of an object that is cut in two, and its scores; the output."""
    cut = np.zeros(planted_output.SHAPE, np.uint64)
    cut[planted_output.OBJECT] = 70
    cut[:, :, 17:][cut[:, :, 17:] != 0] = 71
    output = planted_output.write(folder, segments=cut)
    set_threshold(output, 0.9)
    SegmentationEvaluator(
        folder / "datalist.json", "test", folder / "output", folder / "eval"
    ).run()
    return output


def set_threshold(output: Path, value: float) -> None:
    """What inference says of how it segmented."""
    made = {"segmentation": {"threshold": value}}
    update_group(output / "labels" / "segmentation", "0.4", {}, made)


def write_record(folder: Path, place: str, kind: str) -> None:
    """What a run leaves."""
    runs = folder / place / "runs"
    runs.mkdir(exist_ok=True)
    record = {
        "run": kind,
        "config_files": ["configs/a.json", "configs/b.json"],
        "overrides": {"datalist": "../my data/list.json", "amp": False},
        "values": {"datalist": str(folder / "datalist.json"), "amp": False, "imports": ["$x"]},
        "split": {"test": [{"id": planted_output.ID}]},
        "versions": {"custom": "0.1.0", "torch": "2.13"},
        "git": {"commit": "abc123", "dirty": True},
        "started": "2026-01-02T03:04:05+00:00",
        "seconds": 61.0,
        "outcome": "completed",
    }
    (runs / f"{kind}_20260102T030405Z.json").write_text(json.dumps(record))


def page_of(folder: Path, tmp_path: Path) -> str:
    path = tmp_path / "page.html"
    write_run_report(folder, path)
    return path.read_text()


@pytest.mark.parametrize("named", [".", "output", "eval", "output/planted.zarr"])
def test_a_report_has_all_there_is_whichever_folder_is_named(
    evaluated: Path, tmp_path: Path, named: str
) -> None:
    page = page_of(evaluated / named, tmp_path)
    for heading in (
        "Scores of planted",
        "Pictures of planted",
        "Sizes of objects of planted",
        "Worst splits of planted",
        "Training",
        "Runs",
        "Commands",
        "Settings of inference",
        "Versions",
    ):
        assert f"<h2>{heading}</h2>" in page, heading
    for plane in ("xy", "xz", "yz"):
        for name in ("raw", "affinities", "segmentation", "truth", "errors"):
            assert f'alt="{plane}: {name}"' in page
    assert "run inference --config_file" in page
    assert "--datalist &#x27;../my data/list.json&#x27; --amp false" in page
    assert "abc123 and changes" in page
    assert "$x" not in page


def test_a_report_needs_no_other_file(evaluated: Path, tmp_path: Path) -> None:
    page = page_of(evaluated, tmp_path)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert not re.search(r"url\(|@import|https?://|<script", page)


def test_planes_show_the_same_voxel_where_they_cross(evaluated: Path) -> None:
    given = [str(evaluated / "output" / "planted.zarr")]
    (found,) = find_outputs(given, "", str(evaluated / "datalist.json"))
    planes = {one.plane: one.images for one in output_pictures(found, evaluated / "eval")}
    _, height, _ = planted_output.LABELS_SHAPE
    for name in ("raw", "truth", "segmentation", "errors", "affinities"):
        xy, yz = planes["xy"][name], planes["yz"][name]
        column = xy[:, xy.shape[1] // 2]
        assert len(column) == height
        crossing = yz[yz.shape[0] // 2]
        np.testing.assert_array_equal(column[:: len(column) // height], crossing[:height], name)
    split = (planes["xy"]["errors"] == ORANGE).all(-1)
    begin = planted_output.LABELS_AT
    y, x = (planted_output.OBJECT[a].start - begin[a] for a in (1, 2))
    cut = 17 - planted_output.OBJECT[2].start
    rows, columns = np.nonzero(split)
    assert (rows.min(), rows.max() + 1) == (y, y + 5)
    assert (columns.min(), columns.max() + 1) == (x + cut, x + 12)


def test_an_output_without_a_datalist_is_shown_alone(tmp_path: Path) -> None:
    output = planted_output.write(tmp_path)
    page = page_of(output, tmp_path)
    assert 'alt="xy: segmentation"' in page
    assert 'alt="xy: affinities"' in page
    assert 'alt="xy: raw"' not in page
    assert "Raw is not known: give --datalist." in page


def test_an_unfinished_output_is_said_to_be_one(evaluated: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(evaluated, tmp_path / "copy")
    update_group(copy / "output" / "planted.zarr", "0.4", {}, {MARKER: {"complete": False}})
    page = page_of(copy, tmp_path)
    assert "planted: inference has not come to its end." in page
    assert "Pictures of planted" not in page


def test_scores_of_an_earlier_segmentation_or_truth_are_not_shown(tmp_path: Path) -> None:
    segments = write_evaluated(tmp_path) / "labels" / "segmentation" / "s0"
    labels = tmp_path / "data.zarr" / "labels" / "cells" / "s0"
    assert "VOI, bits" in page_of(tmp_path, tmp_path)
    for array, changed in ((labels, "truth"), (segments, "segmentation")):
        values = open_array(array)
        values.write(values.read().result() + 1).result()
        page = page_of(tmp_path, tmp_path)
        assert f"are of an earlier {changed}, so they are not shown. Evaluate again:" in page
        assert f"run evaluating --config_file configs/evaluate.json --datalist {tmp_path}" in page
        assert "VOI, bits" not in page and "Worst splits" not in page
        assert "Pictures of planted" in page


def test_a_project_that_was_moved_keeps_its_scores(tmp_path: Path) -> None:
    write_evaluated(tmp_path / "first")
    moved = (tmp_path / "first").rename(tmp_path / "moved")
    assert "VOI, bits" in page_of(moved, tmp_path)
    set_threshold(moved / "output" / "planted.zarr", 0.05)
    assert "are of an earlier segmentation" in page_of(moved, tmp_path)


def test_a_training_alone_has_its_curves(evaluated: Path, tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    shutil.copy(evaluated / "eval" / "history.json", tmp_path / "only")
    page = page_of(tmp_path / "only", tmp_path)
    assert page.count("<polyline") == 2
    assert "Pictures" not in page


def test_nothing_to_report_ends_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there is nothing to report in"):
        report(str(tmp_path))
    with pytest.raises(SystemExit, match="there is no folder"):
        report(str(tmp_path / "gone"))
    (tmp_path / "scores.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        find_run(tmp_path)
    assert not (tmp_path / "run_report.html").exists()


def test_the_command_writes_beside_what_it_reports(
    evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(evaluated, tmp_path / "copy")
    report(str(copy / "output" / "planted.zarr"), datalist=str(evaluated / "datalist.json"))
    assert str(copy / "output" / "run_report.html") in capsys.readouterr().out
    assert (copy / "output" / "run_report.html").stat().st_size > 5000


def test_sizes_are_volumes_and_bars_count_every_object(evaluated: Path) -> None:
    volumes = object_volumes_um3(evaluated / "output" / "planted.zarr")
    assert volumes is not None
    voxel = np.prod(planted_output.SIZE) / 1e9
    np.testing.assert_allclose(sorted(volumes), [4 * 5 * 4 * voxel, 4 * 5 * 8 * voxel])
    values = np.array([0.001, 0.01, 0.01, 1.0])
    counts, low, high = histogram(values, 3)
    assert (counts.tolist(), low, high) == ([1, 2, 1], -3, 0)
    assert histogram(np.array([5.0]), 4)[0].sum() == 1
    chart = size_chart(values)
    assert chart.count("<rect") == 3
    assert "4 objects" in chart
