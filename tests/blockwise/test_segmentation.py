from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from custom.blockwise.arrays import open_store
from custom.blockwise.chain import block_chunks
from custom.blockwise.graph_database import graph_of, read_graph
from custom.blockwise.runs import run_tasks
from custom.blockwise.segmentation import segmentation_tasks
from custom.segmentation.fragments import connected_components
from custom.segmentation.region_graph import region_graph
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


def noisy(shape=SHAPE, offsets=OFFSETS, seed=0):
    """Affinities of which no two methods think alike."""
    random = np.random.default_rng(seed)
    clean = perfect(connected_components(worms(shape, seed)), offsets).astype(np.float64)
    return np.clip(0.6 * clean + random.normal(50, 40, clean.shape), 0, 255).astype(np.uint8)


SETTINGS = {"bias": -0.5, "min_size": 9, "min_affinity": 0.3, "threshold": 0.55, "quantile": 0.6}


@pytest.mark.parametrize("settings", [{}, SETTINGS], ids=["fragments", "all settings"])
def test_one_block_gives_what_the_whole_volume_gives(settings, tmp_path):
    values, method = noisy(), MutexWatershedSegmenter(OFFSETS, **settings)
    found = segmented(tmp_path, values, SHAPE, method)
    assert len(np.unique(found)) > 5
    assert same_partition(found, method(values))


def test_the_graph_of_blocks_is_that_of_the_whole_volume(tmp_path):
    """Every pair has all its links, once, whichever way offsets lead and wherever they cross."""
    offsets = [(1, 0, 0), (0, -1, 0), (0, 0, 1), (-2, 0, 3), (0, 4, -1), (0, 0, -5)]
    method = MutexWatershedSegmenter(offsets, bias=-0.6, threshold=0.5, max_link=4)
    values = noisy(offsets=offsets)
    segmented(tmp_path, values, (3, 4, 6), method)
    fragments = open_store(tmp_path / "volume.zarr/fragments/s0").read().result()
    whole = region_graph(fragments, values[:5], offsets[:5])
    found = read_graph(graph_of(None, tmp_path / "state", "volume").open("r"))
    assert len(found.ids) > 50
    linked = np.diff(found.starts) > 0
    assert linked.sum() > 100
    for name in ("ids", "sizes", "levels", "counts"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name), name)
    np.testing.assert_array_equal(found.edges[linked], whole.edges)
    np.testing.assert_array_equal(np.diff(found.starts)[linked], np.diff(whole.starts))
    touching = region_graph(fragments, np.zeros((3, *SHAPE), np.uint8), np.eye(3, dtype=int))
    contacts = found.contacts > 0
    np.testing.assert_array_equal(found.edges[contacts], touching.edges)
    np.testing.assert_array_equal(found.contacts[contacts], touching.counts)


def test_small_and_thin_objects_are_judged_whole_wherever_borders_cut_them(tmp_path):
    """A thread of 16 voxels stays though each block has 4; a crumb of 6 in two blocks goes."""
    truth = np.ones(SHAPE, np.int64)
    truth[3, 5, :] = 2
    truth[3, 8, 2:8] = 3
    method = MutexWatershedSegmenter(OFFSETS, min_size=10, threshold=0.9, max_link=1)
    whole = method(perfect(truth))
    found = segmented(tmp_path, perfect(truth), (7, 11, 4), method)
    assert same_partition(whole, np.where(truth == 3, 1, truth))
    assert same_partition(found, whole)


def test_weak_objects_are_judged_whole_wherever_borders_cut_them(tmp_path):
    """An object of which the part in every other block is weak stays if all of it is not."""
    truth = np.ones(SHAPE, np.int64)
    truth[:, :5] = 2
    values = perfect(truth)
    values[:3, :, :5, :4] //= 2
    values[:3, :, 5:] = np.where(values[:3, :, 5:] > 0, 120, 0)
    method = MutexWatershedSegmenter(OFFSETS, bias=-0.3, min_affinity=0.55)
    found = segmented(tmp_path, values, (7, 11, 4), method)
    assert same_partition(method(values), np.where(truth == 2, 1, 0))
    assert same_partition(found, method(values))


def test_masked_and_empty_blocks_have_no_fragments_and_one_voxel_objects_stay(tmp_path):
    truth = connected_components(worms())
    inside = np.zeros(SHAPE, bool)
    inside[:, 1:9, 5:15] = True
    truth[:, 1:9, 5:15][:, :, -1] = 2**33  # a sheet in the mask
    truth = connected_components(truth)
    np.save(tmp_path / "mask.npy", np.pad(inside, ((2, 0), (0, 0), (1, 3))))
    found = segmented(
        tmp_path, perfect(truth), (4, 6, 5), mask=str(tmp_path / "mask.npy"), mask_offset=(2, 0, 1)
    )
    assert same_partition(found, connected_components(np.where(inside, truth, 0)))


def test_a_volume_without_any_object_is_background(tmp_path):
    found = segmented(tmp_path, np.zeros((6, *SHAPE), np.uint8), (4, 6, 9))
    assert found.shape == SHAPE
    assert not found.any()


def blocks_done(folder: Path) -> dict[str, int]:
    """How often the blocks of every task were processed."""
    return {
        name: sum(len(path.read_text().splitlines()) for path in (folder / name).glob("times/*"))
        for name in ("fragments", "regions", "graph", "relabel")
    }


def test_only_what_a_changed_setting_matters_to_begins_anew(tmp_path):
    values, method = noisy(), MutexWatershedSegmenter(OFFSETS, threshold=0.9, max_link=1)
    block, state = (7, 11, 8), tmp_path / "state"
    first = segmented(tmp_path, values, block, method)
    stamp = (state / "fragments/times").stat().st_mtime_ns
    assert blocks_done(state) == {"fragments": 2, "regions": 2, "graph": 1, "relabel": 2}
    lower = segmented(tmp_path, values, block, method.with_settings(threshold=0.2))
    assert len(np.unique(lower)) < len(np.unique(first))
    assert (state / "fragments/times").stat().st_mtime_ns == stamp
    again = segmented(tmp_path, values, block, method)
    np.testing.assert_array_equal(again, first)


@pytest.mark.slow
def test_workers_give_what_one_process_gives(tmp_path):
    values, method = noisy(), MutexWatershedSegmenter(OFFSETS, **SETTINGS)
    alone = segmented(tmp_path / "alone", values, (4, 6, 9), method)
    many = segmented(tmp_path / "many", values, (4, 6, 9), method, workers=2)
    np.testing.assert_array_equal(many, alone)


@given(st.tuples(*[st.integers(1, 200)] * 3), st.tuples(*[st.integers(1, 300)] * 3))
def test_blocks_share_no_chunk(block, shape):
    for size, length, chunk in zip(block, shape, block_chunks(block, shape), strict=True):
        assert 1 <= chunk <= 64
        assert size >= length or size % chunk == 0
