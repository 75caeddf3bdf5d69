"""Runs of a network with a context."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bundle import tiny

pytestmark = pytest.mark.slow

FACTOR = [1, 2, 3]


def run(name: str, folder: Path, factor: Any = FACTOR, **changes: Any) -> None:
    tiny.run(name, folder, **{"context_factor": factor, **changes})


@pytest.fixture(scope="module")
def trained(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("context")
    for part in ("data", "cache"):
        shutil.copytree(finished / part, folder / part)
    run("training", folder)
    return folder


@pytest.fixture
def project(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "project")


def test_the_context_is_trained_and_used(project: Path) -> None:
    weights = torch.load(project / "model" / "model.pt", weights_only=True)
    gates = [name for name in weights if name.startswith("context.gates")]
    assert len(gates) == 6 * 2  # every level: value and two layers of the gate, weight and bias
    run("inference", project, mirror=True)
    described = json.loads((project / "model" / "model.json").read_text())
    assert described["config"]["context_factor"] == FACTOR


@pytest.mark.parametrize("factor", [2, None], ids=str)
def test_another_context_than_the_model_was_trained_with_is_refused(
    project: Path, factor: Any
) -> None:
    found = tiny.mistake(lambda: run("inference", project, factor))
    assert f"context_factor ({json.dumps(factor)}, not [1, 2, 3])" in found
    found = tiny.mistake(lambda: run("training", project, factor, epochs=3))
    expected = f"context_factor ({factor}, not [1, 2, 3])" if factor else "(network: "
    assert "does not fit this configuration" in found and expected in found


def test_raw_alone_may_have_a_context_and_features_may_be_extracted_on_the_fly(
    project: Path,
) -> None:
    for changes in ({"token_channels": 0}, {"source": "raw"}):
        for place in ("model", "eval"):
            shutil.rmtree(project / place)
        run("training", project, epochs=1, **changes)


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (1.5, "context_factor must be one or three whole numbers from 1 on, got 1.5"),
        (0, "context_factor must be one or three whole numbers from 1 on, got 0"),
        (1, "context_factor 1 shows the crop once more"),
        (
            24,
            "context_factor [24, 24, 24] makes a single voxel of an axis of volume",
        ),
    ],
)
def test_a_mistake_in_the_factor_is_one_sentence(project: Path, factor: Any, message: str) -> None:
    shutil.rmtree(project / "model")
    assert message in tiny.mistake(lambda: run("training", project, factor))
