"""Samples of random values, as CropDataset hands them to transforms."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch

from custom.planes import NORMAL_AXIS, PLANES

SHAPE = (6, 7, 9)
HALO = (1, 3, 2)
VOXEL_SIZE = (8.0, 4.0, 4.0)
ISOTROPIC = (5.0, 5.0, 5.0)


def random_crop(
    shape: Sequence[int] = SHAPE,
    voxel_size: Sequence[float] = ISOTROPIC,
    planes: Sequence[str] = (),
    steps: Sequence[float] = (2.0, 3.0, 2.5),
    halo: Sequence[int] = HALO,
    seed: int = 0,
) -> dict[Hashable, Any]:
    """Raw in [-1, 1], labels 0 to 3, nine voxels in ten annotated, tokens of the planes."""
    rng = np.random.default_rng(seed)
    outer = [n + 2 * h for n, h in zip(shape, halo, strict=True)]
    sample: dict[Hashable, Any] = {
        "image": torch.from_numpy(rng.uniform(-1, 1, (1, *shape)).astype(np.float32)),
        "labels": torch.from_numpy(rng.integers(0, 4, (1, *outer))),
        "mask": torch.from_numpy(rng.random((1, *outer)) < 0.9),
        "voxel_size_nm": torch.tensor(voxel_size),
    }
    for plane in planes:
        step = [1.0 if a == NORMAL_AXIS[plane] else s for a, s in enumerate(steps)]
        start = [0.0 if a == NORMAL_AXIS[plane] else -0.4 * s for a, s in enumerate(steps)]
        count = [int(np.ceil((n - b) / s)) for n, b, s in zip(shape, start, step, strict=True)]
        values = rng.uniform(0.5, 1.5, (3, *count)).astype(np.float16)
        sample[f"tokens_{plane}"] = torch.from_numpy(values)
        sample[f"placement_{plane}"] = torch.tensor([start, step], dtype=torch.float32)
    return sample


def all_planes(**changes: Any) -> dict[Hashable, Any]:
    return random_crop(planes=PLANES, **changes)


def copied(sample: dict[Hashable, Any]) -> dict[Hashable, Any]:
    return {key: value.clone() for key, value in sample.items()}


def assert_unchanged(
    found: dict[Hashable, Any], sample: dict[Hashable, Any], but: Sequence[str] = ()
) -> None:
    """All entries but some are the same, with the same types."""
    assert found.keys() == sample.keys()
    for key, value in sample.items():
        assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape), key
        if key not in but:
            assert torch.equal(found[key], value), key


def assert_alike(counts: Sequence[int], expected: float) -> None:
    """Counts of cells of the same probability: none is off by 4.5 standard deviations."""
    for count in counts:
        assert abs(count - expected) <= 4.5 * expected**0.5, (count, expected)
