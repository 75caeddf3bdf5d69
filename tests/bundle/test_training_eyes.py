"""What one can see of a training: TensorBoard, pictures, the report, MLflow."""

from pathlib import Path
from typing import Any

import pytest

from tests.bundle import tiny
from tests.events import curves, points, read

pytestmark = pytest.mark.slow

VOLUME = "synthetic-validation"
OFFSETS = ("1_0_0", "0_1_0", "0_0_1", "0_5_0")
STEPS = (
    *("train_loss", "loss_affinity", "loss_lsd", "lr", "gradient_norm"),
    *("samples_per_second", "voxels_per_second", "data_wait_share"),
)
PROMISED = {
    *(f"steps/{name}" for name in STEPS),
    *("train_loss", "loss_affinity", "loss_lsd", "lr", "gradient_norm", "best/voi"),
    *("voi", "voi_split", "voi_merge", "adapted_rand", "affinity_f1", "cremi"),
    *(f"volumes/{VOLUME}/{name}" for name in ("voi_split", "voi_merge", "adapted_rand")),
    *(f"affinity_f1/{VOLUME}/{offset}" for offset in OFFSETS),
    *(f"speed/{name}" for name in STEPS[-3:]),
    *("loss_weights/affinity", "loss_weights/lsd", "memory/process_mib"),
}


def untrained(finished: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name in ("data", "cache"):
        (folder / name).symlink_to(finished / name)
    return folder


@pytest.fixture(scope="module")
def taken_up(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project trained for two epochs, then for a third."""
    folder = untrained(finished, tmp_path_factory.mktemp("eyes"))
    for epochs in (2, 3):
        tiny.run("training", folder, log_interval=1, epochs=epochs, pictures_kept=2)
    return folder


def test_tensorboard_has_every_promised_curve_and_no_point_twice(taken_up: Path) -> None:
    found = curves(taken_up / "eval")
    assert found >= PROMISED
    for name in found:
        steps = [step for step, _ in points(taken_up / "eval", name)]
        assert steps == sorted(set(steps)), name
    assert [s for s, _ in points(taken_up / "eval", "steps/train_loss")] == [1, 2, 3, 4, 5, 6]
    assert [s for s, _ in points(taken_up / "eval", "voi")] == [2, 4, 6]


def test_the_latest_pictures_are_there(taken_up: Path) -> None:
    events = read(taken_up / "eval" / "pictures")
    for name in ("validation", "validation_sections"):
        assert [event.step for event in events.Images(name)] == [4, 6]
    names = {path.name for path in (taken_up / "eval").iterdir()}
    assert {"panel_0002.png", "sections_0003.gif", "report.html"} < names
    assert "panel_0001.png" not in names


def test_the_report_is_of_the_whole_training(taken_up: Path) -> None:
    page = (taken_up / "eval" / "report.html").read_text()
    assert "Epoch 3 of 3, 6 batches" in page
    for text in (VOLUME, "features#window", "sections_0003.gif", "synthetic"):
        assert text in page


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"output_type": "labels", "class_of_labels": "foreground",
         "loss": {"_target_": "custom.class_losses.ClassLoss", "layout": "@channels"}},
        {"use_raw": True, "token_channels": 0},
        {"use_raw": False, "source": "raw"},
        {"context_factor": 2},
        {"dimensions": 2, "crop_size": [1, 16, 16], "unet_strides": [[1, 2, 2]],
         "affinity_offsets": [[0, 1, 0], [0, 0, 1]]},
    ],
    ids=["labels", "raw_only", "tokens_only, live", "context", "two dimensions"],
)  # fmt: skip
def test_other_trainings_can_be_seen_too(
    finished: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    folder = untrained(finished, tmp_path / "project")
    tiny.run("training", folder, epochs=1, log_interval=2, **settings)
    score = "dice" if "output_type" in settings else "voi"
    assert points(folder / "eval", f"best/{score}")[0][0] == 2
    assert read(folder / "eval" / "pictures").Images("validation_sections")
    assert "panel_0001.png" in (folder / "eval" / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MLflow uses what SQLAlchemy and others give up
def test_mlflow_tracks_losses_and_scores_of_a_training_that_is_taken_up(
    finished: Path, tmp_path: Path
) -> None:
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    folder = untrained(finished, tmp_path / "project")
    for epochs in (1, 2):
        tiny.run("training", folder, epochs=epochs, tracking="mlflow")
    database = folder / "eval" / "mlruns.db"
    client = MlflowClient(f"sqlite:///{database}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "monai_experiment"]
    runs = client.search_runs([experiment.experiment_id])
    losses, scores = (
        sorted(
            (point.step, point.value)
            for run in runs
            for point in client.get_metric_history(run.info.run_id, name)
        )
        for name in ("train_loss", "voi")
    )
    assert [step for step, _ in losses] == [1, 2, 3, 4]
    assert [step for step, _ in scores] == [1, 2]
    drawn = [value for _, value in points(folder / "eval", "voi")]  # in float32
    assert [value for _, value in scores] == pytest.approx(drawn)
