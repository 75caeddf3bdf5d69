"""Copies of training volumes whose raw was changed before the backbone, in a cache."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from funlib.geometry.roi import Roi

from custom import volume_making
from custom.datalist import SECTIONS
from custom.errors import InputError
from custom.features.cache import CachedVolume, open_cache
from custom.features.cache_check import check_cache
from custom.features.cache_prune import removable
from custom.features.cache_writer import VolumeWriter
from custom.features.copies import IntensityChange, plan_copies
from custom.features.intensity import to_unit_range
from custom.model_files import model_description
from custom.planes import PLANES
from custom.preprocessing import Preprocessor
from custom.targets.settings import TargetSettings
from custom.training import training_volumes
from tests import test_finer_raw
from tests.test_preprocessing import (
    FEATURES,
    ROI,
    SHAPE,
    VIT,
    arrays_of,
    assert_same_arrays,
    preprocessor,
    write_datalist,
)

pytestmark = pytest.mark.slow

INTENSITY = {
    "contrast": [0.6, 1.4],
    "brightness": [-0.2, 0.2],
    "gamma": [0.7, 1.4],
    "noise": [0.05, 0.1],
}


def run(datalist: Path, cache_dir: Path, copies: int, **changes: Any) -> None:
    plan = plan_copies(copies, INTENSITY, changes.pop("seed", 0))
    preprocessor(datalist, cache_dir, copies=plan, **changes).run()


def copies_of(cache_dir: Path) -> list[CachedVolume]:
    """Volumes of entry a, unchanged first."""
    return open_cache(cache_dir, ids=["a"], copies=True)


def same_features(one: CachedVolume, other: CachedVolume) -> bool:
    grids = [[v.plane_grid(plane).values for plane in PLANES] for v in (one, other)]
    return all(torch.equal(a, b) for a, b in zip(*grids, strict=True))


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_datalist(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def plain(datalist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache_dir = tmp_path_factory.mktemp("plain") / "cache"
    run(datalist, cache_dir, 0)
    return cache_dir


@pytest.fixture(scope="module")
def copied(datalist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache_dir = tmp_path_factory.mktemp("copied") / "cache"
    run(datalist, cache_dir, 2)
    return cache_dir


def test_only_training_volumes_have_copies_and_the_others_are_as_without(
    plain: Path, copied: Path
) -> None:
    volumes = open_cache(copied, copies=True)
    assert [(v.id, v.copy) for v in volumes] == [("a", 0), ("b", 0), ("c", 0), ("a", 1), ("a", 2)]
    assert {v.section for v in volumes if v.copy} == {"training"}
    assert len({v.spec for v in volumes}) == 1
    without, found = arrays_of(plain), arrays_of(copied)
    assert len(found) > len(without)
    for name, values in without.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert [v.path.name for v in open_cache(copied)] == [v.path.name for v in open_cache(plain)]
    assert check_cache(copied, show_progress=False).defects == ()
    assert removable(copied, {"a", "b", "c"}, copies=2) == []


def test_a_copys_features_are_those_of_raw_that_was_changed_alike(
    datalist: Path, copied: Path, tmp_path: Path
) -> None:
    volume = copies_of(copied)[2]
    window = tuple(volume.metadata["intensity_window"])
    change = IntensityChange(**volume.metadata["intensity_change"])
    raw = np.load(datalist.parent / "raw.npy")
    changed = change(to_unit_range(raw, window), (0, 0, 0))
    shutil.copytree(datalist.parent, tmp_path / "data")
    np.save(tmp_path / "data" / "changed.npy", changed)
    values = json.loads(datalist.read_text())
    values["training"][0] |= {"raw": "changed.npy", "intensity_window": [0, 1]}
    path = tmp_path / "data" / "changed.json"
    path.write_text(json.dumps(values))
    run(path, tmp_path / "cache", 0)
    expected = copies_of(tmp_path / "cache")[0]
    assert same_features(volume, expected)
    whole = Roi((0, 0, 0), volume.shape)
    np.testing.assert_array_equal(volume.read_raw(whole), expected.read_raw(whole))
    assert volume.raw_window == expected.raw_window == (0, 255)
    box = Roi(ROI["offset"], ROI["shape"]).to_slices()
    assert np.abs(volume.read_raw(whole) / 255 - changed[box]).max() < 0.003


def test_finer_raw_of_a_copy_is_changed_before_it_is_resampled(tmp_path: Path) -> None:
    given = test_finer_raw.write_datalist(tmp_path / "data", "uint16")
    features = test_finer_raw.FEATURES
    run(given, tmp_path / "cache", 1, features=features)
    copy = open_cache(tmp_path / "cache", "training", copies=True)[1]
    change = IntensityChange(**copy.metadata["intensity_change"])
    window = tuple(copy.metadata["intensity_window"])
    raw = zarr.open(tmp_path / "data" / "x.zarr" / "raw" / "s0", mode="r")[:]
    changed = change(to_unit_range(raw, window), (0, 0, 0))
    path = test_finer_raw.write(
        tmp_path / "data", "changed", changed, test_finer_raw.FINE, (0, 0, 0)
    )
    values = json.loads(given.read_text())
    values["training"][0] |= {"raw": path, "intensity_window": [0, 1]}
    (tmp_path / "data" / "changed.json").write_text(json.dumps(values))
    run(tmp_path / "data" / "changed.json", tmp_path / "other", 0, features=features)
    expected = open_cache(tmp_path / "other", "training")[0]
    assert same_features(copy, expected)
    whole = Roi((0, 0, 0), copy.shape)
    np.testing.assert_array_equal(copy.read_raw(whole), expected.read_raw(whole))


def test_copies_differ_in_raw_and_features_and_not_in_labels(copied: Path) -> None:
    volumes = copies_of(copied)
    whole = Roi((0, 0, 0), volumes[0].shape)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        first, second = volumes[one], volumes[other]
        assert not same_features(first, second)
        assert not np.array_equal(first.read_raw(whole), second.read_raw(whole))
        for a, b in zip(first.read_labels(whole), second.read_labels(whole), strict=True):
            np.testing.assert_array_equal(a, b)
    assert volumes[1].metadata["intensity_change"] != volumes[2].metadata["intensity_change"]
    assert "intensity_change" not in volumes[0].metadata


def test_uint8_raw_of_a_copy_is_changed_too(datalist: Path, tmp_path: Path) -> None:
    values = json.loads(datalist.read_text())
    grey = {**values["test"][0], "id": "grey"}
    path = datalist.parent / "grey.json"
    path.write_text(json.dumps({"name": "grey", "training": [grey]}))
    run(path, tmp_path / "cache", 1)
    one, copy = open_cache(tmp_path / "cache", copies=True)
    whole = Roi((0, 0, 0), one.shape)
    assert one.raw_window == (10, 250) and copy.raw_window == (0, 255)
    change = IntensityChange(**copy.metadata["intensity_change"])
    raw = np.load(datalist.parent / "grey.npy")
    expected = change(to_unit_range(raw, (10, 250)), (0, 0, 0))[0:5, 0:6, 4:11]
    assert np.abs(copy.read_raw(whole) / 255 - expected).max() < 0.003


@pytest.mark.parametrize("writes", [5, 21, 25, 29, 33])
def test_an_interrupted_run_ends_with_the_same_copies(
    datalist: Path, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
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
        run(datalist, tmp_path / "cache", 2)
    run(datalist, tmp_path / "cache", 2)
    assert_same_arrays(copied, tmp_path / "cache")
    identities = [(v.id, v.copy) for v in open_cache(tmp_path / "cache", copies=True)]
    assert len(identities) == len(set(identities)) == 5


def test_more_copies_later_make_only_the_new_ones(
    datalist: Path, plain: Path, copied: Path, tmp_path: Path
) -> None:
    cache_dir = shutil.copytree(plain, tmp_path / "cache")
    for copies in (1, 2):
        before = {p: p.stat().st_mtime_ns for p in cache_dir.rglob("*.zarr/**/*") if p.is_file()}
        run(datalist, cache_dir, copies)
        assert before == {p: p.stat().st_mtime_ns for p in before}
        assert len(copies_of(cache_dir)) == 1 + copies
    assert_same_arrays(copied, cache_dir)


def test_fewer_copies_are_refused_until_they_are_pruned(
    datalist: Path, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_dir = shutil.copytree(copied, tmp_path / "cache")
    monkeypatch.setattr(volume_making, "PlaneExtraction", None)
    with pytest.raises(
        InputError,
        match=r"volume_000004, copy 2 of entry 'a', but augmented_copies "
        r"is 1; .*prune --copies 1",
    ):
        run(datalist, cache_dir, 1)
    (item,) = removable(cache_dir, {"a", "b", "c"}, copies=1)
    assert (item.files.name, item.reason) == ("volume_000004", "extra copy")
    item.remove()
    run(datalist, cache_dir, 1)
    assert [v.copy for v in copies_of(cache_dir)] == [0, 1]


@pytest.mark.parametrize("changes", [{"seed": 1}, {"intensity": {"gamma": [0.5, 2]}}])
def test_copies_of_other_draws_are_refused(
    datalist: Path, copied: Path, changes: dict[str, Any]
) -> None:
    plan = plan_copies(2, changes.get("intensity", INTENSITY), changes.get("seed", 0))
    with pytest.raises(InputError, match=r"another source than entry 'a'.*: intensity_change "):
        preprocessor(datalist, copied, copies=plan).run()


def test_an_entry_that_became_validation_keeps_no_copy(
    datalist: Path, copied: Path, tmp_path: Path
) -> None:
    values = json.loads(datalist.read_text())
    values["validation"].append(values["training"].pop())
    del values["training"]
    path = datalist.parent / "moved.json"
    path.write_text(json.dumps(values))
    for copies in (1, 2):  # pruning to as many would not remove it
        with pytest.raises(InputError, match=r"'a', which is in section 'validation' now.*remove"):
            preprocessor(path, copied, copies=plan_copies(copies, INTENSITY)).run()


def test_copies_have_the_principal_components_of_their_volumes(
    datalist: Path, tmp_path: Path
) -> None:
    reduced = {**FEATURES, "pca": 5}
    for copies in (0, 1):
        run(datalist, tmp_path / str(copies), copies, features=reduced)
    without, found = arrays_of(tmp_path / "0"), arrays_of(tmp_path / "1")
    for name, values in without.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    run(datalist, tmp_path / "0", 1, features=reduced)
    assert_same_arrays(tmp_path / "1", tmp_path / "0")


def test_copies_need_the_training_section(datalist: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"augmented_copies is 2, but .* lacks 'training'"):
        run(datalist, tmp_path / "cache", 2, sections=["validation"])


def test_training_reads_copies_and_others_do_not(copied: Path) -> None:
    wanted = (VIT, FEATURES, 0)
    training = training_volumes(str(copied), "training", *wanted)
    validation = training_volumes(str(copied), "validation", *wanted)
    assert [v.metadata["entry"].get("copy", 0) for v in training] == [0, 1, 2]
    assert [v.id for v in open_cache(copied, "training")] == ["a"]
    described = model_description(training, validation, TargetSettings(((1, 0, 0),), None))
    assert [entry["id"] for entry in described["split"]["training"]] == ["a"]


def test_an_unfinished_copy_keeps_training_from_starting_and_nothing_else(
    copied: Path, tmp_path: Path
) -> None:
    cache_dir = shutil.copytree(copied, tmp_path / "cache")
    (cache_dir / "volume_000004_metadata.json").rename(cache_dir / "volume_000004_progress.json")
    marker = json.loads((cache_dir / "volume_000004_progress.json").read_text())
    (cache_dir / "volume_000004_progress.json").write_text(
        json.dumps({"format": marker["format"], "request": marker, "written": {}})
    )
    with pytest.raises(InputError, match="volume 'a, copy 2' is unfinished"):
        copies_of(cache_dir)
    assert len(open_cache(cache_dir)) == 3


def test_without_a_plan_there_are_no_copies(datalist: Path, plain: Path, tmp_path: Path) -> None:
    Preprocessor(datalist, tmp_path / "c", VIT, FEATURES, SECTIONS, show_progress=False).run()
    assert_same_arrays(plain, tmp_path / "c")
    assert SHAPE == (24, 20, 22), "the datalist of test_preprocessing"
