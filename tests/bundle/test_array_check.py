"""What a run says of its arrays before any work, and what it leaves of itself."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from custom.array_check import check_arrays
from custom.array_report import ArrayReport
from custom.config_values import parser_of
from custom.datasets import CropDataset
from custom.training_check import amp_type, batch_of, training_memory
from tests.bundle import overlays, tiny
from tests.bundle.test_bad_input import datalist, refused, says, write_datalist

pytestmark = pytest.mark.slow


def config(name: str, folder: Path, **changes: Any) -> dict[str, Any]:
    """The merged configuration of a tiny run."""
    parser = ConfigParser()
    parser.read_config(str(tiny.CONFIGS / f"{tiny.CONFIG_OF[name]}.json"))
    parser.update({**tiny.settings(name, folder), "bundle_root": str(tiny.BUNDLE), **changes})
    parser.parse(True)
    return dict(parser.get(""))


def checked(name: str, folder: Path, **changes: Any) -> ArrayReport:
    return check_arrays(config(name, folder, **changes), name)


def sentence(name: str, folder: Path, **changes: Any) -> str:
    """What a check refuses; no file changes."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    found = tiny.mistake(lambda: checked(name, folder, **changes) and None)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    return found


@pytest.mark.parametrize("name", tiny.RUNS)
def test_a_check_finds_nothing_wrong_with_a_finished_project_and_writes_nothing(
    finished: Path, name: str
) -> None:
    before = tiny.files(finished)
    report = checked(name, finished)
    assert tiny.files(finished) == before
    sections = {
        "preprocessing": ["training", "validation"],
        "training": ["training", "validation"],
        "inference": ["test"],
        "evaluating": ["test"],
    }
    assert list(report.split) == sections[name]
    for part in report.split.values():
        assert [set(volume) for volume in part] == [{"id", "offset", "shape"}]


def test_the_synonym_is_checked_as_the_run_is_and_other_runs_are_not(finished: Path) -> None:
    found = config("training", finished)
    assert check_arrays(found, "run") == check_arrays(found, "training")
    assert check_arrays(found, "initialize") == ArrayReport({})


def no_cache(folder: Path) -> None:
    shutil.rmtree(folder / "cache")


def unfinished(folder: Path) -> None:
    (folder / "cache" / "volume_000001_metadata.json").rename(
        folder / "cache" / "volume_000001_progress.json"
    )
    path = folder / "cache" / "volume_000001_progress.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps({"format": found["format"], "request": found, "written": {}}))


