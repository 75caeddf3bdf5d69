"""Runs with reduced features and learned upsampling, from preprocessing to inference."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import zarr

from custom.features.pca import BASIS_FILE, read_basis
from tests.bundle import tiny

pytestmark = pytest.mark.slow

CHANGES = {"features#pca": 5}
NETWORK = {"token_channels": 5, "learned_upsampling_steps": 2}


def run(name: str, folder: Path, **changes: Any) -> None:
    network = {} if name == "preprocessing" else NETWORK
    tiny.run(name, folder, **{**CHANGES, **network, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reduced")
    tiny.write_data(folder)
    for name in ("preprocessing", "training", "inference"):
        run(name, folder)
    return folder


@pytest.fixture
def project(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "project")


def test_model_and_cache_have_one_basis(trained: Path) -> None:
    basis, described = (
        read_basis(trained / "cache", ""),
        json.loads((trained / "model" / "model.json").read_text()),
    )
    assert read_basis(trained / "model", "").digest == basis.digest
    assert described["basis"] == BASIS_FILE
    assert (described["features"]["pca"], described["features"]["channels"]) == (5, 5)
    assert described["features"]["pca_digest"] == basis.digest
    weights = torch.load(trained / "model" / "model.pt", weights_only=True)
    assert weights["fusion.project.weight"].shape == (2, 5)
    assert weights["fusion.refine.steps.1.add.weight"].abs().max() > 0  # it has learned
    assert zarr.open_group(trained / "output" / "synthetic.zarr", mode="r")["affinities"]


def test_training_on_features_of_raw_uses_the_basis_of_the_cache(project: Path) -> None:
    for place in ("model", "eval"):
        shutil.rmtree(project / place)
    run("training", project, source="raw")
    assert read_basis(project / "model", "").digest == read_basis(project / "cache", "").digest


def test_inference_without_the_basis_of_the_model_is_refused(project: Path) -> None:
    (project / "model" / BASIS_FILE).unlink()
    found = tiny.mistake(lambda: run("inference", project))
    assert f"{project / 'model' / BASIS_FILE}', the basis of the" in found
    assert "is missing: put back the one that training wrote there" in found


def test_inference_with_another_basis_is_refused(project: Path) -> None:
    basis = read_basis(project / "model", "")
    other = replace(basis, components=basis.components.flip(0))
    (project / "model" / BASIS_FILE).write_bytes(other.to_bytes())
    found = tiny.mistake(lambda: run("inference", project))
    assert "was trained on components of another basis" in found


def test_inference_with_another_number_of_components_is_refused(project: Path) -> None:
    found = tiny.mistake(lambda: run("inference", project, **{"features#pca": None}))
    assert "differ from the request in: pca (5, not None)" in found


def test_training_does_not_go_on_with_another_basis(project: Path) -> None:
    """Nor in silence on other features of as many channels."""
    basis = read_basis(project / "cache", "")
    shutil.rmtree(project / "cache")
    (project / "cache").mkdir()
    other = replace(basis, components=basis.components.flip(0))
    (project / "cache" / BASIS_FILE).write_bytes(other.to_bytes())
    run("preprocessing", project)
    found = tiny.mistake(lambda: run("training", project, epochs=3))
    assert "trained on features that differ in: pca_digest (" in found
    assert "choose another model_dir" in found
    alone = {
        "token_channels": 0,
        "learned_upsampling_steps": 0,
        "model_dir": str(project / "alone"),
        "epochs": 1,
    }
    run("training", project, **alone)
    shutil.rmtree(project / "cache")
    run("preprocessing", project)
    run("training", project, **{**alone, "epochs": 2})  # raw alone goes on beside any features


def test_a_network_for_other_channels_is_refused(project: Path) -> None:
    found = tiny.mistake(lambda: run("training", project, token_channels=16))
    assert "set token_channels to 5" in found


def test_a_model_with_learned_upsampling_needs_a_network_with_it(project: Path) -> None:
    found = tiny.mistake(lambda: run("inference", project, learned_upsampling_steps=0))
    assert "it differs in: learned_upsampling_steps (0, not 2)" in found
