"""Trainings of two processes, over gloo, as torchrun begins them."""

import json
import os
import shutil
import signal
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch
from monai.engines import SupervisedTrainer

from custom.distributed import rank
from custom.preflight import user_mistake
from custom.training_step import TrainingStep
from tests.bundle import tiny
from tests.bundle.tiny import BUNDLE, CONFIGS
from tests.processes import begun_in_two

pytestmark = pytest.mark.slow

MULTI_GPU = CONFIGS / "multi_gpu_train.json"
SETTINGS: dict[str, Any] = {
    "epochs": 3,
    "iterations_per_epoch": 3,
    "save_interval": 1,
    "batch_size": 2,
    "class_balance": "measured",
}


def trained(folder: str, changes: dict[str, Any], killed_at: int | None = None) -> str:
    """A training; of one of two processes where it has been begun as such.

    Args:
        folder: of the project.
        changes: of the settings.
        killed_at: the second process is killed before this batch.

    Returns:
        What it ended with, if anything.
    """
    if killed_at is not None:
        _kill_second_process(killed_at)
    together = "RANK" in os.environ
    sizes = Path(folder) / f"settings_{os.environ.get('RANK')}.json"
    sizes.write_text(json.dumps(tiny.settings("training", Path(folder)) | SETTINGS | changes))
    files = [CONFIGS / "train.json", sizes, *([MULTI_GPU] if together else [])]
    try:
        monai.bundle.run(
            run_id="training",
            config_file=[str(path) for path in files],
            meta_file=str(CONFIGS / "metadata.json"),
            logging_file=False,
            bundle_root=str(BUNDLE),
        )
    except Exception as error:
        return str(user_mistake(error) or repr(error))
    return ""


def _kill_second_process(batch: int) -> None:
    step = TrainingStep.__call__

    def killing(self: TrainingStep, engine: SupervisedTrainer, data: Any) -> dict[str, Any]:
        if rank() == 1 and engine.state.iteration == batch:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, engine, data)

    TrainingStep.__call__ = killing  # type: ignore[method-assign]  # in this process alone


def project(finished: Path, folder: Path) -> str:
    for part in ("data", "cache"):
        shutil.copytree(finished / part, folder / part)
    return str(folder)


def history(folder: str) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads((Path(folder) / "eval/history.json").read_text())
    return content


def weights(folder: str, name: str = "last.pt") -> dict[str, torch.Tensor]:
    state = torch.load(Path(folder) / "model" / name, weights_only=True)
    found: dict[str, torch.Tensor] = state["network"] if name == "last.pt" else state
    return found


def killed_and_taken_up(folder: str, changes: dict[str, Any]) -> list[str]:
    """What a training ends with whose second process was killed in its second epoch."""
    with pytest.raises(BrokenProcessPool):
        begun_in_two(trained, folder, changes, 6)
    assert len(history(folder)) == 1
    return begun_in_two(trained, folder, changes)


def test_two_processes_train_as_one_with_twice_the_batch(finished: Path, tmp_path: Path) -> None:
    """Also where they were taken up after one of them was killed."""
    one, two = (project(finished, tmp_path / name) for name in ("one", "two"))
    assert trained(one, {"batch_size": 4}) == ""
    assert killed_and_taken_up(two, {}) == ["", ""]
    first, second = history(one), history(two)
    assert [entry["epoch"] for entry in second] == [1, 2, 3]
    for expected, found in zip(first, second, strict=True):
        for name in ("train_loss", "loss_affinity", "loss_lsd", "gradient_norm", "lr"):
            assert found[name] == pytest.approx(expected[name], rel=1e-4), name
    assert abs(first[2]["train_loss"] - first[0]["train_loss"]) > 0.01
    expected_weights = weights(one)
    for name, value in weights(two).items():
        torch.testing.assert_close(value, expected_weights[name], rtol=1e-3, atol=1e-4)


RISKY = {
    "accumulation_steps": 2,
    "checkpointing": True,
    "context_factor": [1, 2, 3],
    "ema_decay": 0.5,
    "unet_dropout": 0.1,
    "unet_norm": {"name": "batch_renorm", "warmup_steps": 1, "momentum": 0.3},
}


def test_a_training_goes_on_as_if_one_of_its_processes_had_not_been_killed(
    finished: Path, tmp_path: Path
) -> None:
    """With dropout of each process's own, running statistics, averages and accumulation."""
    whole, stopped = (project(finished, tmp_path / name) for name in ("whole", "stopped"))
    assert begun_in_two(trained, whole, RISKY) == ["", ""]
    assert killed_and_taken_up(stopped, RISKY) == ["", ""]
    assert history(stopped) == history(whole)
    for name in ("last.pt", "model.pt"):
        expected = weights(whole, name)
        for part, value in weights(stopped, name).items():
            assert torch.equal(value, expected[part]), part
    assert not [name for name in weights(whole) if "module" in name]
