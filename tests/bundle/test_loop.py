"""The training loop's settings, in whole runs."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bundle import tiny

pytestmark = pytest.mark.slow

MISSING = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")


def trained(finished: Path, folder: Path, **changes: Any) -> list[dict[str, Any]]:
    """The history of a run in an empty folder, on the data and the cache of another."""
    places = {name: str(finished / name.removesuffix("_dir")) for name in ("cache_dir",)}
    datalist = str(finished / "data" / "datalist.json")
    tiny.run("training", folder, datalist=datalist, **places, **changes)
    found: list[dict[str, Any]] = json.loads((folder / "eval" / "history.json").read_text())
    return found


def planted(*numbers: int) -> dict[str, Any]:
    return {
        "augmentation": [{"_target_": "tests.bundle.planted_nan.PlantNaNd", "numbers": numbers}]
    }


def test_raw_that_is_not_finite_is_skipped_named_and_at_last_ends_the_training(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {**planted(1, 5, 7, 8), "iterations_per_epoch": 5, "ema_decay": 0.5}
    with caplog.at_level(logging.WARNING, "custom.non_finite"):
        history = trained(finished, tmp_path / "one", **settings)
    assert [entry["skipped_steps"] for entry in history] == [1, 3]
    assert all(torch.isfinite(torch.tensor(entry["train_loss"])) for entry in history)
    warnings = [m for m in caplog.messages if "is skipped" in m]
    assert [m.split()[1] for m in warnings] == ["2", "6", "8", "9"]
    assert "is nan in sample 7 (volume 'synthetic-training', offset [" in warnings[2]
    weights = torch.load(tmp_path / "one" / "model" / "model.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in weights.values())

    def two_in_a_row() -> None:
        trained(finished, tmp_path / "two", **settings, max_non_finite_steps=2)

    message = tiny.mistake(two_in_a_row)
    assert message.startswith("training stops at step 9, as 2 in a row were skipped")
    assert "in sample 8 (volume 'synthetic-training'" in message


def test_validation_and_the_model_take_the_average_of_the_weights(
    finished: Path, tmp_path: Path
) -> None:
    trained(finished, tmp_path, ema_decay=0.999, epochs=1)
    state = torch.load(tmp_path / "model" / "last.pt", weights_only=True)
    model = torch.load(tmp_path / "model" / "model.pt", weights_only=True)
    assert state["averaged"]["updates"] == 2
    for name, value in model.items():
        assert torch.equal(value, state["averaged"]["weights"][name]), name
    assert any(not torch.equal(value, state["network"][name]) for name, value in model.items())


def test_an_epoch_is_a_pass_over_the_training_volumes(finished: Path, tmp_path: Path) -> None:
    """24 x 35 x 32 voxels in crops of 16 x 16 x 16, two at a time, two batches a step."""
    settings = {"epochs": 1, "batch_size": 2, "accumulation_steps": 2}
    trained(finished, tmp_path, iterations_per_epoch=None, **settings)  # MONAI leaves the null
    state = torch.load(tmp_path / "model" / "last.pt", weights_only=True)
    assert state["iteration"] == 4
    assert state["lr_scheduler"]["last_epoch"] == 2


@MISSING
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_compiled_network_trains_as_it_would_have(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    one = trained(finished, tmp_path / "one", epochs=1)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before
    two = trained(finished, tmp_path / "two", epochs=1, compile_network=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
    assert two[0]["train_loss"] == pytest.approx(one[0]["train_loss"], rel=1e-5)
    files = [tmp_path / name / "model" / "model.pt" for name in ("one", "two")]
    plain, compiled = (torch.load(file, weights_only=True) for file in files)
    assert plain.keys() == compiled.keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-5)
    torch._dynamo.reset()
