import threading
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import find_objects

from custom.targets import tiles
from custom.targets.lsds import local_shape_descriptors
from custom.targets.moments import WIDTH
from custom.targets.runs import runs_of

KERNEL = np.stack([[0.25, 0.5, 0.25], [-0.25, 0.0, 0.25], [0.25, 0.0, 0.25]])


def whole(labels):
    return tuple(slice(0, n) for n in labels.shape)


def work(labels):
    """Number of rows that were summed, and of tiles' voxels."""
    runs = runs_of(labels)
    table = tiles.tiles_of(runs.boxes(whole(labels)))
    out = np.zeros((10, *labels.shape), np.float32)
    rows = tiles.describe(
        runs, table, whole(labels), [KERNEL] * 3, [1e-3] * 3, range(10), out, threads=1
    )
    return rows, (table[:, 3::2] - table[:, 2::2]).prod(axis=1).sum()


def scattered(number, spacing, shape):
    """Objects of shape (3, 4, 5) at equal distances in a row along y."""
    labels = np.zeros(shape, np.int64)
    for i in range(number):
        labels[2:5, 1 + spacing * i : 5 + spacing * i, 3:8] = i + 1
    return labels


@given(labels=arrays(np.uint8, (9, 11, 10), elements=st.integers(0, 5)))
def test_tiles_hold_every_objects_box_once(labels):
    with mock.patch.object(tiles, "TILE", (4, 3, 7)):
        table = tiles.tiles_of(runs_of(labels).boxes(whole(labels)))
    count = np.zeros((6, *labels.shape), int)
    first = np.unique(table[:, 0])
    for run, _, z0, z1, y0, y1, x0, x1 in table:
        assert (z1 - z0 <= 4, y1 - y0 <= 3, x1 - x0 <= 7) == (True,) * 3
        count[np.searchsorted(first, run), z0:z1, y0:y1, x0:x1] += 1
    expected = np.zeros_like(count)
    boxes = [box for box in find_objects(labels) if box]
    for i, box in enumerate(boxes):
        expected[i, *box] = 1
    np.testing.assert_array_equal(count, expected)


def test_work_is_in_proportion_to_the_sum_of_the_boxes():
    one_rows, one_voxels = work(scattered(1, 9, (9, 200, 20)))
    assert one_voxels == 3 * 4 * 5
    for number in (2, 7, 20):
        rows, voxels = work(scattered(number, 9, (9, 200, 20)))
        assert (rows, voxels) == (number * one_rows, number * one_voxels)


def test_empty_space_around_objects_is_no_work():
    assert work(scattered(5, 9, (9, 60, 20))) == work(scattered(5, 9, (40, 300, 250)))


def test_work_of_an_object_does_not_exceed_its_rows_times_the_kernels_width():
    """A box of 12 x 11 x 40 voxels, two tiles wide: six sums along y, ten along z, per row."""
    labels = np.ones((12, 11, 40), int)
    rows, _ = work(labels)
    tiles_wide = -(-40 // WIDTH)
    assert rows <= tiles_wide * 12 * 11 * 2 * KERNEL.shape[1]


def cells(shape, seed=0):
    """Boxes of different sizes, one in another, with background between some."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int64)
    for number in range(1, 12):
        begin = rng.integers(0, shape)
        end = begin + rng.integers(1, 1 + np.asarray(shape) // 2)
        labels[tuple(slice(a, b) for a, b in zip(begin, end, strict=True))] = number
    return labels


@pytest.mark.parametrize("size", [(1, 1, 1), (4, 5, 6), (7, 64, 31)])
def test_there_are_no_seams_between_tiles(size):
    labels = cells((13, 17, 40))
    expected = local_shape_descriptors(labels, (1.5, 2.0, 3.0))
    with mock.patch.object(tiles, "TILE", size):
        result = local_shape_descriptors(labels, (1.5, 2.0, 3.0))
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_arrays_of_several_tiles_along_every_axis_have_no_seams():
    labels = np.zeros((140, 70, 70), dtype=np.int64)
    labels[2:139, 1:69, 3:69] = 7
    result = local_shape_descriptors(labels, (2, 1.5, 1))
    middle = result[:, 9:130, 7:63, 8:62]
    np.testing.assert_allclose(middle - middle[:, :1, :1, :1], 0, atol=1e-6)


def test_any_number_of_threads_gives_the_same_numbers():
    labels = cells((13, 17, 40), seed=1)
    kernels, box = [KERNEL] * 3, whole(labels)
    one, three, many = (
        tiles.described(labels, box, kernels, [1e-3] * 3, range(10), threads)
        for threads in (1, 3, 100)
    )
    np.testing.assert_array_equal(one, three)
    np.testing.assert_array_equal(one, many)


def test_a_loaders_thread_starts_no_others(monkeypatch):
    """Where torch has one thread, as in a loader's worker, LSDs have that one."""
    at_work = set()

    def describe_tiles(*_):
        at_work.add(threading.current_thread().name)
        return 0

    monkeypatch.setattr(tiles, "describe_tiles", describe_tiles)
    with ThreadPoolExecutor(1, "loader", torch.set_num_threads, (1,)) as pool:
        pool.submit(local_shape_descriptors, cells((13, 17, 40)), 2.0).result()
    assert at_work == {"loader_0"}
