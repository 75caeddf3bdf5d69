"""A training with state in its network and its loss is taken up as if nothing had happened."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine

from custom.checkpoints import TrainingCheckpoint
from tests.bundle import tiny
from tests.bundle.overlays import content

pytestmark = pytest.mark.slow

SETTINGS: dict[str, Any] = {
    **content("labels"),
    "class_balance": "measured",
    "context_factor": [1, 2, 3],
    "checkpointing": True,
    "unet_dropout": 0.1,
    "unet_norm": {"name": "batch_renorm", "warmup_steps": 1, "momentum": 0.3},
    "fusion": "weighted",
}


class StoppedError(Exception):
    """What ends a run."""


def trained(finished: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, stop: bool) -> Path:
    for part in ("data", "cache"):
        shutil.copytree(finished / part, folder / part)
    save = TrainingCheckpoint.__call__

    def save_and_stop(self: TrainingCheckpoint, engine: Engine) -> None:
        save(self, engine)
        if engine.state.epoch == 1:
            raise StoppedError

    if stop:
        with monkeypatch.context() as patch, pytest.raises(RuntimeError):
            patch.setattr(TrainingCheckpoint, "__call__", save_and_stop)
            tiny.run("training", folder, **SETTINGS)
    tiny.run("training", folder, **SETTINGS)
    return folder


def test_a_resumed_training_equals_an_uninterrupted_one(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Classes weighted by their balance, Batch Renormalisation past its warm-up, a context."""
    one, other = (
        trained(finished, tmp_path / str(stop), monkeypatch, stop) for stop in (False, True)
    )
    weights = [torch.load(f / "model" / "last.pt", weights_only=True) for f in (one, other)]
    first, second = (state["network"] for state in weights)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(second[name], value), name
    assert {int(v) for n, v in first.items() if n.endswith(".steps")} == {4}
    assert any(v.std() > 0 for n, v in first.items() if n.endswith("running_std"))
    history = [json.loads((f / "eval" / "history.json").read_text()) for f in (one, other)]
    assert history[0] == history[1] and len(history[0]) == 2
