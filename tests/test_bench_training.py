from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bench import features, training
from custom.datasets import CropDataset
from custom.step_timing import StepTimes
from tests.bundle.tiny import BACKBONE, NETWORK

CHANGES: dict[str, Any] = {
    "features#window": 64,
    "features#pixels_per_voxel": 1.0,
    **{key: value for key, value in NETWORK.items() if key != "token_channels"},
    "num_workers": 0,
}


@pytest.mark.slow
def test_steps_are_timed_from_the_cache_and_on_the_fly_after_batches_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = features.Setting(BACKBONE, cube=32, crop=16)
    sources = sources_timed(monkeypatch)
    found = training.training_figures(setting, tmp_path, steps=2, live_steps=1, changes=CHANGES)
    values = {figure.name.removeprefix("training."): figure.value for figure in found}
    assert values["step_speedup"] == values["live_step_seconds"] / values["step_seconds"] > 0
    assert all(0 < values[f"{kind}data_wait_share"] < 1 for kind in ("", "live_"))
    assert sources == [("cache", 2), ("raw", 1)]

    given = {
        **training._given(setting, tmp_path, features.open_cache(tmp_path / "cache")[0]),
        **CHANGES,
    }
    asked: list[int] = []
    sample = CropDataset.__getitem__

    def counted(self: CropDataset, number: int) -> Any:
        asked.append(number)
        return sample(self, number)

    monkeypatch.setattr(CropDataset, "__getitem__", counted)
    times = training.step_times(given, steps=4, ahead=2)
    assert (times.steps, times.samples, times.voxels) == (4, 4, 4 * 16**3)
    assert asked[-6:] == list(range(6))


def sources_timed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str | None, int]]:
    """Gets the source of features and the steps of every measurement."""
    sources: list[tuple[str | None, int]] = []
    step_times = training.step_times

    def noted(changes: Mapping[str, Any], steps: int, ahead: int = 3) -> StepTimes:
        sources.append((changes.get("source"), steps))
        return step_times(changes, steps, ahead)

    monkeypatch.setattr(training, "step_times", noted)
    return sources
