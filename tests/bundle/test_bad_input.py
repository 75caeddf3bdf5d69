"""A user's mistakes: one sentence that names file and field, and nothing half-written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from numpy.typing import NDArray
from scripts import cache

from custom.features.cache import open_cache
from tests.bundle import tiny

pytestmark = pytest.mark.slow

RAW = np.arange(np.prod(tiny.SHAPE), dtype=np.uint8).reshape(tiny.SHAPE)
SIZES = {"raw": [16, 16, 16], "labels": [16, 16, 16]}
Change = Callable[[Path, dict[str, Any]], None]


def datalist(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "data" / "datalist.json").read_text())
    return content


def write_datalist(folder: Path, content: dict[str, Any]) -> None:
    (folder / "data" / "datalist.json").write_text(json.dumps(content))


def refused(name: str, folder: Path, **changes: Any) -> str:
    """The sentence that a run ends with; all files are as they were."""
    before = tiny.files(folder)
    sentence = tiny.mistake(lambda: tiny.run(name, folder, **changes))
    assert tiny.files(folder) == before
    return sentence


def says(sentence: str, words: list[str]) -> None:
    """All words occur in the sentence."""
    assert [word for word in words if word not in sentence] == [], sentence


@pytest.fixture
def data(finished: Path, tmp_path: Path) -> Path:
    """A project with nothing but data."""
    shutil.copytree(finished / "data", tmp_path / "project" / "data")
    return tmp_path / "project"


# --- volumes and the datalist ---


def save(folder: Path, name: str, array: NDArray[Any]) -> str:
    np.save(folder / "data" / name, array)
    return name


def missing_raw(folder: Path, entry: dict[str, Any]) -> None:
    entry["raw"] = "absent.zarr/raw"


def missing_array(folder: Path, entry: dict[str, Any]) -> None:
    entry["raw"] = "synthetic.zarr/rwa"


def flat_raw(folder: Path, entry: dict[str, Any]) -> None:
    entry["raw"] = save(folder, "flat.npy", RAW[0])
    entry["voxel_size_nm"] = SIZES


def no_voxel_size(folder: Path, entry: dict[str, Any]) -> None:
    entry["raw"] = save(folder, "raw.npy", RAW)


def labels_elsewhere(folder: Path, entry: dict[str, Any]) -> None:
    path = folder / "data" / "synthetic.zarr" / "labels" / "cells" / ".zattrs"
    attributes = json.loads(path.read_text())
    for dataset in attributes["multiscales"][0]["datasets"]:
        dataset["coordinateTransformations"][1:] = [
            {"type": "translation", "translation": [16000.0, 0.0, 0.0]}
        ]
    path.write_text(json.dumps(attributes))


def float_labels(folder: Path, entry: dict[str, Any]) -> None:
    entry["labels"] = save(folder, "labels.npy", RAW.astype(np.float32))
    entry["voxel_size_nm"] = {"labels": SIZES["labels"]}


def zero_labels(folder: Path, entry: dict[str, Any]) -> None:
    entry["labels"] = save(folder, "labels.npy", np.zeros_like(RAW))
    entry["voxel_size_nm"] = {"labels": SIZES["labels"]}


def overlapping_parts(folder: Path, entry: dict[str, Any]) -> None:
    entry["roi"]["shape"][1] = 46


def roi_outside(folder: Path, entry: dict[str, Any]) -> None:
    entry["roi"]["offset"][0] = 20


def mistyped_key(folder: Path, entry: dict[str, Any]) -> None:
    entry["lables"] = entry.pop("labels")


def two_kinds_of_labels(folder: Path, entry: dict[str, Any]) -> None:
    entry["classes"] = {"cells": entry["labels"]}


def no_class(folder: Path, entry: dict[str, Any]) -> None:
    entry["classes"] = {"cells": None}
    del entry["labels"]


def classes_in_one_entry(folder: Path, entry: dict[str, Any]) -> None:
    entry["classes"] = {"cells": entry.pop("labels")}


def roi_before_the_labels(folder: Path, entry: dict[str, Any]) -> None:
    entry["roi"]["offset"][0] = -1


def roi_beyond_raw(folder: Path, entry: dict[str, Any]) -> None:
    entry["roi"] |= {"offset": [-1, 0, 0], "beyond_labels": True}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (missing_raw, ["'synthetic-training'", "raw", "absent.zarr", "does not exist"]),
        (missing_array, ["'synthetic-training'", "raw", "synthetic.zarr", "rwa"]),
        (flat_raw, ["'synthetic-training'", "raw", "flat.npy", "axes"]),
        (no_voxel_size, ["'synthetic-training'", "raw", "raw.npy", "voxel_size_nm"]),
        (labels_elsewhere, ["'synthetic-training'", "labels", "cells", "does not overlap raw"]),
        (float_labels, ["'synthetic-training'", "labels.npy", "float32", "integers"]),
        (zero_labels, ["'synthetic-training'", "labels.npy", "all 0"]),
        (overlapping_parts, ["'synthetic-training'", "'synthetic-validation'", "overlap"]),
        (roi_outside, ["'synthetic-training'", "roi", "sticks out"]),
        (mistyped_key, ["synthetic-training", "'lables'", "did you mean 'labels'"]),
        (two_kinds_of_labels, ["synthetic-training", "both 'labels' and 'classes'", "keep one"]),
        (no_class, ["synthetic-training", "classes gives no path", "leave 'classes' out"]),
        (classes_in_one_entry, ["'synthetic-training'", "classes cells", "same classes"]),
        (roi_before_the_labels, ["synthetic-training", "roi.offset", "from 0 on"]),
        (roi_beyond_raw, ["'synthetic-training'", "[-1, 0, 0]", "sticks out of raw"]),
    ],
)
def test_a_mistake_in_the_data_is_named_before_anything_is_cached(
    data: Path, change: Change, words: list[str]
) -> None:
    content = datalist(data)
    change(data, content["training"][0])
    write_datalist(data, content)
    says(refused("preprocessing", data), words)


@pytest.mark.parametrize("name", ["inference", "evaluating"])
def test_every_run_that_reads_the_datalist_names_the_missing_volume(
    project: Path, name: str
) -> None:
    content = datalist(project)
    missing_raw(project, content["test"][0])
    write_datalist(project, content)
    says(refused(name, project), ["'synthetic'", "raw", "absent.zarr", "does not exist"])


def test_a_missing_datalist_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "absent.json")
    says(refused("preprocessing", tmp_path, datalist=path), [path, "does not exist"])


# --- the backbone ---


@pytest.mark.parametrize("name", ["preprocessing", "inference"])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            GatedRepoError("gated", response=Mock()),
            ["owner/vit", "gated", "accept its licence", "hf auth login"],
        ),
        (
            RepositoryNotFoundError("no", response=Mock()),
            ["owner/vit", "neither", "check the spelling"],
        ),
        (ConnectionError("no route"), ["owner/vit", "out of reach", "local folder"]),
    ],
)
def test_a_backbone_that_cannot_be_had_is_explained(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    error: Exception,
    words: list[str],
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    shutil.rmtree(project / "cache")
    says(refused(name, project, backbone="owner/vit"), words)


@pytest.mark.parametrize("name", ["preprocessing", "training", "inference"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features#window": 4}, ["features.window", "at least 8 pixels", "got 4"]),
        ({"features#stride": 3}, ["features.stride", "patch size of 8", "1, 2, 4, 8", "got 3"]),
        ({"features#layers": [2]}, ["layers", "2", "1"]),
        ({"features#layers": []}, ["layers"]),
    ],
)
def test_features_that_the_backbone_cannot_give_are_explained(
    project: Path, name: str, changes: dict[str, Any], words: list[str]
) -> None:
    shutil.rmtree(project / ("cache" if name == "preprocessing" else "output"))
    if name == "training":
        shutil.rmtree(project / "model")
    says(refused(name, project, **changes), words)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("preprocessing", ["volume_000000.zarr", "dtype (float16, not int8)"]),
        ("training", ["volume_000000.zarr", "dtype (float16, not int8)"]),
        ("inference", ["model", "dtype", "float16", "int8"]),
    ],
)
def test_int8_for_what_was_made_as_float16_is_refused(
    project: Path, name: str, words: list[str]
) -> None:
    if name == "training":
        shutil.rmtree(project / "model")
    says(refused(name, project, **{"features#dtype": "int8"}), words)


@pytest.mark.parametrize("name", ["preprocessing", "inference"])
def test_a_folder_without_weights_is_named(project: Path, name: str) -> None:
    (project / "vit").mkdir()
    (project / "vit" / "config.json").write_text(json.dumps({"model_type": "dinov3_vit"}))
    shutil.rmtree(project / "cache")
    sentence = refused(name, project, backbone=str(project / "vit"))
    says(sentence, [str(project / "vit"), "no weights", "model.safetensors"])


# --- the cache ---


@pytest.mark.parametrize("name", ["preprocessing", "training"])
def test_a_cache_of_other_features_is_refused(project: Path, name: str) -> None:
    shutil.rmtree(project / "model")
    sentence = refused(name, project, **{"features#window": 128})
    says(sentence, ["volume_000000.zarr", "window (64, not 128)", "features.window"])


def test_a_cache_of_another_backbone_is_refused(project: Path) -> None:
    shutil.rmtree(project / "model")
    sentence = refused("training", project, **{"backbone#seed": 1})
    says(sentence, ["volume_000000.zarr", "digest", "change backbone"])


def test_an_unfinished_cache_is_refused(project: Path) -> None:
    shutil.rmtree(project / "model")
    shutil.rmtree(project / "cache")
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(RuntimeError, match="Failed to evaluate"),
    ):
        patch.setattr("custom.features.cache_writer.VolumeWriter.finish", power_cut)
        tiny.run("preprocessing", project)
    sentence = refused("training", project)
    says(sentence, [str(project / "cache"), "synthetic-training", "unfinished", "preprocessing"])


def power_cut(*_: object) -> None:
    raise RuntimeError("power cut")


def token_chunk(project: Path) -> Path:
    """A chunk of features of the training volume."""
    chunks = (project / "cache" / "volume_000000.zarr" / "tokens_xz" / "c").rglob("*")
    return next(path for path in sorted(chunks) if path.is_file())


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    return content[:-20] + bytes([content[-20] ^ 4]) + content[-19:]


@pytest.mark.parametrize("damage", [truncated, flipped])
def test_a_damaged_chunk_is_named_by_check_and_when_it_is_read(
    project: Path, damage: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    chunk = token_chunk(project)
    chunk.write_bytes(damage(chunk.read_bytes()))
    name = str(chunk.relative_to(chunk.parents[4]))
    with pytest.raises(SystemExit):
        cache.check(str(project / "cache"))
    says(capsys.readouterr().out, ["volume_000000 (synthetic-training), tokens_xz", name])
    shutil.rmtree(project / "model")
    sentence = tiny.mistake(lambda: tiny.run("training", project, crop_size=[24, 32, 32]))
    says(sentence, ["volume_000000.zarr", "'tokens_xz'", f"'{name}'", "run preprocessing again"])


def test_a_disk_without_room_is_said_before_anything_is_written(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Mock(free=100_000))
    says(refused("preprocessing", data), [str(data / "cache"), "100.0 kB left", "choose another"])


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_in_a_sentence_and_the_same_command_goes_on(
    data: Path,
) -> None:
    arguments = ["-c", LIMITED, "8000", *tiny.arguments("preprocessing", data)[2:]]
    done = tiny.command(arguments)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    says(last, ["error: cache file", "volume_000000.zarr", "File too large", "goes on from there"])
    tiny.run("preprocessing", data)
    assert len(open_cache(data / "cache")) == 2


# A bundle run whose process may write no file larger than so many bytes.
LIMITED = """
import resource, runpy, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
runpy.run_module("monai.bundle", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "limit", "file"),
    [
        ("training", "3000", "last.pt"),
        ("inference", "6000", "runs"),
        ("inference", "16000", "graph.db"),
    ],
)
def test_every_run_says_so_when_the_disk_fills_up(
    project: Path, name: str, limit: str, file: str
) -> None:
    shutil.rmtree(project / ("model" if name == "training" else "output"))
    done = tiny.command(["-c", LIMITED, limit, *tiny.arguments(name, project)[2:]])
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    says(last, ["error: ", file, "make room"])


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("preprocessing", "cache"),
        ("training", "model"),
        ("inference", "output"),
        ("evaluating", "eval"),
    ],
)
def test_a_folder_that_may_not_be_written_is_a_sentence(
    project: Path, name: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(project / folder)

    def read_only(path: object, *_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr("os.mkdir", read_only)
    before = tiny.files(project)
    sentence = tiny.mistake(lambda: tiny.run(name, project))
    says(sentence, ["Read-only file system", "allow writing there", str(project / folder)])
    assert tiny.files(project) == before


def test_no_cache_is_said(data: Path) -> None:
    says(refused("training", data), [str(data / "cache"), "run preprocessing"])


# --- training ---


def test_a_crop_larger_than_every_volume_is_refused(project: Path) -> None:
    shutil.rmtree(project / "model")
    sentence = refused("training", project, crop_size=[16, 16, 48])
    says(sentence, ["crop_size [16, 16, 48]", "[24, 35, 32]", "smaller"])


def test_other_token_channels_than_the_features_have_are_refused(project: Path) -> None:
    shutil.rmtree(project / "model")
    sentence = refused("training", project, token_channels=384)
    says(sentence, ["token_channels is 384", "16 channels", "synthetic-training"])


@pytest.mark.parametrize("name", ["training", "inference"])
def test_amp_as_a_word_is_refused(project: Path, name: str) -> None:
    says(refused(name, project, amp="false"), ["amp", "'false'"])


def test_a_damaged_checkpoint_is_named(project: Path) -> None:
    path = project / "model" / "last.pt"
    path.write_bytes(path.read_bytes()[:2000])
    says(refused("training", project, epochs=3), [str(path), "damaged", "model_dir"])


def test_a_checkpoint_that_is_something_else_is_named(project: Path) -> None:
    path = project / "model" / "last.pt"
    torch.save(torch.zeros(3), path)
    says(refused("training", project, epochs=3), [str(path), "not a checkpoint"])


def test_a_checkpoint_of_another_network_is_named(project: Path) -> None:
    path = project / "model" / "last.pt"
    sentence = refused("training", project, epochs=3, unet_channels=[4, 12])
    says(sentence, [str(path), "network", "another shape", "another model_dir"])
    assert len(sentence) < 600


def test_a_checkpoint_of_another_network_with_weights_that_fit_is_refused(project: Path) -> None:
    sentence = refused("training", project, epochs=3, unet_norm="instance")
    says(sentence, ['unet_norm ("instance", not "group")', "another model_dir"])


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"fusion": "maximum"}, ["fusion must be one of mean, weighted, concat", "maximum"]),
        ({"unet_norm": "layer"}, ["unet_norm", "layer", "batch_renorm"]),
        ({"unet_kernels": [3, 4]}, ["unet_kernels", "odd"]),
        ({"token_channels": 0, "fusion": "concat"}, ["without tokens", "fusion 'concat'"]),
        ({"token_channels": 0, "learned_upsampling_steps": 2}, ["learned_upsampling_steps is 2"]),
        ({"token_channels": 0, "feature_dtype": "float16"}, ["feature_dtype", "null"]),
        ({"checkpointing": "yes"}, ["'checkpointing' is 'yes'", "true or false"]),
    ],
    ids=lambda value: next(reversed(value)) if isinstance(value, dict) else "",
)
def test_network_settings_that_cannot_be_are_named(
    project: Path, changes: dict[str, Any], parts: list[str]
) -> None:
    shutil.rmtree(project / "model")
    says(refused("training", project, **changes), parts)


