"""Affinities to segment block by block, and what was done of it, for tests."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from custom.blockwise.arrays import open_store
from custom.blockwise.runs import run_tasks
from custom.blockwise.segmentation import segmentation_tasks
from custom.segmentation.fragments import connected_components
from custom.segmentation.segmenter import MutexWatershedSegmenter
from custom.targets.affinities import affinities
from custom.volumes import create_ome_zarr_array

OFFSETS = [[d if a == axis else 0 for a in range(3)] for d in (1, 3) for axis in range(3)]
VOXEL_SIZE_NM = (40.0, 4.0, 8.0)
SHAPE = (7, 11, 16)
SETTINGS = {"bias": -0.5, "min_size": 9, "min_affinity": 0.3, "threshold": 0.55, "quantile": 0.6}


def perfect(labels, offsets=OFFSETS):
    return (255 * affinities(labels, offsets)[0]).astype(np.uint8)


def written(folder: Path, values) -> Path:
    """An OME-Zarr with affinities."""
    output = folder / "volume.zarr"
    create_ome_zarr_array(
        output, "affinities", values.shape, np.uint8, "czyx", VOXEL_SIZE_NM, (0, 0, 0),
        (1, 8, 8, 8), {},
    ).write(values).result()  # fmt: skip
    return output


def segmented(
    folder: Path, values, block, method=None, workers=None, **options: Any
) -> NDArray[np.uint64]:
    """Segments (D, H, W) of affinities, block by block."""
    output = folder / "volume.zarr"
    if not output.exists():
        written(folder, values)
    method = method or MutexWatershedSegmenter(OFFSETS, threshold=0.5)
    tasks = segmentation_tasks(
        method, output, folder / "state", values.shape[1:], block, VOXEL_SIZE_NM, **options
    )
    run_tasks(tasks, folder / "state", workers)
    return open_store(output / "labels/segmentation/s0").read().result()


def worms(shape=SHAPE, seed=0):
    """Objects that all go through the whole volume, and one-voxel ones between them."""
    random = np.random.default_rng(seed)
    z, y, x = np.indices(shape)
    wave = np.sin(x / 3 + seed) * 2 + np.cos(z / 2) * 2
    labels = connected_components(((y + wave) // 4).astype(np.int64) + 5)
    labels = labels + np.uint64(2**33)
    specks = random.random(shape) < 0.01
    labels[specks] = 2**40 + np.arange(np.count_nonzero(specks), dtype=np.uint64)
    return labels


def noisy(shape=SHAPE, offsets=OFFSETS, seed=0):
    """Affinities of which no two methods think alike."""
    random = np.random.default_rng(seed)
    clean = perfect(connected_components(worms(shape, seed)), offsets).astype(np.float64)
    return np.clip(0.6 * clean + random.normal(50, 40, clean.shape), 0, 255).astype(np.uint8)


def blocks_done(folder: Path) -> dict[str, int]:
    """How often the blocks of every task were processed."""
    return {
        name: sum(len(path.read_text().splitlines()) for path in (folder / name).glob("times/*"))
        for name in ("fragments", "regions", "graph", "relabel")
    }
