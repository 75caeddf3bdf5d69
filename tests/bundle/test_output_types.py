"""The runs where the network predicts classes, affinities alone, or one section at a time."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from scripts.report import nearest_offsets, write_recipe_report

from custom.pipeline import load_pipeline
from custom.volumes import open_volume
from tests.bundle import tiny
from tests.bundle.overlays import FOLDER, content

pytestmark = pytest.mark.slow

TRAINING_KEYS = ("loss", "class_of_labels", "batch_size", "segmentation_grid")


def laid_over(name: str, run: str, **changes: Any) -> dict[str, Any]:
    """An overlay's keys as changes of a run, sizes made smaller."""
    found = {**content(name), **changes}
    return {k: v for k, v in found.items() if run == "training" or k not in TRAINING_KEYS}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def array(folder: Path, name: str) -> Any:
    return zarr.open_array(folder / "output" / "synthetic.zarr" / name / "s0", mode="r")


def copied(finished: Path, folder: Path) -> Path:
    """A project with data and cache, and nothing after them."""
    for name in ("data", "cache"):
        shutil.copytree(finished / name, folder / name)
    return folder


def report(folder: Path, overlay: str) -> str:
    """The report page of a project."""
    path = write_recipe_report(folder, "title", "", FOLDER / f"{overlay}.json", {}, [])
    return path.read_text()


# --- classes ---