def test_a_crop_that_the_network_cannot_take_is_told_before_the_first_step(project: Path) -> None:
    shutil.rmtree(project / "model")
    bare = {
        "_target_": "monai.networks.nets.SegResNetDS",
        "in_channels": 3,
        "out_channels": 14,
        "init_filters": 4,
        "blocks_down": [1, 1, 1],
        "norm": "instance",
    }
    changes = {"network_def#network": bare, "crop_size": [16, 16, 14]}
    sentence = refused("training", project, **changes)
    says(sentence, ["crops of [16, 16, 14]", "divisible by [4, 4, 4]", "AnySize"])
    assert not (project / "model").exists()


def test_a_model_without_its_checkpoint_is_not_overwritten(project: Path) -> None:
    (project / "model" / "last.pt").unlink()
    before = (project / "model" / "model.pt").read_bytes()
    sentence = refused("training", project)
    says(sentence, [str(project / "model"), "model.pt", "last.pt", "another model_dir"])
    assert (project / "model" / "model.pt").read_bytes() == before


def test_crops_without_labels_are_told(project: Path) -> None:
    shutil.rmtree(project / "model")
    changes = {"train#dataset#min_labelled": 1.5}
    sentence = tiny.mistake(lambda: tiny.run("training", project, **changes))
    says(sentence, ["random crops of [16, 16, 16]", "150%", "min_labelled"])


