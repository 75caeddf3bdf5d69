from pathlib import Path
from typing import Any

import pytest

from bench import features, training
from custom.datasets import CropDataset
from tests.bundle.tiny import BACKBONE, NETWORK

CHANGES: dict[str, Any] = {
    "features#window": 64,
    "features#pixels_per_voxel": 1.0,
    **{key: value for key, value in NETWORK.items() if key != "token_channels"},
    "num_workers": 0,
}


@pytest.mark.slow
def test_a_sample_that_takes_long_is_waited_for_and_features_on_the_fly_take_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = features.Setting(BACKBONE, cube=32, crop=16)
    found = training.training_figures(setting, tmp_path, steps=2, live_steps=1, changes=CHANGES)
    values = {figure.name.removeprefix("training."): figure.value for figure in found}
    assert values["step_speedup"] == values["live_step_seconds"] / values["step_seconds"]
    assert values["live_step_seconds"] > values["step_seconds"] > 0
    assert 0 < values["data_wait_share"] < values["live_data_wait_share"] < 1

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
