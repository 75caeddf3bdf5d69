"""scripts.segment tune on affinities that inference left, without an inference."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scripts import segment

from custom.datalist import parse_datalist, place_entry
from custom.model_files import write_model
from custom.outputs.images import begin, finish
from custom.segmentation.segmenter import MutexWatershedSegmenter
from custom.targets.affinities import affinities
from custom.tuning import FOLDER
from custom.volumes import create_ome_zarr_array, open_array
from tests.bundle import tiny

OFFSETS: list[list[int]] = tiny.NETWORK["affinity_offsets"]  # type: ignore[assignment]
GRID = {"bias": [-0.9, -0.5], "threshold": [None, 0.5]}
GIVEN = {**GRID, "threshold": ["null", 0.5]}  # as Fire reads JSON
STORED = {"bias": -0.1, "quantile": 0.9}


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with noisy affinities of its validation volume, and a model."""
    folder = tmp_path_factory.mktemp("tune")
    tiny.write_data(folder)
    (entry,) = parse_datalist(folder / "data" / "datalist.json").section("validation")
    opened = place_entry(entry)
    labels, _ = opened.read_labels(opened.raw.metadata.roi)
    found, _ = affinities(labels, OFFSETS)  # type: ignore[arg-type]
    noise = np.random.default_rng(0).uniform(0, 0.3, found.shape)
    values = np.round(255 * np.abs(found - noise)).astype(np.uint8)
    store, size = folder / "output" / f"{entry.id}.zarr", opened.voxel_size_nm
    place: tuple[Any, ...] = (size, tuple(opened.raw.metadata.offset_nm))
    given = {"offsets": OFFSETS}
    begin(store)
    create_ome_zarr_array(
        store, "affinities", values.shape, np.uint8, "czyx", *place, (1, 16, 16, 16), given
    ).write(values).result()
    create_ome_zarr_array(
        store, "labels/segmentation", labels.shape, np.uint64, "zyx", *place, (16, 16, 16), {}
    ).write(labels.astype(np.uint64)).result()
    finish(store)
    write_model(folder / "model", {"w": torch.ones(2)}, {"segmentation": STORED}, {})
    return folder


@pytest.fixture
def project(predicted: Path, tmp_path: Path) -> Path:
    """A copy of one's own."""
    return Path(shutil.copytree(predicted, tmp_path / "project"))


def tune(folder: Path, grid: Any, overlay: str = "", **changes: Any) -> None:
    config = [str(tiny.CONFIGS / "inference.json")]
    config += [str(tiny.CONFIGS / "experiments" / f"{overlay}.json")] if overlay else []
    settings = {**tiny.settings("inference", folder), "bundle_root": str(tiny.BUNDLE), **changes}
    if overlay:
        del settings["segmenter#min_size"]
    segment.tune(grid, config_file=config, **settings)  # type: ignore[call-arg]


def described(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "model" / "model.json").read_text())
    return found


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "output" / FOLDER / "validation.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_best_setting_is_stored_where_inference_finds_it(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = described(project)
    tune(project, GIVEN)
    scores = [float(row["voi"]) * float(row["adapted_rand"]) for row in rows(project)]
    tried = [json.loads(row["settings"]) for row in rows(project)]
    assert [(t["bias"], t["threshold"]) for t in tried] == [
        (b, t) for b in GRID["bias"] for t in GRID["threshold"]
    ]
    assert {t["quantile"] for t in tried} == {STORED["quantile"]}, "what is stored counts"
    best = tried[int(np.argmin(scores))]
    assert len({round(score, 9) for score in scores}) > 1
    now = described(project)
    wanted = {**STORED, "bias": best["bias"], "threshold": best["threshold"]}
    assert now["segmentation"] == wanted
    assert now["segmentation_method"].endswith(".MutexWatershedSegmenter")
    assert now["sha256"] == before["sha256"]
    said = capsys.readouterr().out
    assert json.dumps(best["threshold"]) in said and f"instead of {json.dumps(STORED)}" in said
    page = (project / "output" / FOLDER / "validation.html").read_text()
    assert page.count("<circle") == len(scores) + 1 and 'class="chosen"' in page