# --- inference and evaluation ---


def test_a_model_of_other_features_is_refused(project: Path) -> None:
    sentence = refused("inference", project, **{"features#pixels_per_voxel": 2.0})
    says(sentence, [str(project / "model"), "pixels_per_voxel"])


def test_a_model_of_another_backbone_is_refused(project: Path) -> None:
    sentence = refused("inference", project, **{"backbone#seed": 1})
    says(sentence, [str(project / "model"), "digest"])


def test_a_model_of_other_offsets_is_refused(project: Path) -> None:
    offsets = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 6, 0]]
    sentence = refused("inference", project, affinity_offsets=offsets)
    says(
        sentence,
        [str(project / "model"), "affinity_offsets", "[0, 5, 0]", "[0, 6, 0]", "same overlay"],
    )


def test_a_model_of_another_network_is_refused(project: Path) -> None:
    sentence = refused("inference", project, unet_channels=[4, 12])
    says(
        sentence, [str(project / "model"), "another network", "unet_channels ([4, 12], not [4, 8])"]
    )
    sentence = refused("inference", project, unet_norm="instance")  # whose weights would fit
    says(sentence, [str(project / "model"), 'unet_norm ("instance", not "group")'])


def test_a_model_whose_weights_do_not_fit_is_refused(project: Path) -> None:
    path = project / "model" / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "config": {}}))
    sentence = refused("inference", project, unet_channels=[4, 12])
    says(sentence, [str(project / "model" / "model.pt"), "another network", "another shape"])
    assert len(sentence) < 600


