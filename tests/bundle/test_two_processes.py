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


@pytest.fixture(scope="module")
def two(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a training of two processes."""
    folder = project(finished, tmp_path_factory.mktemp("two"))
    assert begun_in_two(trained, folder, {"unet_dropout": 0.0}) == ["", ""]
    return folder


def test_two_processes_train_as_one_with_twice_the_batch(
    finished: Path, two: str, tmp_path: Path
) -> None:
    one = project(finished, tmp_path / "one")
    assert trained(one, {"batch_size": 4, "unet_dropout": 0.0}) == ""
    first, second = history(one), history(two)
    assert [entry["epoch"] for entry in second] == [1, 2, 3]
    for expected, found in zip(first, second, strict=True):
        for name in ("train_loss", "loss_affinity", "loss_lsd", "gradient_norm", "lr"):
            assert found[name] == pytest.approx(expected[name], rel=1e-4), name
    assert abs(first[2]["train_loss"] - first[0]["train_loss"]) > 0.01
    expected_weights = weights(one)
    for name, value in weights(two).items():
        torch.testing.assert_close(value, expected_weights[name], rtol=1e-3, atol=1e-4)


def test_a_training_of_two_processes_goes_on_as_if_one_had_not_been_killed(
    finished: Path, two: str, tmp_path: Path
) -> None:
    folder = project(finished, tmp_path / "stopped")
    with pytest.raises(BrokenProcessPool):
        begun_in_two(trained, folder, {"unet_dropout": 0.0}, 6)
    assert len(history(folder)) == 1
    assert begun_in_two(trained, folder, {"unet_dropout": 0.0}) == ["", ""]
    assert history(folder) == history(two)
    for name in ("last.pt", "model.pt"):
        expected = weights(two, name)
        for part, value in weights(folder, name).items():
            assert torch.equal(value, expected[part]), part
