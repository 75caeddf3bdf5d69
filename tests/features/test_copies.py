from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from funlib.geometry.roi import Roi

from custom.errors import InputError
from custom.features.copies import IntensityChange, changed_volume, plan_copies, voxel_noise
from custom.features.intensity import to_unit_range
from custom.volumes import open_volume

INTENSITY: dict[str, Any] = {
    "contrast": [0.5, 1.5],
    "brightness": [-0.2, 0.3],
    "gamma": [0.7, 1.3],
    "noise": [0.01, 0.1],
}
SHAPE = (9, 14, 11)


def change(**values: float) -> IntensityChange:
    neutral = {"contrast": 1.0, "brightness": 0.0, "gamma": 1.0, "noise": 0.0}
    return IntensityChange(**{**neutral, **values}, noise_seed=5)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, [0, 0.25, 0.5, 1]),
        ({"contrast": 2.0}, [0, 0, 0.5, 1]),
        ({"contrast": 0.5}, [0.25, 0.375, 0.5, 0.75]),
        ({"brightness": 0.25}, [0.25, 0.5, 0.75, 1]),
        ({"gamma": 2.0}, [0, 0.0625, 0.25, 1]),
        ({"contrast": 0.5, "brightness": -0.25, "gamma": 2.0}, [0, 0.015625, 0.0625, 0.25]),
    ],
)
def test_a_row_typed_by_hand(values: dict[str, float], expected: list[float]) -> None:
    given = np.array([[[0, 0.25, 0.5, 1]]], np.float32)
    found = change(**values)(given, (0, 0, 0))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-6)


def test_boxes_of_changed_raw_agree_with_the_whole(tmp_path: Path) -> None:
    raw = np.random.default_rng(0).integers(0, 4000, SHAPE, dtype=np.uint16)
    np.save(tmp_path / "raw.npy", raw)
    source = open_volume(tmp_path / "raw.npy", (8, 4, 5))
    changed = changed_volume(source, (100, 3000), change(contrast=1.2, noise=0.2))
    assert changed.metadata == replace(source.metadata, dtype="float32")
    whole = changed.read(Roi((0, 0, 0), SHAPE))
    assert whole.dtype == np.float32
    assert whole.min() == 0 and whole.max() == 1
    for box in (
        Roi((0, 0, 0), (1, 14, 11)),
        Roi((3, 5, 2), (4, 2, 9)),
        Roi((8, 13, 10), (1, 1, 1)),
    ):
        np.testing.assert_array_equal(changed.read(box), whole[box.to_slices()])
    noise = whole - change(contrast=1.2)(to_unit_range(raw, (100, 3000)), (0, 0, 0))
    assert np.abs(noise).max() > 0.2


def test_noise_is_normal_and_independent_between_neighbours_and_seeds() -> None:
    noise = voxel_noise(3, (-2, 10**6, 5), (40, 50, 60))
    assert noise.dtype == np.float32
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    assert abs((np.abs(noise) < 1).mean() - 0.6827) < 0.005
    others = [noise[1:, :, :] * noise[:-1], noise[:, 1:] * noise[:, :-1]]
    others += [
        noise[:, :, 1:] * noise[:, :, :-1],
        noise * voxel_noise(4, (-2, 10**6, 5), noise.shape),
    ]
    assert all(abs(product.mean()) < 0.015 for product in others)
    assert len(np.unique(noise)) > 0.99 * noise.size


def test_draws_follow_from_seed_entry_and_copy_and_stay_in_their_ranges() -> None:
    drawn = {
        (seed, entry, copy): plan_copies(9, INTENSITY, seed).change(entry, copy)
        for seed in range(4)
        for entry in ("a", "b", "café")
        for copy in range(1, 9)
    }
    assert len(set(drawn.values())) == len(drawn)
    for (seed, entry, copy), found in drawn.items():
        assert plan_copies(copy, INTENSITY, seed).change(entry, copy) == found
        for name, (low, high) in INTENSITY.items():
            assert low <= found.to_json()[name] <= high
    contrasts = [found.contrast for found in drawn.values()]
    assert max(contrasts) - min(contrasts) > 0.9
    assert IntensityChange(**found.to_json()) == found


def test_a_range_that_is_left_out_changes_nothing_and_no_other_draw() -> None:
    full = plan_copies(1, INTENSITY).change("a", 1)
    part = plan_copies(1, {k: v for k, v in INTENSITY.items() if k != "contrast"}).change("a", 1)
    assert part.contrast == 1
    assert {**part.to_json(), "contrast": full.contrast} == full.to_json()


@pytest.mark.parametrize(
    ("count", "intensity", "seed", "message"),
    [
        (-1, INTENSITY, 0, "augmented_copies must be a whole number from 0 on, got -1"),
        (True, INTENSITY, 0, "augmented_copies must be"),
        (1, INTENSITY, 0.5, "seed must be"),
        (1, {}, 0, "copy_intensity changes nothing"),
        (1, {"gamma": [1, 1], "noise": [0, 0]}, 0, "copy_intensity changes nothing"),
        (1, {"blur": [0, 1]}, 0, "copy_intensity has the unknown key 'blur'"),
        (1, [1], 0, "copy_intensity must be a JSON object"),
        (0, {"contrast": 1.1}, 0, "copy_intensity's contrast must be a list of 2 numbers"),
        (0, {"contrast": [0, 1]}, 0, r"contrast must be \[low, high\] .*above 0, got \[0, 1\]"),
        (0, {"gamma": [2, 1]}, 0, "gamma must be"),
        (0, {"noise": [-0.1, 1]}, 0, "noise must be .*from 0 on"),
    ],
)
def test_a_mistake_is_one_sentence(count: Any, intensity: Any, seed: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_copies(count, intensity, seed)
