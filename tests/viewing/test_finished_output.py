import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from custom.errors import InputError
from custom.outputs.images import MARKER
from custom.viewing.finished_output import find_outputs
from custom.viewing.layers import layers_of
from custom.zarr_metadata import update_group
from tests.viewing import planted_output


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """The planted output."""
    return planted_output.write(tmp_path)


def found_names(output: Path, **given: Any) -> list[str]:
    (found,) = find_outputs([str(output)], "nowhere", **given)
    return [layer.name for layer in layers_of(found)]


@pytest.mark.parametrize("given", ["path", "folder", "id"])
def test_an_output_is_named_by_path_folder_or_id(output: Path, given: str) -> None:
    words = {"path": str(output), "folder": str(output.parent), "id": planted_output.ID}
    (found,) = find_outputs([words[given]], str(output.parent))
    assert found.path == output
    assert found.id == planted_output.ID


def test_all_of_a_folder_are_shown_and_each_once(output: Path) -> None:
    shutil.copytree(output, output.with_name("a.zarr"))
    shutil.copytree(output, output.with_name(".half.zarr.part"))
    found = find_outputs([], str(output.parent))
    assert [one.id for one in found] == ["a", "planted"]
    assert len(find_outputs([str(output.parent), str(output)], "")) == 2


def test_without_a_datalist_there_are_the_predictions_alone(output: Path) -> None:
    assert found_names(output) == ["affinities", "segmentation"]


def test_raw_and_truth_may_be_given_by_path(output: Path) -> None:
    data = output.parents[1] / "data.zarr"
    assert found_names(output, raw=str(data / "raw")) == ["raw", "affinities", "segmentation"]
    all_names = ["raw", "affinities", "segmentation", "truth", "errors", "error sites"]
    given = {"raw": str(data / "raw"), "truth": str(data / "labels" / "cells")}
    assert found_names(output, **given) == all_names


def test_truth_alone_takes_its_place_from_the_segmentation(output: Path) -> None:
    truth = str(output.parents[1] / "data.zarr" / "labels" / "cells")
    names = found_names(output, truth=truth)
    assert names == ["affinities", "segmentation", "truth", "errors", "error sites"]


@pytest.mark.parametrize("kept", ["absolute", "relative to the folder above"])
def test_the_datalist_of_the_run_is_known_from_its_record(output: Path, kept: str) -> None:
    datalist = output.parents[1] / "datalist.json"
    path = str(datalist) if kept == "absolute" else "datalist.json"
    write_record(output, path)
    assert "raw" in found_names(output)
    datalist.unlink()
    assert found_names(output) == ["affinities", "segmentation"]


def write_record(output: Path, datalist: str) -> None:
    """What inference leaves."""
    runs = output.parent / "runs"
    runs.mkdir()
    record = {"values": {"datalist": datalist}, "split": {"test": [{"id": planted_output.ID}]}}
    (runs / "inference_20260101T000000.json").write_text(json.dumps(record))


def test_what_cannot_be_shown_ends_in_a_sentence(output: Path, tmp_path: Path) -> None:
    folder = output.parent
    with pytest.raises(InputError, match=r"no output 'plantde'.*did you mean 'planted'"):
        find_outputs(["plantde"], str(folder))
    with pytest.raises(InputError, match="is not an output of inference"):
        find_outputs([str(tmp_path / "data.zarr")], "")
    with pytest.raises(InputError, match="holds no output of inference; run inference first"):
        find_outputs([str(tmp_path)], "")
    with pytest.raises(InputError, match="neither a path nor an id"):
        find_outputs([], str(tmp_path / "missing"))


def test_an_unfinished_output_is_refused(output: Path) -> None:
    update_group(output, "0.4", {}, {MARKER: {"complete": False}})
    with pytest.raises(InputError, match="is not finished; run the same inference again"):
        find_outputs([str(output)], "")
    update_group(output, "0.4", {}, {MARKER: "0.1.0"})  # of versions before this mark
    shutil.rmtree(output / "labels")
    with pytest.raises(InputError, match="has no labels/segmentation"):
        find_outputs([str(output)], "")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"raw": None}, "has no 'raw'"),
        ({"raw": "gone.zarr/raw"}, "gone.zarr/raw' does not exist"),
        ({"labels": "gone.h5/labels"}, "does not exist"),
        ({"id": "other"}, "has no entry 'planted'"),
    ],
)
def test_a_datalist_that_does_not_fit_ends_in_a_sentence(
    output: Path, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    datalist = planted_output.write_datalist(tmp_path, **changes)
    with pytest.raises(InputError, match=sentence):
        find_outputs([str(output)], "", str(datalist))
