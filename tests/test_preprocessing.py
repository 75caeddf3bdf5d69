import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from funlib.geometry.roi import Roi
from monai.bundle import ConfigParser

from custom import preprocessing, volume_making
from custom.datalist import SECTIONS
from custom.errors import InputError
from custom.features.cache import CachedVolume, open_cache
from custom.features.cache_lock import exclusive
from custom.features.cache_writer import VolumeWriter
from custom.features.extraction import extract_planes
from custom.features.settings import load_backbone_and_spec
from custom.planes import PLANES
from custom.preprocessing import Preprocessor

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
VIT = {
    "model_type": "dinov3_vit",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_register_tokens": 4,
    "patch_size": 8,
}
FEATURES = {"pixels_per_voxel": [1.0, 2.0, 1.5], "window": 32, "overlap": 8}
SHAPE = (24, 20, 22)
ROI = {"offset": [3, 2, 1], "shape": [18, 12, 9]}


def write_datalist(folder: Path, **changes: Any) -> Path:
    """Raw of 16 bits, labels of 64 that start inside it; one entry per section."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    raw = rng.integers(500, 3000, SHAPE, dtype=np.uint16)
    np.save(folder / "raw.npy", raw)
    np.save(folder / "grey.npy", rng.integers(0, 256, SHAPE, dtype=np.uint8))
    ids = np.array([0, 5, 2**40, 2**64 - 2], np.uint64)
    np.save(folder / "labels.npy", ids[rng.integers(0, 4, SHAPE)])
    np.save(folder / "mask.npy", rng.integers(0, 2, SHAPE, dtype=np.uint8))
    size = {"raw": [8, 4, 5.5], "labels": [8, 4, 5.5]}
    labelled = {"raw": "raw.npy", "labels": "labels.npy", "voxel_size_nm": size}
    datalist = {
        "name": "cubes",
        "training": [{"id": "a", **labelled, "mask": "mask.npy", "roi": ROI, **changes}],
        "validation": [
            {"id": "b", **labelled, "roi": {"offset": [21, 0, 0], "shape": [3, 20, 22]}}
        ],
        "test": [
            {
                "id": "c",
                "raw": "grey.npy",
                "voxel_size_nm": {"raw": [8, 4, 5.5]},
                "roi": {"offset": [0, 0, 4], "shape": [5, 6, 7]},
                "intensity_window": [10, 250],
            }
        ],
    }
    path = folder / "datalist.json"
    path.write_text(json.dumps(datalist))
    return path


def preprocessor(datalist: Path, cache_dir: Path, **changes: Any) -> Preprocessor:
    arguments: dict[str, Any] = {
        "backbone": VIT,
        "features": FEATURES,
        "sections": SECTIONS,
        "show_progress": False,
    }
    return Preprocessor(datalist, cache_dir, **{**arguments, **changes})


def arrays_of(cache_dir: Path) -> dict[str, np.ndarray]:
    """All arrays of a cache."""
    found = {}
    for folder in sorted(cache_dir.glob("volume_*.zarr")):
        for name, array in zarr.open_group(folder, mode="r").arrays():
            found[f"{folder.name}/{name}"] = array[:]
    return found


def assert_same_arrays(one: Path, other: Path) -> None:
    expected, found = arrays_of(one), arrays_of(other)
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_datalist(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(datalist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache_dir = tmp_path_factory.mktemp("finished") / "cache"
    preprocessor(datalist, cache_dir).run()
    return cache_dir


def test_a_cache_holds_the_features_raw_and_labels_of_every_entry(
    datalist: Path, finished: Path
) -> None:
    volumes = {volume.id: volume for volume in open_cache(finished)}
    assert [v.path.name for v in volumes.values()] == [f"volume_00000{i}.zarr" for i in range(3)]
    assert [v.section for v in volumes.values()] == ["training", "validation", "test"]
    assert [v.has_labels for v in volumes.values()] == [True, True, False]
    box = tuple(slice(o, o + s) for o, s in zip(ROI["offset"], ROI["shape"], strict=True))
    raw = np.load(datalist.parent / "raw.npy")
    volume = volumes["a"]
    whole = Roi((0, 0, 0), volume.shape)
    low, high = np.percentile(raw, (0.1, 99.9))
    assert volume.metadata["intensity_window"] == pytest.approx([low, high])
    expected = np.rint(np.clip((raw[box] - low) / (high - low), 0, 1) * 255)
    assert np.abs(volume.read_raw(whole) - expected).max() <= 1
    labels, mask = volume.read_labels(whole)
    np.testing.assert_array_equal(
        volume.label_ids()[labels], np.load(datalist.parent / "labels.npy")[box]
    )
    assert labels.max() == 3
    np.testing.assert_array_equal(mask, np.load(datalist.parent / "mask.npy")[box] != 0)


def test_uint8_raw_is_cached_unchanged(datalist: Path, finished: Path) -> None:
    (volume,) = open_cache(finished, "test")
    grey = np.load(datalist.parent / "grey.npy")[0:5, 0:6, 4:11]
    np.testing.assert_array_equal(volume.read_raw(Roi((0, 0, 0), (5, 6, 7))), grey)
    assert volume.metadata["intensity_window"] == [10, 250]
    assert volume.raw_window == (10, 250)


def test_rescaled_raw_has_its_window_at_0_and_255(finished: Path) -> None:
    assert open_cache(finished, "training")[0].raw_window == (0, 255)


def test_a_volume_knows_where_it_lies(finished: Path) -> None:
    assert open_cache(finished, "training")[0].offset_nm == (3 * 8, 2 * 4, 1 * 5.5)
    assert open_cache(finished, "test")[0].offset_nm == (0, 0, 4 * 5.5)


def test_cached_features_are_those_extracted_on_the_fly(datalist: Path, finished: Path) -> None:
    raw = np.load(datalist.parent / "raw.npy")
    backbone, spec = load_backbone_and_spec(VIT, FEATURES)
    volume = open_cache(finished, ids=["a"], spec=spec)[0]
    low, high = volume.metadata["intensity_window"]
    roi = Roi(ROI["offset"], ROI["shape"])
    fresh = extract_planes(
        lambda box: raw[box.to_slices()], SHAPE, roi, backbone, spec, (low, high)
    )
    for plane in PLANES:
        cached = volume.plane_grid(plane)
        torch.testing.assert_close(cached.values, fresh[plane].values, atol=2e-3, rtol=0)
        assert (cached.start, cached.step) == (fresh[plane].start, fresh[plane].step)


def test_metadata_tells_where_a_volume_comes_from(finished: Path) -> None:
    metadata = open_cache(finished, ids=["a"])[0].metadata
    assert metadata["entry"]["section"] == "training"
    assert metadata["roi"] == ROI
    assert metadata["voxel_size_nm"] == [8, 4, 5.5]
    assert metadata["volume_shape"] == list(SHAPE)
    assert metadata["backbone_seed"] == 0
    assert metadata["features"]["layers"] == [1]
    assert metadata["timing"]["windows"] == 18 * 2 + 12 * 1 + 9 * 2
    assert {"custom", "torch", "monai", "transformers"} <= metadata["versions"].keys()
    source = finished / metadata["entry"]["raw"]
    assert not os.path.isabs(metadata["entry"]["raw"])
    assert source.resolve().name == "raw.npy"


def test_a_finished_cache_is_kept_and_says_so(
    datalist: Path,
    finished: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(volume_making, "PlaneExtraction", None)
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.name != ".lock"}
    with caplog.at_level("INFO"):
        preprocessor(datalist, finished).run()
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.name != ".lock"}
    assert "volume_000000 (a): finished, kept" in caplog.text


@pytest.mark.parametrize("writes", [1, 3, 5, 6, 7, 10])
def test_an_interrupted_run_ends_with_the_same_cache(
    datalist: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    writes: int,
) -> None:
    write, count = VolumeWriter._write, 0

    def failing(self: VolumeWriter, *args: Any) -> None:
        nonlocal count
        count += 1
        if count > writes:
            raise KeyboardInterrupt
        write(self, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(VolumeWriter, "_write", failing)
        preprocessor(datalist, tmp_path / "cache").run()
    with pytest.raises(InputError, match="is unfinished: run preprocessing"):
        open_cache(tmp_path / "cache")
    with caplog.at_level("INFO"):
        preprocessor(datalist, tmp_path / "cache").run()
    assert "taken up again" in caplog.text
    assert_same_arrays(finished, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*_progress.json"))


def test_an_interrupted_run_does_not_compute_finished_slices_again(
    datalist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: VolumeWriter, metadata: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(VolumeWriter, "finish", stop)
        preprocessor(datalist, tmp_path / "cache").run()
    preprocessor(datalist, tmp_path / "cache").run()
    volumes = open_cache(tmp_path / "cache")
    assert [v.metadata["timing"]["resumed"] for v in volumes] == [True, False, False]
    assert volumes[0].metadata["timing"]["windows"] == 0
    assert volumes[1].metadata["timing"]["windows"] > 0


def test_leftovers_with_other_settings_are_replaced(
    datalist: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: VolumeWriter, metadata: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(VolumeWriter, "finish", stop)
        features = {**FEATURES, "window": 40}
        preprocessor(datalist, tmp_path / "cache", features=features).run()
    preprocessor(datalist, tmp_path / "cache").run()
    assert_same_arrays(finished, tmp_path / "cache")


CLASSES: dict[str, dict[str, str | None]] = {
    "several": {"cells": "cells.npy", "dots": "dots.npy", "fibres": None},
    "one": {"cells": "cells.npy"},
}


def write_classes(folder: Path, classes: dict[str, str | None]) -> Path:
    """Labels end within raw; the ROI of the first entry does not."""
    values = json.loads(write_datalist(folder).read_text())
    ids = np.load(folder / "labels.npy")
    np.save(folder / "cells.npy", ids[:16, :10])
    np.save(folder / "dots.npy", (ids == 2**40)[:15, :11].astype(np.uint8))
    (entry,) = values["training"]
    del entry["labels"], values["validation"], values["test"]
    values["training"] = [{**entry, "classes": classes, "roi": {**ROI, "beyond_labels": True}}]
    path = folder / "classes.json"
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize("kind", CLASSES)
def test_classes_and_what_lies_beyond_them_are_cached(tmp_path: Path, kind: str) -> None:
    path = write_classes(tmp_path / "data", CLASSES[kind])
    preprocessor(path, tmp_path / "cache").run()
    (volume,) = open_cache(tmp_path / "cache")
    labels, mask = volume.read_labels(Roi((0, 0, 0), volume.shape))
    box = tuple(slice(o, o + s) for o, s in zip(ROI["offset"], ROI["shape"], strict=True))
    ids = np.load(tmp_path / "data" / "labels.npy")
    known = np.zeros(SHAPE, bool)
    known[: 15 if kind == "several" else 16, :10] = True
    expected = ids.copy()
    if kind == "several":
        expected = np.where(ids == 2**40, 2, np.where(ids > 0, 1, 0)).astype(np.uint64)
        known &= ids > 0
    known &= np.load(tmp_path / "data" / "mask.npy") != 0
    np.testing.assert_array_equal(mask, known[box])
    np.testing.assert_array_equal(volume.label_ids()[labels][mask], expected[box][mask])
    entry = volume.metadata["entry"]
    if kind == "several":
        assert volume.label_ids().tolist() == [0, 1, 2, 3], "the cached ids are those of classes"
        assert entry["class_ids"] == {"cells": 1, "dots": 2, "fibres": 3}
        assert entry["classes"] == {
            "cells": "../data/cells.npy",
            "dots": "../data/dots.npy",
            "fibres": None,
        }
    else:
        assert entry["class_ids"] == {"cells": "instances"}
    preprocessor(path, tmp_path / "cache").run()


def test_other_classes_for_a_finished_cache_are_refused(tmp_path: Path) -> None:
    path = write_classes(tmp_path / "data", CLASSES["several"])
    preprocessor(path, tmp_path / "cache").run()
    swapped = dict(reversed(CLASSES["several"].items()))
    write_classes(tmp_path / "data", swapped)
    with pytest.raises(InputError, match=r"another source .*: entry "):
        preprocessor(path, tmp_path / "cache").run()


def test_only_the_sections_asked_for_are_cached(datalist: Path, tmp_path: Path) -> None:
    preprocessor(datalist, tmp_path / "cache", sections=["validation"]).run()
    assert [volume.id for volume in open_cache(tmp_path / "cache")] == ["b"]
    with pytest.raises(InputError, match="'testing' is none of training, validation, test"):
        preprocessor(datalist, tmp_path / "cache", sections=["testing"])


def test_other_settings_for_a_finished_cache_are_refused(datalist: Path, finished: Path) -> None:
    features = {**FEATURES, "window": 40}
    with pytest.raises(InputError, match=r"differs from the request in: window \(32, not 40\)\. "):
        preprocessor(datalist, finished, features=features).run()
    with pytest.raises(InputError, match=r"digest \("):
        preprocessor(datalist, finished, backbone={**VIT, "seed": 1}).run()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"roi": {"offset": [3, 2, 1], "shape": [17, 12, 9]}}, "another source .*: roi "),
        ({"labels": None, "mask": None}, "another source .*: entry "),
        ({"id": "other"}, "holds volume_000000 of entry 'a', which is not in the datalist"),
        ({"intensity_window": [1, 2]}, "another source .*: given_intensity_window "),
    ],
)
def test_another_source_for_a_finished_cache_is_refused(
    finished: Path, datalist: Path, changes: dict[str, Any], message: str
) -> None:
    path = datalist.parent / "changed.json"
    values = json.loads(datalist.read_text())
    values["training"][0] |= changes
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=message):
        preprocessor(path, finished).run()


def test_a_volume_that_the_datalist_does_not_have_is_refused(
    finished: Path, datalist: Path
) -> None:
    values = json.loads(datalist.read_text())
    del values["test"]
    path = datalist.parent / "shorter.json"
    path.write_text(json.dumps(values))
    with pytest.raises(
        InputError, match="volume_000002 of entry 'c', which is not in the datalist"
    ):
        preprocessor(path, finished).run()


def test_a_section_that_is_left_out_is_named(finished: Path, datalist: Path) -> None:
    sentence = r"volume_000001 of entry 'b' in section 'validation', which sections lacks; add it"
    with pytest.raises(InputError, match=sentence):
        preprocessor(datalist, finished, sections=["training", "test"]).run()


def test_unfinished_volumes_of_a_longer_datalist_are_removed(
    datalist: Path, tmp_path: Path
) -> None:
    files = preprocessing.VolumeFiles(tmp_path / "cache", 7)
    VolumeWriter(files, {"entry": {"id": "old", "section": "test"}})
    preprocessor(datalist, tmp_path / "cache").run()
    assert len(open_cache(tmp_path / "cache")) == 3
    assert not files.arrays.exists() and not files.progress.exists()


def test_everything_is_checked_before_the_first_forward_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_making, "PlaneExtraction", None)
    path = write_datalist(tmp_path / "data")
    values = json.loads(path.read_text())
    del values["test"][0]["intensity_window"]
    path.write_text(json.dumps(values))
    np.save(tmp_path / "data" / "grey.npy", np.full(SHAPE, 9, np.uint8))
    with pytest.raises(InputError, match="is constant"):
        preprocessor(path, tmp_path / "cache").run()
    (tmp_path / "data" / "grey.npy").unlink()
    with pytest.raises(InputError, match=r"grey\.npy"):
        preprocessor(path, tmp_path / "cache").run()
    assert not (tmp_path / "cache").exists()


def test_a_cache_dir_that_holds_something_else_is_refused(datalist: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file; choose another cache_dir"):
        preprocessor(datalist, tmp_path / "file").run()
    foreign = tmp_path / "foreign" / "volume_000000.zarr"
    foreign.mkdir(parents=True)
    (foreign / "data").write_text("mine")
    with pytest.raises(InputError, match="which preprocessing did not write"):
        preprocessor(datalist, tmp_path / "foreign").run()
    assert (foreign / "data").read_text() == "mine"


def test_a_second_run_on_the_same_cache_is_refused(datalist: Path, tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / "cache"),
        pytest.raises(InputError, match=f"being written by process {os.getpid()}"),
    ):
        preprocessor(datalist, tmp_path / "cache").run()
    preprocessor(datalist, tmp_path / "cache").run()


def test_a_cache_that_does_not_fit_on_the_disk_is_refused(
    datalist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"its disk has [0-9.]+ kB left"):
        preprocessor(datalist, tmp_path / "cache").run()


def test_the_space_asked_for_is_no_less_than_the_space_taken(
    datalist: Path, finished: Path
) -> None:
    _, spec = load_backbone_and_spec(VIT, FEATURES)
    for job in preprocessor(datalist, finished)._jobs():
        names = ("raw", "gt", "mask", *(f"tokens_{plane}" for plane in PLANES))
        arrays = CachedVolume(job.files.arrays).metadata["arrays"]
        taken = sum(arrays[n]["bytes"] for n in names if n in arrays)
        headers = 500 * len(arrays)
        assert taken <= job.bytes_needed(spec) + headers
        assert job.bytes_needed(spec) < 8 * taken


def room(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)


def test_targets_need_room_too_until_they_are_there(
    datalist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, spec = load_backbone_and_spec(VIT, FEATURES)
    targets = {"affinity_offsets": [[1, 0, 0], [0, 2, 0]], "lsd_sigma_nm": None}
    jobs = preprocessor(datalist, tmp_path)._jobs()
    features = sum(job.bytes_needed(spec) for job in jobs)
    voxels = 18 * 12 * 9 + 3 * 20 * 22  # of the two entries with labels
    room(monkeypatch, features + (2 + 2) * voxels - 1)
    with pytest.raises(InputError, match=r"its disk has [0-9.]+ kB left"):
        preprocessor(datalist, tmp_path, targets=targets).run()
    room(monkeypatch, features + (2 + 2) * voxels)
    preprocessor(datalist, tmp_path, targets=targets).run()
    taken = [
        CachedVolume(job.files.arrays).metadata["arrays"][name]["bytes"]
        for job in jobs
        for name in ("target", "boundary_weights")
        if job.id != "c"
    ]
    assert sum(taken) <= 4 * voxels + 500 * len(taken)
    room(monkeypatch, 0)
    preprocessor(datalist, tmp_path, targets=targets).run()
    room(monkeypatch, 4 * voxels - 1)
    with pytest.raises(InputError, match=r"its disk has [0-9.]+ kB left"):
        preprocessor(datalist, tmp_path, targets={**targets, "boundary_power": 1.0}).run()


def test_what_is_written_already_needs_no_room(
    datalist: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: VolumeWriter, metadata: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(VolumeWriter, "finish", stop)
        preprocessor(datalist, tmp_path).run()
    _, spec = load_backbone_and_spec(VIT, FEATURES)
    needed = [job.bytes_needed(spec) for job in preprocessor(datalist, tmp_path)._jobs()]
    room(monkeypatch, sum(needed[1:]) + needed[0] // 2)
    preprocessor(datalist, tmp_path).run()
    assert_same_arrays(finished, tmp_path)


def test_the_bundles_config_preprocesses(datalist: Path, finished: Path, tmp_path: Path) -> None:
    parser = ConfigParser()
    parser.read_config(ROOT / "bundle" / "configs" / "preprocess.json")
    parser.update(
        {
            "bundle_root": str(ROOT / "bundle"),
            "datalist": str(datalist),
            "cache_dir": str(tmp_path / "cache"),
            "backbone": VIT,
            "device": "cpu",
            "preprocessor#sections": list(SECTIONS),
            **{f"features#{key}": value for key, value in FEATURES.items()},
        }
    )
    parser.get_parsed_content("initialize")
    parser.get_parsed_content("preprocessing")
    assert_same_arrays(finished, tmp_path / "cache")
    assert parser.config["run"] == parser.config["preprocessing"]


# --- int8 and compression ---

INT8 = {**FEATURES, "dtype": "int8"}


@pytest.fixture(scope="module")
def finished_int8(datalist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache_dir = tmp_path_factory.mktemp("int8") / "cache"
    preprocessor(datalist, cache_dir, features=INT8, compression="lz4").run()
    return cache_dir


def test_int8_features_from_the_cache_and_from_raw_differ_by_half_a_step(
    datalist: Path, finished_int8: Path
) -> None:
    raw = np.load(datalist.parent / "raw.npy")
    backbone, spec = load_backbone_and_spec(VIT, INT8)
    volume = open_cache(finished_int8, ids=["a"], spec=spec)[0]
    roi, window = Roi(ROI["offset"], ROI["shape"]), volume.metadata["intensity_window"]
    fresh = extract_planes(
        lambda box: raw[box.to_slices()], SHAPE, roi, backbone, spec, tuple(window)
    )
    for plane in PLANES:
        steps = torch.tensor(volume.metadata["arrays"][f"tokens_{plane}"]["scales"])
        cached, direct = volume.plane_grid(plane).values, fresh[plane].values
        assert cached.dtype == direct.dtype == torch.float16
        error = (cached.float() - direct.float()).abs()
        assert (error <= steps.view(-1, 1, 1, 1) / 2 + 2e-3).all()


@pytest.mark.parametrize("writes", [5, 6, 7, 8, 9, 10, 11])
def test_an_interrupted_int8_run_ends_with_the_same_cache(
    datalist: Path,
    finished_int8: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    writes: int,
) -> None:
    write, count = VolumeWriter._write, 0

    def failing(self: VolumeWriter, *args: Any) -> None:
        nonlocal count
        count += 1
        if count > writes:
            raise KeyboardInterrupt
        write(self, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(VolumeWriter, "_write", failing)
        preprocessor(datalist, tmp_path / "cache", features=INT8, compression="lz4").run()
    preprocessor(datalist, tmp_path / "cache", features=INT8, compression="lz4").run()
    assert_same_arrays(finished_int8, tmp_path / "cache")
    scales = [
        [volume.metadata["arrays"][f"tokens_{plane}"]["scales"] for plane in PLANES]
        for cache_dir in (finished_int8, tmp_path / "cache")
        for volume in open_cache(cache_dir)
    ]
    assert scales[:3] == scales[3:]


def test_int8_for_a_cache_made_as_float16_is_refused(datalist: Path, finished: Path) -> None:
    with pytest.raises(InputError, match=r"dtype \(float16, not int8\).*features\.dtype"):
        preprocessor(datalist, finished, features=INT8).run()


def test_compression_is_no_part_of_the_features(
    datalist: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_making, "PlaneExtraction", None)
    preprocessor(datalist, finished, compression="zstd").run()
    assert {v.metadata["compression"] for v in open_cache(finished)} == {"none"}
    with pytest.raises(InputError, match="compression must be one of none, lz4, zstd, got 'gzip'"):
        preprocessor(datalist, finished, compression="gzip")


def test_an_unfinished_volume_of_another_compression_is_made_anew(
    datalist: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: VolumeWriter, metadata: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(VolumeWriter, "finish", stop)
        preprocessor(datalist, tmp_path / "cache").run()
    preprocessor(datalist, tmp_path / "cache", compression="zstd").run()
    assert_same_arrays(finished, tmp_path / "cache")
    assert {v.metadata["compression"] for v in open_cache(tmp_path / "cache")} == {"zstd"}


def test_an_int8_cache_has_room_for_the_plane_that_is_still_float16(
    datalist: Path, finished: Path
) -> None:
    _, spec = load_backbone_and_spec(VIT, FEATURES)
    _, packed = load_backbone_and_spec(VIT, INT8)
    for job in preprocessor(datalist, finished)._jobs():
        arrays = CachedVolume(job.files.arrays).metadata["arrays"]
        sizes = [np.prod(arrays[f"tokens_{plane}"]["shape"]) for plane in PLANES]
        assert job.bytes_needed(packed) >= sum(sizes) + 2 * max(sizes)
        assert job.bytes_needed(packed) < job.bytes_needed(spec) * 1.5


# --- a cache and its datalist ---


def test_volumes_are_found_by_their_entrys_id(
    datalist: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_dir = shutil.copytree(finished, tmp_path / "cache")
    preprocessing.VolumeFiles(cache_dir, 0).remove()
    values = json.loads(datalist.read_text())
    del values["training"]
    path = datalist.parent / "without_training.json"
    path.write_text(json.dumps(values))
    with monkeypatch.context() as patch:
        patch.setattr(volume_making, "PlaneExtraction", None)
        preprocessor(path, cache_dir).run()
    preprocessor(datalist, cache_dir).run()
    assert_same_arrays(finished, cache_dir)


def test_a_folder_that_may_not_be_written_is_said(
    datalist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, **_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(InputError, match=r"cache' cannot be written \(Permission denied\): allow"):
        preprocessor(datalist, tmp_path / "cache").run()


def test_target_settings_never_extract_again(
    datalist: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_making, "PlaneExtraction", None)
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.name != ".lock"}
    parser = ConfigParser()
    parser.read_config(ROOT / "bundle" / "configs" / "preprocess.json")
    parser.update(
        {
            "bundle_root": str(ROOT / "bundle"),
            "datalist": str(datalist),
            "cache_dir": str(finished),
            "backbone": VIT,
            "device": "cpu",
            "sections": list(SECTIONS),
            "affinity_offsets": [[0, 0, 7]],
            "lsd_sigma_nm": 11.0,
            "boundary_power": 3.0,
            **{f"features#{key}": value for key, value in FEATURES.items()},
        }
    )
    parser.get_parsed_content("initialize")
    parser.get_parsed_content("preprocessing")
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.name != ".lock"}