def no_validation(folder: Path) -> None:
    for path in list((folder / "cache").glob("volume_000001*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def no_model(folder: Path) -> None:
    shutil.rmtree(folder / "model")


def no_raw(folder: Path) -> None:
    content = datalist(folder)
    for section in ("training", "test"):
        content[section][0]["raw"] = "absent.zarr/raw"
    write_datalist(folder, content)


def no_section(folder: Path) -> None:
    write_datalist(folder, {**datalist(folder), "test": [], "training": []})


def overlapping(folder: Path) -> None:
    content = datalist(folder)
    content["training"][0]["roi"]["shape"][1] = 46
    write_datalist(folder, content)


def no_segmentation(folder: Path) -> None:
    shutil.rmtree(folder / "output" / "synthetic.zarr")


def strange_output(folder: Path) -> None:
    shutil.rmtree(folder / "output" / "synthetic.zarr")
    (folder / "output" / "synthetic.zarr").mkdir()


def nothing(folder: Path) -> None:
    """The mistake is in the configuration."""


@pytest.mark.parametrize(
    ("name", "change", "changes", "words"),
    [
        ("training", no_cache, {}, ["cache_dir", "no training volumes", "run preprocessing"]),
        ("training", unfinished, {}, ["'synthetic-validation'", "unfinished"]),
        ("training", no_validation, {}, ["no validation volumes", "run preprocessing"]),
        ("training", nothing, {"features#window": 128}, ["window (64, not 128)"]),
        ("training", nothing, {"features#pixels_per_voxel": 2.0}, ["pixels_per_voxel"]),
        ("training", nothing, {"features#dtype": "int8"}, ["dtype (float16, not int8)"]),
        ("training", nothing, {"features#planes": ["xy"]}, ["planes ([xy, xz, yz], not [xy])"]),
        ("training", nothing, {"features#pca": 4}, ["pca (None, not 4)"]),
        ("training", nothing, {"features#windw": 64}, ["'windw'", "did you mean 'window'"]),
        ("training", nothing, {"token_channels": 384}, ["token_channels is 384", "16 channels"]),
        ("training", nothing, {"crop_size": [16, 16, 48]}, ["crop_size", "[24, 35, 32]"]),
        ("training", nothing, {"crop_size": [16, 4, 16]}, ["affinity_offsets", "[0, 5, 0]"]),
        ("training", nothing, {"crop_size": [16, 0, 16]}, ["crop_size"]),
        ("training", nothing, {"batch_size": 0}, ["batch_size", "from 1 on"]),
        ("training", nothing, {"volume_indices": ["cube"]}, ["volume_indices", "'cube'"]),
        ("training", nothing, {"cached_targets": True}, ["cached_targets", "no targets"]),
        ("training", nothing, {"device": "cuda:77"}, ["'cuda:77'", "not available"]),
        (
            "training",
            nothing,
            {"network_def#network#out_channels": 7},
            ["[7, 16, 16, 16]", "14 channels", "out_channels"],
        ),
        (
            "training",
            nothing,
            {"network_def#network#in_channels": 1},
            ["crops of [16, 16, 16] with 3 channels", "in_channels"],
        ),
        ("training", no_raw, {"source": "raw"}, ["'synthetic-training'", "absent.zarr"]),
        ("training", overlapping, {"source": "raw"}, ["overlaps", "'synthetic-validation'"]),
        ("training", no_section, {"source": "raw"}, ["no entries in its section 'training'"]),
        (
            "training",
            nothing,
            {"source": "raw", "crop_size": [16, 16, 48]},
            ["crop_size [16, 16, 48]", "[24, 35, 32]"],
        ),
        ("preprocessing", no_raw, {}, ["'synthetic-training'", "absent.zarr"]),
        ("preprocessing", overlapping, {}, ["overlaps", "'synthetic-validation'"]),
        ("preprocessing", nothing, {"features#window": 128}, ["window (64, not 128)"]),
        ("preprocessing", nothing, {"sections": ["training"]}, ["section 'validation'"]),
        ("preprocessing", nothing, {"compression": "zip"}, ["compression", "'zip'"]),
        ("inference", no_model, {}, ["no trained model", "run training"]),
        ("inference", no_raw, {}, ["raw", "absent.zarr", "does not exist"]),
        ("inference", no_section, {}, ["no entries in its section 'test'"]),
        ("inference", nothing, {"section": "tset"}, ["no section 'tset'", "'test'"]),
        ("inference", nothing, {"region": "all"}, ["region", "'all'"]),
        ("inference", nothing, {"features#window": 128}, ["window (64, not 128)", "model"]),
        ("inference", nothing, {"unet_norm": "instance"}, ["another network", "unet_norm"]),
        ("inference", nothing, {"affinity_offsets": [[1, 0, 0]]}, ["affinity_offsets", "overlay"]),
        ("inference", nothing, {"output_type": "affinities"}, ["output_type", "overlay"]),
        ("inference", no_cache, {"source": "cache"}, ["cache_dir", "no test volumes"]),
        ("inference", strange_output, {}, ["synthetic.zarr", "not a result of inference"]),
        ("evaluating", no_segmentation, {}, ["no segmentation of entry 'synthetic'"]),
        ("evaluating", no_raw, {}, ["raw", "absent.zarr", "does not exist"]),
        ("evaluating", no_section, {}, ["no entries in its section 'test'"]),
    ],
)
def test_a_mistake_in_the_arrays_is_said_before_any_work(
    project: Path, name: str, change: Callable[[Path], None], changes: dict[str, Any],
    words: list[str],
) -> None:  # fmt: skip
    change(project)
    says(sentence(name, project, **changes), words)


# --- room ---


@pytest.mark.parametrize(
    ("name", "key", "folder"),
    [("training", "model_dir", "model"), ("inference", "output_dir", "output")],
)
def test_a_disk_that_is_nearly_full_is_said_with_numbers_before_anything_is_written(
    project: Path, name: str, key: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(project / folder)
    if name == "training":
        shutil.rmtree(project / "eval")
    needed = checked(name, project).disk[key]
    monkeypatch.setattr("shutil.disk_usage", lambda _: Mock(free=needed - 1))
    says(refused(name, project), [f"{key} '{project / folder}' needs", "kB left", "make room"])
    monkeypatch.setattr("shutil.disk_usage", lambda _: Mock(free=needed))
    checked(name, project)


def test_checkpoints_take_no_more_than_was_said_and_not_much_less(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = sum(path.stat().st_size for path in (project / "model").iterdir())
    shutil.rmtree(project / "model")
    said = checked("training", project).disk["model_dir"]
    names = 100_000  # of a small network, headers of the files and model.json are most of it
    assert said / 2 < there < said / 2 + names


def test_results_take_about_what_was_said(finished: Path) -> None:
    folder = finished / "output" / "synthetic.zarr"
    taken = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert 0.3 < taken / checked("inference", finished).disk["output_dir"] < 1.3


def test_memory_far_beyond_the_free_one_is_refused_and_a_little_beyond_is_said(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    needed = checked("training", project).memory
    assert needed is not None
    monkeypatch.setattr("custom.array_report.free_memory", lambda _: needed // 3)
    says(
        sentence("training", project),
        ["crop_size [16, 16, 16]", "batch_size 1", "(estimated)", "cpu has", "checkpointing"],
    )
    monkeypatch.setattr("custom.array_report.free_memory", lambda _: int(needed / 1.5))
    checked("training", project)
    assert "which may not do" in caplog.text
    caplog.clear()
    monkeypatch.setattr("custom.array_report.free_memory", lambda _: needed)
    checked("training", project)
    assert "which may not do" not in caplog.text


def test_a_cache_that_lacks_an_entry_of_the_datalist_is_said(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = datalist(project)
    content["training"].append({**content["training"][0], "id": "new"})
    write_datalist(project, content)
    checked("training", project)
    says(caplog.text, ["training entry 'new'", "the cache lacks", "run preprocessing"])
    caplog.clear()
    checked("training", project, volume_indices=[0])
    assert "the cache lacks" not in caplog.text


# --- the estimate sees what the training sees ---


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch_size": 3, "feature_dtype": "float32"},
        {"token_channels": 0},
        {"context_factor": 2},
        {"crop_size": [12, 20, 16]},
    ],
    ids=str,
)
def test_the_batch_that_is_estimated_is_the_one_that_is_made(
    finished: Path, changes: dict[str, Any]
) -> None:
    parser = parser_of(config("training", finished, num_workers=0, **changes))
    dataset: CropDataset = parser.get_parsed_content("train#dataset")
    batch = next(iter(parser.get_parsed_content("train#dataloader")))
    prepared = parser.get_parsed_content("train#trainer").prepare_batch(batch, "cpu")
    taken = {"image": prepared[0], **prepared[3]}
    found = {name: (list(value.shape), value.dtype) for name, value in taken.items()}
    expected = batch_of(parser, dataset.volumes[0])
    assert found == {name: (list(shape), dtype) for name, (shape, dtype) in expected.items()}


def test_autocast_is_that_of_the_configuration(finished: Path) -> None:
    def found(**changes: Any) -> torch.dtype | None:
        return amp_type(parser_of(config("training", finished, **changes)))

    assert found(amp=False) is None
    assert found(amp=True) == torch.bfloat16


@pytest.mark.parametrize("name", [*overlays.EXPERIMENTS, *overlays.RECIPES])
def test_every_experiment_can_be_estimated(finished: Path, name: str) -> None:
    parser = ConfigParser()
    parser.read_config([str(tiny.CONFIGS / "train.json"), str(overlays.FOLDER / f"{name}.json")])
    parser.update({"bundle_root": str(tiny.BUNDLE), "device": "cpu"})
    parser.parse(True)
    own = parser_of(parser.get(""))
    memory = training_memory(own, batch_of(own, None))
    assert memory is not None
    assert memory.peak > memory.weights + memory.optimizer > 0


# --- the record ---


def records(folder: Path, name: str) -> list[dict[str, Any]]:
    place = {"preprocessing": "cache", "inference": "output"}.get(name, "eval")
    return [
        json.loads(path.read_text())
        for path in sorted((folder / place / "runs").glob(f"{name}_*.json"))
    ]


@pytest.mark.parametrize("name", tiny.RUNS)
def test_every_run_has_left_a_record(finished: Path, name: str) -> None:
    (record,) = records(finished, name)
    assert (record["run"], record["outcome"]) == (name, "completed")
    given = tiny.settings(name, finished)
    assert {key: record["overrides"][key] for key in given} == given
    assert record["values"]["datalist"] == str(finished / "data" / "datalist.json")
    assert record["split"] == checked(name, finished).to_json()["split"]


def test_a_training_that_is_taken_up_has_a_second_record(project: Path) -> None:
    tiny.run("training", project, epochs=3)
    assert [record["values"]["epochs"] for record in records(project, "training")] == [2, 3]


def test_a_check_is_cheap_and_reads_no_voxels(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> np.ndarray:
        raise AssertionError("read")

    monkeypatch.setattr("custom.volumes.Volume.read", read)
    monkeypatch.setattr("custom.features.cache.read_array", read)
    for name in tiny.RUNS:
        checked(name, project)
    checked("training", project, source="raw")
    logging.getLogger().debug("nothing was read")
