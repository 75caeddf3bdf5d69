from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore

from custom.blockwise.arrays import open_store
from custom.blockwise.runs import run_tasks
from custom.blockwise.segmentation import segmentation_tasks
from custom.segmentation.fragments import connected_components
from custom.segmentation.segmenter import MutexWatershedSegmenter
from custom.targets.affinities import affinities
from custom.volumes import create_ome_zarr_array
from tests.oracles import same_partition

OFFSETS = [[d if a == axis else 0 for a in range(3)] for d in (1, 3) for axis in range(3)]
VOXEL_SIZE_NM = (40.0, 4.0, 8.0)
SHAPE = (7, 11, 16)


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
    folder: Path, values, block, method=None, order=None, **options: Any
) -> tensorstore.TensorStore:
    """Segments (D, H, W) of affinities, block by block."""
    output = folder / "volume.zarr"
    if not output.exists():
        written(folder, values)
    method = method or MutexWatershedSegmenter(OFFSETS, threshold=0.5)
    tasks = segmentation_tasks(
        method, output, folder / "state", values.shape[1:], block, VOXEL_SIZE_NM, **options
    )
    run_tasks(tasks, folder / "state")
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


@pytest.mark.parametrize(
    ("block", "threshold"),
    [
        pytest.param(SHAPE, 0.5, id="one block"),
        pytest.param((64, 64, 64), None, id="larger than the volume"),
        pytest.param((4, 11, 5), None, id="whole along an axis"),
        pytest.param((4, 6, 9), 0.5, id="uneven"),
    ],
)
def test_perfect_affinities_give_back_the_truth_for_any_blocks(block, threshold, tmp_path):
    truth = connected_components(worms())
    method = MutexWatershedSegmenter(OFFSETS, threshold=threshold, max_link=1)
    found = segmented(tmp_path, perfect(truth), block, method)
    assert found.dtype == np.uint64
    assert same_partition(found, truth)
    assert sorted(np.unique(found)) == list(range(1, int(truth.max()) + 1))
