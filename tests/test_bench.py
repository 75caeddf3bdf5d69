import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from bench import features, run
from bench.figures import Figure, publish
from tests.bundle.tiny import BACKBONE


@pytest.fixture
def fake_demo(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A demo that takes no time and writes what a real one leaves."""
    commands: list[list[str]] = []

    def call(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        folder = Path(command[-1])
        (folder / "eval").mkdir(parents=True)
        record = {"step": "training", "seconds": 60.5, "peak_mib": 700.0}
        (folder / "steps.json").write_text(json.dumps([record]))
        scores = {"entries": [{"voi": 0.5, "adapted_rand": 0.05}]}
        (folder / "eval" / "scores.json").write_text(json.dumps(scores))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(run.subprocess, "run", call)
    return commands


def test_results_are_machine_versions_and_a_flat_list_of_figures(
    fake_demo: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(run, "version", lambda package: f"version of {package}")
    monkeypatch.setattr(run, "feature_figures", lambda setting, folder: [Figure("x", 1.5, "1")])
    monkeypatch.setattr(run, "target_figures", lambda data, folder: [Figure("y", 2.5, "s")])
    monkeypatch.setattr(run, "training_figures", lambda setting, folder: [Figure("z", 3.5, "1")])
    run.bench()
    results = json.loads((tmp_path / "results.json").read_text())
    assert {"cpu", "cores", "memory_mib"} <= set(results["machine"])
    assert results["machine"]["cores"] >= 1
    assert results["versions"]["torch"] == "version of torch"
    assert results["figures"] == [
        {"name": "demo.training.seconds", "value": 60.5, "unit": "s"},
        {"name": "demo.training.peak_memory", "value": 700.0, "unit": "MiB"},
        {"name": "demo.voi", "value": 0.5, "unit": "bits"},
        {"name": "demo.adapted_rand", "value": 0.05, "unit": "1"},
        {"name": "x", "value": 1.5, "unit": "1"},
        {"name": "y", "value": 2.5, "unit": "s"},
        {"name": "z", "value": 3.5, "unit": "1"},
    ]
    assert results["features_of"] == {"data": "synthetic", "backbone": "random DINOv3 ViT-S"}
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_demo_can_be_reused(fake_demo: list[list[str]], tmp_path: Path) -> None:
    run.demo_figures(tmp_path / "demo")
    assert fake_demo[0][-2:] == ["--out", str(tmp_path / "demo")]


def test_a_failed_demo_stops_the_bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failed = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(run.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SystemExit, match="demo failed with status 1"):
        run.demo_figures(tmp_path)


@pytest.mark.slow
def test_feature_figures_of_a_tiny_cube(tmp_path: Path) -> None:
    setting = features.Setting(BACKBONE, cube=32, crop=16, samples=2)
    found = {
        f.name.removeprefix("features."): f for f in features.feature_figures(setting, tmp_path)
    }
    assert all(figure.value > 0 for figure in found.values())
    voxels = (tmp_path / "cache").glob("volume_000000.zarr/**/*")
    size = sum(file.stat().st_size for file in voxels if file.is_file())
    assert found["cache_bytes_per_voxel"].value == size / 32**3
    assert found["extract_peak_memory"].value > 100
    assert found["dense_extract_peak_memory"].value > 100
    assert 2 * 16 <= found["dense_cache_bytes_per_voxel"].value < 2 * 16 + 10
    assert not (tmp_path / "dense_cache").exists()
    assert found["int8_cache_bytes_per_voxel"].value < found["cache_bytes_per_voxel"].value


def test_figures_of_numpy_are_written_as_numbers(tmp_path: Path) -> None:
    publish(tmp_path / "results.json", {}, [Figure("ratio", np.float32(0.5), "1")])
    (figure,) = json.loads((tmp_path / "results.json").read_text())["figures"]
    assert figure == {"name": "ratio", "value": 0.5, "unit": "1"}
