from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from custom.errors import InputError
from custom.features import intensity
from custom.features.intensity import measure_intensity_window, to_uint8, to_unit_range
from custom.volumes import Volume, open_volume


def volume(folder: Path, values: NDArray[np.generic]) -> Volume:
    np.save(folder / "raw.npy", values)
    return open_volume(folder / "raw.npy", (8.0, 8.0, 8.0))


def test_a_small_volume_is_measured_whole(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(100, 20, (7, 9, 11))
    found = measure_intensity_window(volume(tmp_path, values), (1, 95))
    assert found == pytest.approx(tuple(np.percentile(values, (1, 95))))


def test_a_large_volume_is_measured_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intensity, "BLOCK", 2)
    monkeypatch.setattr(intensity, "BLOCKS_PER_AXIS", 3)
    ramp = np.arange(60, dtype=np.float32)[:, None, None] + np.zeros((60, 5, 31), np.float32)
    large = volume(tmp_path, ramp)
    read = large.read
    sizes: list[int] = []
    monkeypatch.setattr(large, "read", lambda roi: sizes.append(roi.size) or read(roi))
    assert measure_intensity_window(large, (0, 100)) == (0, 59)
    assert measure_intensity_window(large, (0, 100)) == (0, 59)
    assert sum(sizes) == 2 * (3 * 2) * 5 * (3 * 2)


@pytest.mark.parametrize(
    ("value", "message"),
    [(7, "constant"), (np.nan, "NaN or infinite"), (np.inf, "NaN or infinite")],
)
def test_raw_without_grey_values_is_refused(tmp_path: Path, value: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure_intensity_window(volume(tmp_path, np.full((4, 5, 6), value)), (0.1, 99.9))


def test_uint8_raw_is_kept_and_other_raw_is_scaled_by_its_window() -> None:
    values = np.array([-5, 0, 100, 200, 400], np.int16).reshape(5, 1, 1)
    assert to_uint8(values, (0, 200)).ravel().tolist() == [0, 0, 128, 255, 255]
    assert to_unit_range(values, (0, 200)).ravel().tolist() == [0, 0, 0.5, 1, 1]
    grey = np.array([0, 7, 255], np.uint8).reshape(3, 1, 1)
    assert to_uint8(grey, (5, 6)) is grey
