import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from custom.blockwise.arrays import open_store
from custom.blockwise.chain import block_chunks
from custom.blockwise.graph_database import found_at, graph_of, read_graph
from custom.blockwise.volume_run import segmented_block
from custom.errors import InputError
from custom.segmentation.component_segmenter import ComponentSegmenter
from custom.segmentation.fragments import connected_components
from custom.segmentation.region_graph import region_graph
from custom.segmentation.segmenter import MutexWatershedSegmenter
from custom.segmentation.watershed_segmenter import SeededWatershedSegmenter
from tests.blockwise.chains import (
    OFFSETS,
    SETTINGS,
    SHAPE,
    blocks_done,
    noisy,
    perfect,
    segmented,
    worms,
)
from tests.oracles import same_partition


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


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(ComponentSegmenter(OFFSETS), id="components"),
        pytest.param(SeededWatershedSegmenter(OFFSETS, seed_distance=2), id="seeded watershed"),
        pytest.param(MutexWatershedSegmenter(OFFSETS[1:3] + OFFSETS[4:6]), id="in sections"),
    ],
)
def test_so_do_the_other_methods(method, tmp_path):
    truth = connected_components(worms())
    if not any(offset[0] for offset in method.offsets):
        truth = connected_components(truth + np.arange(SHAPE[0]).reshape(-1, 1, 1) * 1000)
    found = segmented(tmp_path, perfect(truth, method.offsets), (4, 6, 9), method)
    assert same_partition(found, truth)


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
    """An object of which all that two of four blocks see is weak stays, for all of it is not."""
    truth = np.ones(SHAPE, np.int64)
    truth[:, :5] = 2
    values = perfect(truth)
    values[:3, :, :5, :8] //= 2
    values[:3, :, 5:] = np.where(values[:3, :, 5:] > 0, 120, 0)
    method = MutexWatershedSegmenter(OFFSETS, bias=-0.3, min_affinity=0.55)
    found = segmented(tmp_path, values, (7, 11, 4), method)
    assert same_partition(method(values), np.where(truth == 2, 1, 0))
    assert same_partition(found, method(values))


@pytest.mark.parametrize("covers_all", [True, False])
def test_masked_and_empty_blocks_have_no_fragments_and_one_voxel_objects_stay(tmp_path, covers_all):
    truth = connected_components(worms())
    inside = np.zeros(SHAPE, bool)
    inside[:, 1:9, 5:15] = True
    truth[:, 1:9, 5:15][:, :, -1] = 2**33  # a sheet in the mask
    truth = connected_components(truth)
    mask, offset = np.pad(inside, ((2, 0), (0, 0), (1, 3))), (2, 0, 1)
    if not covers_all:
        mask, offset = inside[:, 1:9, 5:15], (0, -1, -5)
    np.save(tmp_path / "mask.npy", mask)
    how = {"mask": str(tmp_path / "mask.npy"), "mask_offset": offset}
    found = segmented(tmp_path, perfect(truth), (4, 6, 5), **how)
    assert same_partition(found, connected_components(np.where(inside, truth, 0)))
    np.save(tmp_path / "mask.npy", np.ones_like(mask[:, :3]))
    found = segmented(tmp_path, perfect(truth), (4, 6, 5), **how)
    assert found.any(), "the new mask counts"
    assert not found[:, 4:].any()


def test_a_volume_without_any_object_is_background(tmp_path):
    found = segmented(tmp_path, np.zeros((6, *SHAPE), np.uint8), (4, 6, 9))
    assert found.shape == SHAPE
    assert not found.any()


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


def test_a_graph_of_another_run_is_refused():
    ids = np.array([2, 5, 2**40], dtype=np.uint64)
    assert found_at(ids, np.array([[2**40, 2]], dtype=np.uint64)).tolist() == [[2, 0]]
    for missing in (1, 4, 2**41):
        with pytest.raises(InputError, match=f"lacks fragment {missing}: .* remove the folder"):
            found_at(ids, np.array([2, missing], dtype=np.uint64))


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


@pytest.mark.parametrize(
    ("shape", "unit", "block"),
    [
        ((160, 160, 160), 64, (160, 160, 160)),
        ((161, 160, 160), 64, (128, 128, 128)),
        ((256, 256, 256), 64, (128, 128, 128)),
        ((20, 5000, 5000), 64, (20, 128, 128)),
        ((512, 512, 512), 256, (256, 256, 256)),
    ],
)
def test_a_volume_that_takes_much_memory_is_segmented_in_blocks(
    shape: tuple[int, int, int], unit: int, block: tuple[int, int, int]
) -> None:
    assert segmented_block(shape, unit) == block
