"""The four runs: from any folder, installed or not, interrupted and taken up again."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from monai.optimizers import WarmupCosineSchedule

from custom.features.cache import open_cache
from custom.volumes import open_volume
from tests.bundle import tiny
from tests.bundle.tiny import BUNDLE, ROOT

pytestmark = pytest.mark.slow

# Runs several command lines, each in a process of its own that shares the slow imports and nothing
# else. ``custom`` is hidden unless the folder or the configuration leads to it.
FORKS = """
import json, os, runpy, sys
import monai.bundle.__main__
sys.meta_path = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
assert "custom" not in sys.modules
for arguments in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        sys.argv = arguments[1:]
        runpy.run_module("monai.bundle", run_name="__main__")
        sys.exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"failed: {arguments}")
"""


def history(folder: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((folder / "eval" / "history.json").read_text())
    return entries


def model(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "model" / "model.json").read_text())
    return content


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    state = torch.load(folder / "model" / "last.pt", weights_only=True)
    weights: dict[str, torch.Tensor] = state["network"]
    return weights


def assert_same_weights(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert set(one) == set(two)
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


def assert_sound(folder: Path, epochs: int) -> None:
    """Every epoch once, and the model is that of the best of them."""
    entries = history(folder)
    assert [entry["epoch"] for entry in entries] == list(range(1, epochs + 1))
    best = min(entries, key=lambda entry: float(entry["voi"]))
    assert model(folder)["epoch"] == best["epoch"]
    assert model(folder)["validation"]["voi"] == best["voi"]
    weights = torch.load(folder / "model" / "model.pt", weights_only=True)
    if best["epoch"] == epochs:
        assert_same_weights(weights, last_weights(folder))
    assert not [name for name in tiny.files(folder) if name.endswith(".part")]


def untrained(finished: Path, folder: Path) -> Path:
    """A project with data and cache, and no training yet."""
    for name in ("data", "cache"):
        shutil.copytree(finished / name, folder / name)
    return folder


# --- what the runs leave ---


def test_the_four_runs_lead_from_raw_to_scores(finished: Path) -> None:
    assert_sound(finished, epochs=2)
    scores = json.loads((finished / "eval" / "scores.json").read_text())["entries"]
    assert [entry["id"] for entry in scores] == ["synthetic"]
    assert 0 < scores[0]["voi"] < 20
    segments = open_volume(str(finished / "output" / "synthetic.zarr" / "labels" / "segmentation"))
    assert segments.metadata.voxel_size_nm == tiny.VOXEL_SIZE
    assert segments.metadata.offset_nm == (0.0, 45 * tiny.VOXEL_SIZE[1], 0.0)


def test_the_model_tells_what_it_was_made_with(finished: Path) -> None:
    described = model(finished)
    assert described["config"]["epochs"] == 2  # overrides included
    assert described["config"]["network_def"]["_target_"] == "custom.networks.fusion.TokenUNet"
    assert described["features"]["channels"] == 16
    assert described["channels"] == {"affinities": [0, 4], "lsds": [4, 14]}
    assert described["split"]["validation"] == [
        {"id": "synthetic-validation", "offset": [0, 45, 0], "shape": [24, 19, 32]}
    ]
    (scored,) = described["volume_scores"].items()
    assert scored == ("synthetic-validation", described["validation"])
    (entry,) = (e for e in history(finished) if e["epoch"] == described["epoch"])
    assert entry["volume_scores"] == described["volume_scores"]
    assert described["segmentation"] in tiny.TRAINING["segmentation_grid"]  # type: ignore[operator]


def test_inference_from_raw_and_from_the_cache_predict_the_same(project: Path) -> None:
    tiny.run("inference", project, source="cache", section="validation")
    raw, cached = (
        zarr.open_array(project / "output" / f"{name}.zarr" / "affinities" / "s0", mode="r")[:]
        for name in ("synthetic", "synthetic-validation")
    )
    assert raw.shape == (4, 24, 19, 32)
    assert np.abs(raw.astype(int) - cached.astype(int)).max() <= 2  # of 255


def test_inference_again_replaces_its_own_result(project: Path) -> None:
    before = tiny.files(project / "output")
    tiny.run("inference", project, write_lsds=True)
    after = tiny.files(project / "output")
    assert before < after
    of_records = {name for name in after - before if name.startswith("runs/")}
    assert len(of_records) == 1
    assert all("/lsds/" in name for name in after - before - of_records)


# --- from any folder ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cwd", "bundle_root", "flags", "installed"),
    [
        pytest.param("/", str(BUNDLE), [], True, id="from /, installed"),
        pytest.param(str(BUNDLE), ".", ["-P"], False, id="-P"),
    ],
)
def test_all_four_runs_work_from_any_folder(
    tmp_path: Path, cwd: str, bundle_root: str, flags: list[str], installed: bool
) -> None:
    tiny.write_data(tmp_path)
    lines = [tiny.arguments(name, tmp_path, bundle_root) for name in tiny.RUNS]
    environment = tiny.environment() | ({"PYTHONPATH": str(ROOT)} if installed else {})
    done = subprocess.run(
        [sys.executable, *flags, "-c", FORKS, json.dumps(lines)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert_sound(tmp_path, epochs=2)
    assert (tmp_path / "eval" / "scores.json").exists()


# --- interrupted and taken up again ---


class Killed(BaseException):
    """Stands in for the end of the process."""


def killed_at(monkeypatch: pytest.MonkeyPatch, number: int, run: Callable[[], None]) -> None:
    """A run that dies just before it gives its ``number``-th file its name."""
    replace, calls = os.replace, 0

    def dying(source: Any, target: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(BaseException) as caught:
        patch.setattr(os, "replace", dying)
        run()
    chain: BaseException | None = caught.value
    while chain is not None and not isinstance(chain, Killed):
        chain = chain.__cause__ or chain.__context__
    assert isinstance(chain, Killed), repr(caught.value)


@pytest.mark.parametrize(
    "number",
    [pytest.param(n, marks=() if n == 9 else pytest.mark.slow) for n in (2, 4, 6, 8, 9, 12)],
)
def test_a_training_killed_between_any_two_files_ends_like_one_that_was_not(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folder = untrained(finished, tmp_path / "project")
    killed_at(monkeypatch, number, lambda: tiny.run("training", folder))
    tiny.run("training", folder)
    assert_sound(folder, epochs=2)
    assert history(folder) == history(finished)
    assert_same_weights(last_weights(folder), last_weights(finished))


def test_a_finished_training_is_left_alone(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    def state() -> dict[Path, tuple[int, int]]:
        paths = [p for p in project.rglob("*") if p.is_file() and p.name != ".lock"]
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in paths}

    before = state()
    with caplog.at_level("INFO", "custom"):
        tiny.run("training", project)
    assert state() == before
    assert "trained for 2 epochs already; raise epochs (2)" in caplog.text


@pytest.mark.slow
def test_more_epochs_go_on_along_the_schedule_of_the_new_length(project: Path) -> None:
    before = history(project)
    tiny.run("training", project, epochs=5)
    assert_sound(project, epochs=5)
    assert history(project)[:2] == before

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.002)
    schedule = WarmupCosineSchedule(optimizer, warmup_steps=10 // 20, t_total=10)
    rates = []
    for _ in range(10):
        optimizer.step()
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
    found = [entry["lr"] for entry in history(project)[2:]]
    assert found == pytest.approx([rates[5], rates[7], rates[9]])


def test_a_new_learning_rate_counts_for_a_training_that_is_taken_up(project: Path) -> None:
    tiny.run("training", project, epochs=4, learning_rate=0.0002)
    old, new = history(project)[0]["lr"], history(project)[2]["lr"]
    assert 0 < new < 0.0002 < old


@pytest.mark.parametrize(
    "loading",
    [
        pytest.param({"num_workers": 1}, marks=pytest.mark.slow),
        {"num_workers": 2, "workers": "threads", "pool_gib": 0.5, "feature_dtype": "float32"},
    ],
    ids=["process", "threads"],
)
def test_workers_give_the_same_training(
    finished: Path, tmp_path: Path, loading: dict[str, Any]
) -> None:
    folder = untrained(finished, tmp_path / "project")
    tiny.run("training", folder, **loading)
    # a process computes with one thread, so sums of float32 end in other last digits
    for name in ("train_loss", "loss_affinity", "loss_lsd"):
        alone, with_worker = ([e[name] for e in history(f)] for f in (finished, folder))
        np.testing.assert_allclose(with_worker, alone, rtol=1e-3)


@pytest.mark.slow
def test_a_training_on_cached_targets_is_the_one_on_computed_ones(
    finished: Path, tmp_path: Path
) -> None:
    losses = []
    for cached in (False, True):
        folder = untrained(finished, tmp_path / str(cached))
        targets = {key: tiny.NETWORK[key] for key in ("affinity_offsets", "lsd_sigma_nm")}
        if cached:
            tiny.run("preprocessing", folder, targets=targets)
        tiny.run("training", folder, symmetry="none", cached_targets=cached)
        losses.append([entry["train_loss"] for entry in history(folder)])
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_targets_of_other_settings_end_training_in_one_sentence(project: Path) -> None:
    targets = {"affinity_offsets": [[1, 0, 0]], "lsd_sigma_nm": None}
    tiny.run("preprocessing", project, targets=targets)
    action = partial(tiny.run, "training", project, symmetry="none", cached_targets=True)
    assert "differ from the configuration in affinity_offsets" in tiny.mistake(action)
    settings = {"affinity_offsets": tiny.NETWORK["affinity_offsets"], "lsd_sigma_nm": 32.0}
    tiny.run("preprocessing", project, targets=settings)
    action = partial(tiny.run, "training", project, cached_targets=True)
    assert "cached_targets needs symmetry 'none', got 'auto'" in tiny.mistake(action)


def test_training_reads_augmented_copies(finished: Path, tmp_path: Path) -> None:
    folder = untrained(finished, tmp_path / "copies")
    tiny.run("preprocessing", folder, augmented_copies=1)
    volumes = open_cache(folder / "cache", copies=True)
    assert [(v.section, v.copy) for v in volumes] == [
        ("training", 0),
        ("validation", 0),
        ("training", 1),
    ]
    tiny.run("training", folder)
    assert_sound(folder, 2)
    losses = [[entry["train_loss"] for entry in history(f)] for f in (finished, folder)]
    assert losses[0] != losses[1]
