from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import label as components

from bench import features, targets
from bench.figures import Figure
from bench.float64 import largest_differences
from tests.bundle.tiny import BACKBONE
from tests.oracles import lsds_by_loop

SIGMA, SIZE = (16.0, 12.0, 20.0), (8.0, 4.0, 10.0)


def some_labels() -> np.ndarray:
    labels = np.random.default_rng(0).integers(0, 4, (3, 4, 5)).repeat(2, axis=2)
    labels[0, 0, :3] = 2**40
    return labels


def test_the_definition_in_float64_is_that_of_the_loop_over_voxels() -> None:
    labels = some_labels()
    expected = lsds_by_loop(labels, SIGMA, SIZE)
    wrong = expected.copy()
    wrong[6, 0, 0, 1] += 0.25  # of the largest id
    exact, off = largest_differences([expected, wrong], labels, SIGMA, SIZE)
    assert exact < 1e-6
    assert off == pytest.approx(0.25, abs=1e-6)
    assert largest_differences([wrong], labels, SIGMA, SIZE, [1, 2, 3])[0] < 1e-6


def test_scattered_objects_are_as_many_as_asked_for_and_do_not_touch() -> None:
    labels = targets.scattered(20, edge=36)
    assert components(labels, np.ones((3, 3, 3)))[1] == len(np.unique(labels)) - 1 == 20


def test_synthetic_labels_fill_the_volume_with_winding_objects() -> None:
    labels = targets.packed((8, 20, 24), 6)
    assert set(np.unique(labels)) <= set(range(1, 7))
    assert len(np.unique(labels)) > 3


def test_lsd_figures_of_a_tiny_cube(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(targets, "labels_of", lambda data: targets.packed((9, 11, 12), 4))
    found = {f.name: f.value for f in targets.lsd_figures(None, tmp_path, sizes=(9, 5))}
    assert len([name for name in found if "_5" in name]) == len(found) / 2
    assert found["lsd_speedup"] == found["lsd_lite_seconds"] / found["lsd_seconds"]
    assert found["lsd_largest_difference"] < 1e-4
    assert found["lsd_largest_difference_to_lsd_lite_5"] < 2e-3
    assert 0 < found["lsd_solid_share"] <= 1


def test_figures_of_small_objects(tmp_path: Path) -> None:
    found = {f.name: f.value for f in targets.object_figures(None, tmp_path, (2, 5))}
    assert {"lsd_2_objects_seconds", "lsd_5_objects_cpu_seconds"} <= found.keys()
    assert found["lsd_objects_largest_difference"] < 1e-4


def test_parts_are_run_alone_and_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        targets, "PARTS", {"a": lambda *_: [Figure("x", 1.0, "s")], "b": lambda *_: []}
    )
    assert targets.target_figures(None, tmp_path, ["a"]) == [Figure("targets.x", 1.0, "s")]
    assert targets.target_figures(None, tmp_path) == [Figure("targets.x", 1.0, "s")]
    with pytest.raises(SystemExit, match="must be one of a, b, got c"):
        targets.target_figures(None, tmp_path, ["c"])


@pytest.mark.slow
def test_sample_costs_of_a_tiny_cube(tmp_path: Path) -> None:
    volume = features.cached_cube(features.Setting(BACKBONE, cube=32, crop=16), tmp_path)
    found = {f.name: f.value for f in targets.sample_costs(volume, 16, 2)}
    parts = ("crop", "tokens", "orientation", "affinities", "lsds", "weights")
    assert list(found) == ["sample_cpu_seconds", *(f"sample_{p}_cpu_seconds" for p in parts)]
    assert all(value > 0 for value in found.values())