def test_a_second_scan_goes_on_and_makes_fragments_once_where_settings_share_them(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[float] = []
    fragments: Callable[..., Any] = MutexWatershedSegmenter.fragments

    def counted(method: Any, *arguments: Any) -> Any:
        made.append(method.bias)
        return fragments(method, *arguments)

    monkeypatch.setattr(MutexWatershedSegmenter, "fragments", counted)
    tune(project, {"bias": [-0.5], "threshold": [None, 0.5]})
    assert made == [-0.5]
    first = rows(project)
    tune(project, {"bias": [-0.5, -0.9], "threshold": [None, 0.5]})
    assert made == [-0.5, -0.9]
    assert rows(project)[:2] == first and len(rows(project)) == 4
    tune(project, GRID)
    assert made == [-0.5, -0.9] and len(rows(project)) == 4


def test_other_affinities_are_scored_anew(project: Path) -> None:
    tune(project, {"threshold": [0.5]})
    (entry,) = parse_datalist(project / "data" / "datalist.json").section("validation")
    (project / "output" / f"{entry.id}.zarr" / "affinities" / "s0" / "new").touch()
    tune(project, {"threshold": [0.5]})
    assert len(rows(project)) == 2


def labels_in_place(folder: Path) -> None:
    array = open_array(folder / "data" / "synthetic.zarr" / "labels" / "cells" / "s0")
    values = array.read().result()
    array.write(np.where(values > 1, 2, values)).result()


def a_mask(folder: Path) -> None:
    path = folder / "data" / "datalist.json"
    content = json.loads(path.read_text())
    content["validation"][0]["mask"] = content["validation"][0]["labels"]
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("change", [labels_in_place, a_mask])
def test_another_truth_is_compared_anew(project: Path, change: Callable[[Path], None]) -> None:
    tune(project, {"threshold": [0.5]})
    change(project)
    tune(project, {"threshold": [0.5]})
    assert len(rows(project)) == 2


@pytest.mark.parametrize(
    ("overlay", "grid", "name"),
    [
        ("components", {"threshold": [0.3, 0.6]}, "ComponentSegmenter"),
        ("seeded_watershed", {"scoring": ["mean"]}, "SeededWatershedSegmenter"),
    ],
)
def test_a_scan_of_another_method_replaces_what_was_stored(
    project: Path, overlay: str, grid: Any, name: str
) -> None:
    tune(project, grid, overlay)
    now = described(project)
    assert now["segmentation_method"].endswith(f".{name}")
    assert set(now["segmentation"]) == set(grid)


def sentence(folder: Path, grid: Any = None, **changes: Any) -> str:
    with pytest.raises(SystemExit) as refused:
        tune(folder, {"threshold": [0.5]} if grid is None else grid, **changes)
    assert not (folder / "output" / FOLDER).exists()
    return str(refused.value)


@pytest.mark.parametrize(
    ("grid", "changes", "words"),
    [
        (False, {}, "grid must have a list of values"),
        ({"threshold": 0.5}, {}, "grid must have a list of values"),
        ({}, {}, "grid must have a list of values"),
        ({"treshold": [0.5]}, {}, "did you mean 'threshold'"),
        ({"threshold": [0.5, 1.5]}, {}, "threshold of mutex watershed must be from 0 to 1"),
        ({"bias": ["low"]}, {}, "bias of mutex watershed must be a number"),
        (None, {"segmentation_settings#threshold": 0.3}, "would win over what a scan finds"),
        (None, {"section": "tset"}, "tset"),
        (None, {"section": "training"}, "run inference on its section of the datalist first"),
        (None, {"thershold": 3}, "thershold"),
        (None, {"affinity_offsets": OFFSETS[:3]}, "are of other offsets"),
        (None, {"model_dir": "nowhere"}, "'nowhere' holds no trained model"),
        (None, {"output_type": "labels"}, "output_type is 'labels'"),
    ],
)
def test_mistakes_end_in_a_sentence(
    predicted: Path, grid: Any, changes: dict[str, Any], words: str
) -> None:
    said = sentence(predicted, grid, **changes)
    assert words in said and "\n" not in said


def test_an_unfinished_inference_is_refused(project: Path) -> None:
    (entry,) = parse_datalist(project / "data" / "datalist.json").section("validation")
    begin(project / "output" / f"{entry.id}.zarr")
    assert "run inference on its section" in sentence(project)
