"""Reduced features on their way: cache, training, model, inference."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from custom import preprocessing, volume_making
from custom.errors import InputError
from custom.features import cache_basis
from custom.features.cache import open_cache
from custom.features.cache_check import check_cache
from custom.features.cache_files import VolumeFiles
from custom.features.pca import BASIS_FILE, read_basis
from custom.features.triplane import average
from custom.live import live_volumes
from custom.model_files import BestModel
from custom.planes import PLANES
from custom.training import training_volumes
from custom.volume_datasets import RawVolumeDataset
from tests.features.guided import write_hub
from tests.test_preprocessing import (
    FEATURES,
    VIT,
    assert_same_arrays,
    preprocessor,
    write_datalist,
)

WITH_SEED = {**VIT, "seed": 0}
REDUCED = {**FEATURES, "pca": 4, "precision": "float32"}


def reduced(datalist: Path, cache_dir: Path, **changes: Any) -> preprocessing.Preprocessor:
    features = {**REDUCED, **changes.pop("features", {})}
    return preprocessor(datalist, cache_dir, backbone=WITH_SEED, features=features, **changes)


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_datalist(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(datalist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache_dir = tmp_path_factory.mktemp("finished") / "cache"
    reduced(datalist, cache_dir).run()
    return cache_dir


@pytest.fixture
def cache_dir(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "cache")


def test_a_cache_holds_its_features_in_a_basis_fitted_to_the_training_entries(
    datalist: Path, finished: Path, tmp_path: Path
) -> None:
    preprocessor(datalist, tmp_path, backbone=WITH_SEED, features={**REDUCED, "pca": None}).run()
    basis = read_basis(finished, "")
    assert basis.fitted_on["entries"] == ["a"]
    for one, other in zip(open_cache(finished), open_cache(tmp_path), strict=True):
        assert (one.spec.channels, one.spec.pca_digest) == (4, basis.digest)
        for plane in PLANES:
            whole = other.plane_grid(plane)
            expected = basis.project(whole.values[None])[0]
            torch.testing.assert_close(
                one.plane_grid(plane).values.float(), expected, rtol=0, atol=5e-3
            )


@pytest.mark.parametrize("guided", [False, True])
def test_dense_features_are_reduced_before_they_are_upsampled(
    guided: bool, datalist: Path, finished: Path, tmp_path: Path
) -> None:
    """The basis is that of the patches, whatever becomes of them."""
    hub = write_hub(tmp_path / "hub") if guided else None
    features = {"layout": "dense", "upsampler": hub, "overlap": 8}
    reduced(datalist, tmp_path / "cache", sections=("training",), features=features).run()
    (volume,) = open_cache(tmp_path / "cache")
    basis, other = volume.basis, read_basis(finished, "")
    assert basis is not None and basis.digest == other.digest
    found = volume.read_features()
    assert found.shape == (4, *volume.shape) and found.isfinite().all()
    linear = average(
        {p: open_cache(finished, "training")[0].plane_grid(p) for p in PLANES}, volume.shape
    )
    difference = (found.float() - linear).abs().max()
    assert difference > 0.05 if guided else difference < 5e-3
    assert check_cache(tmp_path / "cache", show_progress=False).defects == ()


def test_two_runs_are_equal(datalist: Path, finished: Path, tmp_path: Path) -> None:
    reduced(datalist, tmp_path).run()
    assert (tmp_path / BASIS_FILE).read_bytes() == (finished / BASIS_FILE).read_bytes()
    assert_same_arrays(finished, tmp_path)


def test_a_moved_cache_is_the_same(datalist: Path, finished: Path, cache_dir: Path) -> None:
    for one, other in zip(open_cache(finished), open_cache(cache_dir), strict=True):
        assert one.basis is not None and other.basis is not None
        assert one.basis.digest == other.basis.digest
    assert check_cache(cache_dir, show_progress=False).defects == ()


def test_an_entry_that_comes_later_is_reduced_alike(
    datalist: Path, finished: Path, tmp_path: Path
) -> None:
    """Though a basis fitted to the validation entry alone would be another one."""
    reduced(datalist, tmp_path / "alone", sections=("validation",)).run()
    assert read_basis(tmp_path / "alone", "").fitted_on["entries"] == ["b"]
    reduced(datalist, tmp_path / "later", sections=("training",)).run()
    before = (tmp_path / "later" / BASIS_FILE).read_bytes()
    reduced(datalist, tmp_path / "later").run()
    assert (tmp_path / "later" / BASIS_FILE).read_bytes() == before
    assert_same_arrays(finished, tmp_path / "later")


def test_a_basis_put_there_from_another_cache_is_taken(
    datalist: Path, finished: Path, tmp_path: Path
) -> None:
    shutil.copy(finished / BASIS_FILE, tmp_path)
    reduced(datalist, tmp_path, sections=("validation",)).run()
    (volume,) = open_cache(tmp_path)
    assert volume.spec.pca_digest == read_basis(finished, "").digest


def test_a_basis_of_other_features_is_neither_taken_nor_replaced(
    datalist: Path, finished: Path, tmp_path: Path
) -> None:
    shutil.copy(finished / BASIS_FILE, tmp_path)
    with pytest.raises(InputError, match=r"pca\.safetensors' was fitted .* overlap \(8, not 0\)"):
        reduced(datalist, tmp_path, features={"overlap": 0}).run()
    assert (tmp_path / BASIS_FILE).read_bytes() == (finished / BASIS_FILE).read_bytes()


@pytest.mark.parametrize("n", [None, 5])
def test_another_number_of_components_is_refused(
    n: int | None, datalist: Path, cache_dir: Path
) -> None:
    with pytest.raises(InputError, match=rf"pca \(4, not {n}\)\. .* or change features\.pca\."):
        reduced(datalist, cache_dir, features={"pca": n}).run()
    features = {**REDUCED, "pca": n}
    with pytest.raises(InputError, match=rf"pca \(4, not {n}\)\. .* or change features\.pca\."):
        training_volumes(str(cache_dir), "training", WITH_SEED, features, 4)


@pytest.mark.parametrize("what", ["missing", "damaged", "another"])
def test_a_cache_without_its_basis_is_refused(
    what: str, datalist: Path, cache_dir: Path, tmp_path: Path
) -> None:
    path = cache_dir / BASIS_FILE
    if what == "missing":
        path.unlink()
    elif what == "damaged":
        path.write_bytes(path.read_bytes()[:-30])
    else:
        reduced(datalist, tmp_path / "alone", sections=("validation",)).run()
        shutil.copy(tmp_path / "alone" / BASIS_FILE, path)
    found = {"missing": "is missing", "damaged": "is damaged", "another": "is not the basis"}[what]
    for use in (lambda: open_cache(cache_dir), lambda: reduced(datalist, cache_dir).run()):
        with pytest.raises(InputError, match=rf"pca\.safetensors'.* {found}") as caught:
            use()
        assert "put back the one that preprocessing wrote there" in str(caught.value)
    defects = check_cache(cache_dir, show_progress=False).defects
    assert len(defects) == 3 and all(found in defect for defect in defects)


def test_the_basis_that_a_killed_run_has_fitted_is_used_again(
    datalist: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(volume_making, "_write_voxels", interrupted)
        with pytest.raises(KeyboardInterrupt):
            reduced(datalist, tmp_path).run()
    written = (tmp_path / BASIS_FILE).stat().st_mtime_ns
    (tmp_path / f".{BASIS_FILE}.abcd").write_bytes(b"part")
    with monkeypatch.context() as patch:
        patch.setattr(preprocessing, "fit_basis", interrupted)
        reduced(datalist, tmp_path).run()
    assert (tmp_path / BASIS_FILE).stat().st_mtime_ns == written
    assert_same_arrays(finished, tmp_path)
    assert not list(tmp_path.glob(f".{BASIS_FILE}.*"))


def test_a_full_disk_is_one_sentence(
    datalist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_basis, "write_atomically", full)
    with pytest.raises(InputError, match=r"pca\.safetensors' cannot be written \(No space left"):
        reduced(datalist, tmp_path).run()


def test_live_features_are_those_of_the_cache(datalist: Path, finished: Path) -> None:
    volumes = live_volumes(str(datalist), "training", WITH_SEED, REDUCED, cache_dir=finished)
    for live, cached in zip(volumes, open_cache(finished, "training"), strict=True):
        assert live.spec == cached.spec
        assert live.basis is not None and live.basis.digest == cached.spec.pca_digest
        for plane in PLANES:
            one, other = live.plane_grid(plane), cached.plane_grid(plane)
            assert torch.equal(one.values, other.values) and one.start == other.start


def test_live_features_need_the_basis_of_a_cache(datalist: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is missing: run preprocessing, which fits it, or set"):
        training_volumes(str(tmp_path), "training", WITH_SEED, REDUCED, 4, "raw", str(datalist))


def test_inference_from_raw_takes_the_basis_beside_the_model(
    datalist: Path, finished: Path, tmp_path: Path
) -> None:
    network = torch.nn.Linear(2, 2)
    volumes = training_volumes(str(finished), "training", WITH_SEED, REDUCED, 4)
    best = BestModel(str(tmp_path), network, {}, volumes[0].basis)
    best._save({"epoch": 1})
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "model.json", "model.pt", "model.safetensors", BASIS_FILE,
    ]  # fmt: skip
    arguments = (str(datalist), "training", WITH_SEED, REDUCED, "roi", True, "cpu")
    sample = RawVolumeDataset(*arguments, str(tmp_path))[0]
    cached = open_cache(finished, "training")[0]
    for plane in PLANES:
        assert torch.equal(sample[f"tokens_{plane}"], cached.plane_grid(plane).values)
    (tmp_path / BASIS_FILE).unlink()
    with pytest.raises(InputError, match="is missing: put back the one that training wrote there"):
        RawVolumeDataset(*arguments, str(tmp_path))


def test_a_cache_from_before_needs_no_backbone_to_be_recognised(
    datalist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its settings lack the newest keys, which means their defaults."""
    reduced(datalist, tmp_path, sections=("training",), features={"pca": None}).run()
    files = VolumeFiles(tmp_path, 0)
    metadata = json.loads(files.metadata.read_text())
    metadata["settings"].pop("pca")
    metadata["features"].pop("pca"), metadata["features"].pop("pca_digest")
    metadata["features"]["backbone"] = "somebody/some-model"
    files.metadata.write_text(json.dumps(metadata))

    def unreachable(*_: object) -> None:
        raise AssertionError("the backbone was asked for")

    monkeypatch.setattr("custom.training.load_backbone_and_spec", unreachable)
    features = {**REDUCED, "pca": None}
    assert training_volumes(str(tmp_path), "training", "somebody/some-model", features, 16)
