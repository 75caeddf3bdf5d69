"""Results of inference for tests: a few images with known voxels, in a known place."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from custom.outputs.images import begin, create
from custom.outputs.settings import OutputSettings
from custom.volumes import open_array

SHAPE = (37, 150, 131)  # three levels below it; no axis is a multiple of a chunk
SIZE = (40.0, 8.25, 12.5)
OFFSET = (80.5, -16.0, 25.0)
FAR = 1 << 40  # ids beyond 32 bits


def labels() -> NDArray[np.uint64]:
    """Random boxes of background and objects; ids up to beyond 2 ** 40."""
    rng = np.random.default_rng(0)
    values = np.zeros(SHAPE, dtype=np.uint64)
    for k in range(60):
        corner = [int(rng.integers(0, length)) for length in SHAPE]
        edges = [int(rng.integers(1, 40)) for _ in SHAPE]
        box = tuple(slice(c, c + e) for c, e in zip(corner, edges, strict=True))
        values[box] = k % 11 and FAR + k
    return values


def affinities() -> NDArray[np.uint8]:
    """Two channels of noise."""
    return np.random.default_rng(1).integers(0, 256, (2, *SHAPE)).astype(np.uint8)


def write(store: Path, name: str, values: NDArray[Any], settings: OutputSettings) -> None:
    """One image, its finest level."""
    path = create(store, name, values.shape, values.dtype, SIZE, OFFSET, settings, {})
    open_array(path).write(values).result()


def write_result(store: Path, settings: OutputSettings | None = None) -> dict[str, NDArray[Any]]:
    """Affinities and segments, without levels and table; what it holds, by name."""
    settings = settings or OutputSettings()
    begin(store, settings.version)
    images: dict[str, NDArray[Any]] = {"affinities": affinities(), "labels/segmentation": labels()}
    for name, values in images.items():
        write(store, name, values, settings)
    return images