@pytest.mark.parametrize("name", ["model.pt", "model.json"])
def test_a_folder_without_a_model_is_named(project: Path, name: str) -> None:
    (project / "model" / name).unlink()
    says(refused("inference", project), [str(project / "model"), "no trained model"])


def test_a_damaged_model_is_named(project: Path) -> None:
    (project / "model" / "model.json").write_text('{"features"')
    says(refused("inference", project), ["model.json", "not valid JSON"])
    (project / "model" / "model.json").write_text("{}")
    says(refused("inference", project), ["model.json", "'features'"])


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_something_else_at_the_place_of_the_result_is_kept(project: Path, kind: str) -> None:
    shutil.rmtree(project / "output")
    place = project / "output" / "synthetic.zarr"
    if kind == "folder":
        place.mkdir(parents=True)
        (place / "thesis.tex").write_text("years")
    else:
        place.parent.mkdir()
        place.write_text("years")
    says(refused("inference", project), [str(place), "not a result", "output_dir"])


def test_an_output_folder_that_is_a_file_is_refused(project: Path) -> None:
    shutil.rmtree(project / "output")
    (project / "output").write_text("years")
    says(refused("inference", project), [str(project / "output"), "is a file"])


def test_evaluating_before_inference_is_said(project: Path) -> None:
    shutil.rmtree(project / "output")
    sentence = refused("evaluating", project)
    says(sentence, ["'synthetic'", str(project / "output"), "run inference"])


# --- as a user sees it ---


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        pytest.param(
            "preprocessing",
            {"datalist": "/absent.json"},
            "/absent.json",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "training",
            {"train#dataset#min_labelled": 1.5, "num_workers": 1},
            "random crops of",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "training",
            {"augmentations#mild#1#prob": 1.5},
            "prob of RandShiftIntensityd must be a number from 0 to 1, got 1.5",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "training",
            {"augmentation": "@augmentations#strong", "augmentations#strong#0#radius": [-1]},
            "radius of RandMembranesd must be [low, high], whole numbers from 1 on",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "inference", {"model_dir": "/absent"}, "no trained model", marks=pytest.mark.slow
        ),
    ],
)
def test_a_mistake_ends_the_process_with_its_sentence_alone(
    project: Path, name: str, changes: dict[str, Any], words: str
) -> None:
    shutil.rmtree(project / "model")
    done = tiny.command(tiny.arguments(name, project, **changes))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and words in last
    assert done.stderr.count("error: ") == 1
    assert last.removeprefix("error: ") not in done.stdout
