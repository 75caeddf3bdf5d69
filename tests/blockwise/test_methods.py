"""Seeded watershed and connected components block by block."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from custom.blockwise.arrays import open_store
from custom.blockwise.runs import run_tasks
from custom.blockwise.segmentation import segmentation_tasks
from custom.metrics import variation_of_information
from custom.segmentation.component_segmenter import ComponentSegmenter
from custom.segmentation.fragments import connected_components
from custom.segmentation.region_graph import region_graph
from custom.segmentation.segmenter import MutexWatershedSegmenter
from custom.segmentation.watershed_segmenter import SeededWatershedSegmenter
from custom.volumes import create_ome_zarr_array
from tests.oracles import same_partition
from tests.segmentation.laws import IN_PLANE, OFFSETS, cells, perfect

VOXEL_SIZE_NM = (40.0, 4.0, 8.0)
SHAPE = (11, 14, 17)
FACES = [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
BLOCKS = [pytest.param((6, 5, 17), id="whole along an axis"), pytest.param((4, 14, 9), id="uneven")]


def segmented(folder: Path, values, block, method) -> Any:
    """Segments and fragments (D, H, W) of affinities, block by block."""
    output, shape = folder / "volume.zarr", values.shape[1:]
    create_ome_zarr_array(
        output, "affinities", values.shape, np.uint8, "czyx", VOXEL_SIZE_NM, (0, 0, 0),
        (1, 8, 8, 8), {},
    ).write(values).result()  # fmt: skip
    tasks = segmentation_tasks(method, output, folder / "state", shape, block, VOXEL_SIZE_NM)
    run_tasks(tasks, folder / "state")
    names = ("labels/segmentation", "fragments")
    return [open_store(output / name / "s0").read().result() for name in names]


def noisy(truth, offsets=OFFSETS, seed=0):
    """Affinities of the truth with so much noise that objects are torn and joined."""
    random = np.random.default_rng(seed)
    noise = random.integers(0, 140, (len(offsets), *truth.shape))
    return np.abs(perfect(truth, offsets).astype(int) - noise).astype(np.uint8)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(
    "method",
    [
        SeededWatershedSegmenter(OFFSETS, seed_distance=2, boundary=0.9),
        ComponentSegmenter(OFFSETS),
    ],
    ids=["seeded watershed", "components"],
)
def test_perfect_affinities_give_back_the_truth(method, block, tmp_path):
    truth = cells(SHAPE, number=9)
    truth[5, 6, 7] = 99
    truth = connected_components(truth)
    found, _ = segmented(tmp_path, perfect(truth), block, method)
    assert same_partition(found, truth)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("small", ["background", "neighbours"])
@pytest.mark.parametrize(("threshold", "min_affinity"), [(0.6, 0.0), (0.62, 0.45)])  # 0.6: 153
def test_components_are_those_of_the_whole_volume(block, small, threshold, min_affinity, tmp_path):
    """Also those that borders of blocks cut, weak and small ones."""
    affinities = noisy(cells(SHAPE, number=9))
    method = ComponentSegmenter(OFFSETS, threshold, min_affinity, 6, small)
    found, fragments = segmented(tmp_path, affinities, block, method)
    expected = method(affinities)
    assert len(np.unique(fragments)) > len(np.unique(expected)) > 3
    assert same_partition(found, expected)


@pytest.mark.parametrize(
    "method",
    [
        MutexWatershedSegmenter(OFFSETS, bias=-0.7),
        SeededWatershedSegmenter(OFFSETS, seed_distance=3, threshold=None),
    ],
    ids=["mutex watershed", "seeded watershed"],
)
def test_no_block_unites_what_another_keeps_apart(method, tmp_path):
    found, fragments = segmented(
        tmp_path, noisy(cells((16, 22, 26), number=8)), (8, 11, 13), method
    )
    assert len(np.unique(found)) < 0.9 * len(np.unique(fragments))
    for block in product((0, 8), (0, 11), (0, 13)):
        box = tuple(slice(b, b + n) for b, n in zip(block, (8, 11, 13), strict=True))
        graph = region_graph(fragments[box], np.zeros((3, 8, 11, 13), np.uint8), FACES)
        ends = [[found[box][fragments[box] == graph.ids[i]][0] for i in e] for e in graph.edges]
        assert len(ends) > 3
        assert all(one != other for one, other in ends)


def test_without_an_offset_along_z_sections_stay_apart(tmp_path):
    affinities = noisy(cells(SHAPE, number=9), IN_PLANE)
    method = ComponentSegmenter(IN_PLANE, 0.6, min_size=4)
    found, _ = segmented(tmp_path, affinities, (4, 5, 9), method)
    assert same_partition(found, method(affinities))


def test_seeded_watershed_in_blocks_is_close_to_that_of_the_whole_volume(tmp_path):
    """Fragments at borders differ; segments hardly do."""
    truth = cells((16, 22, 26), number=8)
    affinities = noisy(truth)
    method = SeededWatershedSegmenter(OFFSETS, seed_distance=3, threshold=0.55, min_size=20)
    found, _ = segmented(tmp_path, affinities, (8, 11, 13), method)
    whole = method(affinities)
    assert sum(variation_of_information(truth, whole)) < 0.5
    blockwise = sum(variation_of_information(truth, found))
    assert blockwise < sum(variation_of_information(truth, whole)) + 0.05
    assert not ((found == 0) & (whole != 0)).any()