@pytest.fixture(scope="module")
def classes(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of classes that has gone through all runs."""
    folder = copied(finished, tmp_path_factory.mktemp("classes"))
    tiny.run("training", folder, **laid_over("labels", "training"))
    tiny.run("inference", folder, **laid_over("labels", "inference", mirror=True))
    tiny.run("evaluating", folder)
    return folder


def test_the_best_model_of_classes_is_that_of_the_highest_dice(classes: Path) -> None:
    history = read_json(classes / "eval" / "history.json")
    for entry in history:
        assert set(entry) >= {"dice", "dice_foreground", "iou", "iou_foreground"}
        assert not {"voi", "adapted_rand"} & set(entry)
    described = read_json(classes / "model" / "model.json")
    assert described["validation"]["dice"] == max(entry["dice"] for entry in history) > 0
    assert described["predicted_classes"] == {
        "names": ["background", "foreground"],
        "ignore_label": None,
        "class_of_labels": "foreground",
    }
    assert described["segmentation"] == {}
    assert len(list((classes / "eval").glob("panel_*.png"))) == 2


def test_inference_writes_probabilities_and_class_ids(classes: Path) -> None:
    probabilities, ids = array(classes, "probabilities"), array(classes, "labels/segmentation")
    assert (probabilities.shape, probabilities.dtype) == ((2, 24, 19, 32), np.uint8)
    total = probabilities[:].astype(int).sum(axis=0)
    assert abs(total - 255).max() <= 1
    differ = probabilities[0] != probabilities[1]
    np.testing.assert_array_equal(ids[:][differ], probabilities[:].argmax(axis=0)[differ])
    assert ids.attrs["classes"]["names"] == ["background", "foreground"]
    assert not (classes / "output" / "synthetic.zarr" / "affinities").exists()


def test_the_pipeline_of_a_model_of_classes_gives_their_probabilities(classes: Path) -> None:
    raw = torch.randint(0, 255, (1, 1, 9, 12, 10), generator=torch.Generator().manual_seed(0))
    found = load_pipeline(classes / "model", (0, 255)).predict(raw)
    assert found.shape == (1, 2, 9, 12, 10)
    torch.testing.assert_close(found.sum(1), torch.ones(1, 9, 12, 10), rtol=0, atol=1e-5)


def test_evaluating_scores_classes_by_what_was_predicted(classes: Path) -> None:
    (entry,) = read_json(classes / "eval" / "scores.json")["entries"]
    assert set(entry) == {"id", "dice", "dice_foreground", "iou", "iou_foreground", "voxels"}
    found = array(classes, "labels/segmentation")[:] == 1
    datalist = read_json(classes / "data" / "datalist.json")["test"][0]
    truth = open_volume(str(classes / "data" / datalist["labels"]))
    true = truth.read(truth.metadata.roi)[:, 45:] != 0
    assert entry["voxels"] == true.size
    assert entry["dice"] == pytest.approx(2 * (found & true).sum() / (found.sum() + true.sum()))


def test_the_report_of_classes_shows_their_scores_and_curves(classes: Path) -> None:
    page = report(classes, "labels")
    for text in ("Dice of foreground", "IoU of foreground", "Dice and IoU on the validation"):
        assert text in page
    assert "VOI" not in page


def test_a_model_of_classes_is_refused_where_another_output_is_asked_for(classes: Path) -> None:
    affinities = tiny.mistake(partial(tiny.run, "inference", classes))
    assert "trained with output_type 'labels', the config has 'affinities_lsds'" in affinities
    three = laid_over("labels", "inference", num_classes=3)
    assert "num_classes 2, the config has 3" in tiny.mistake(
        partial(tiny.run, "inference", classes, **three)
    )
    asked = {"write_lsds": True, **laid_over("labels", "inference")}
    assert "write_lsds has no meaning for output_type 'labels'" in tiny.mistake(
        partial(tiny.run, "inference", classes, **asked)
    )


def test_training_of_classes_is_not_taken_up_for_something_else(classes: Path) -> None:
    """As many channels: two affinities."""
    changes = {"output_type": "affinities", "affinity_offsets": [[0, 1, 0], [0, 0, 1]]}
    sentence = tiny.mistake(partial(tiny.run, "training", classes, **changes))
    assert "output_type" in sentence


def test_ids_that_are_no_classes_end_training_in_one_sentence(
    finished: Path, tmp_path: Path
) -> None:
    folder = copied(finished, tmp_path)
    changes = laid_over("labels", "training", class_of_labels="ids", num_classes=3)
    sentence = tiny.mistake(partial(tiny.run, "training", folder, **changes))
    assert "num_classes 3" in sentence and "class_of_labels" in sentence


# --- sections ---

SECTIONS = {
    "affinity_offsets": [[0, 1, 0], [0, 0, 1], [0, 5, 0]],
    "crop_size": [1, 16, 16],
    "batch_size": 2,
    "segmentation_grid": [{"min_size": 0, "threshold": t} for t in (None, 0.8)],
}


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of sections that has gone through all runs."""
    folder = tmp_path_factory.mktemp("sections")
    tiny.write_data(folder)
    tiny.run("preprocessing", folder, **{"features#planes": ["xy"]})
    for run in ("training", "inference"):
        tiny.run(run, folder, **laid_over("two_dimensions", run, **SECTIONS, mirror=True))
    tiny.run("evaluating", folder)
    return folder


def test_a_model_of_sections_predicts_affinities_and_lsds_of_the_plane(sections: Path) -> None:
    described = read_json(sections / "model" / "model.json")
    assert described["dimensions"] == 2
    assert described["channels"] == {"affinities": [0, 3], "lsds": [3, 9]}
    assert 0 < described["validation"]["voi"] < 20


def test_no_segment_has_voxels_in_two_sections(sections: Path) -> None:
    segments = array(sections, "labels/segmentation")
    assert segments.attrs["dimensions"] == 2
    ids = [set(np.unique(section[section > 0])) for section in segments[:]]
    assert sum(map(len, ids)) == len(set.union(*ids)) >= len(ids)


def test_evaluating_compares_section_by_section(sections: Path) -> None:
    (entry,) = read_json(sections / "eval" / "scores.json")["entries"]
    datalist = read_json(sections / "data" / "datalist.json")["test"][0]
    truth = open_volume(str(sections / "data" / datalist["labels"]))
    true = truth.read(truth.metadata.roi)[:, 45:]
    pieces = sum(len(set(section[section > 0])) for section in true)
    assert entry["truth_objects"] == pieces > len(np.unique(true))
    assert 0 < entry["voi"] < 20
    assert "adapted Rand error" in report(sections, "two_dimensions")


# --- affinities alone ---


def test_affinities_alone_go_through_all_runs(finished: Path, tmp_path: Path) -> None:
    folder = copied(finished, tmp_path)
    few = {"affinity_offsets": [[0, 1, 0], [0, 0, 1]]}  # two, for pictures of fewer than three
    for run in ("training", "inference"):
        tiny.run(run, folder, **laid_over("affinities", run, **few))
    tiny.run("evaluating", folder)
    described = read_json(folder / "model" / "model.json")
    assert described["channels"] == {"affinities": [0, 2], "lsds": [2, 2]}
    assert array(folder, "affinities").shape == (2, 24, 19, 32)
    (entry,) = read_json(folder / "eval" / "scores.json")["entries"]
    assert entry["voi"] > 0
    assert "VOI, bits" in report(folder, "affinities")


@pytest.mark.parametrize(
    ("offsets", "shown"),
    [
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 3]], {0: 0, 1: 1, 2: 2}),
        ([[0, 0, -3], [0, 0, 1], [0, 9, 0], [0, 3, 1]], {1: 3, 2: 1}),
        ([[0, -1, 0]], {1: 0}),
    ],
)
def test_a_report_shows_the_nearest_neighbour_along_every_axis(
    offsets: list[list[int]], shown: dict[int, int]
) -> None:
    assert nearest_offsets(np.array(offsets)) == shown
