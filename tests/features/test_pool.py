import logging
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from funlib.geometry import Roi

from custom.errors import InputError
from custom.features import cache
from custom.features.cache import CachedVolume, open_cache
from custom.features.cache_files import VolumeFiles
from custom.features.pool import GIB, PooledVolume, bytes_in_memory, pooled
from custom.planes import PLANES
from tests.features.cached import IDS, SHAPE, request, tokens, voxels, write
from tests.features.test_dense import write_dense

BOXES = [
    Roi((0, 0, 0), SHAPE),
    Roi((7, 3, 11), (5, 6, 9)),
    Roi((-2, -1, 25), (9, 8, 9)),
    Roi((15, 9, -3), (8, 6, 7)),
]
WITHOUT_TOKENS = IDS.nbytes + sum(values.nbytes for values in voxels().values())
WHOLE = WITHOUT_TOKENS + sum(2 * tokens(plane).numel() for plane in PLANES)


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    for index in range(3):
        write(VolumeFiles(tmp_path, index), request(index))
    return tmp_path


def everything(volume: CachedVolume, roi: Roi) -> list[np.ndarray]:
    grids = [volume.plane_grid(plane, roi).values.numpy() for plane in PLANES]
    return [*grids, volume.read_raw(roi), *volume.read_labels(roi), volume.label_ids()]


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_volume_in_memory_gives_what_one_on_disk_gives(tmp_path: Path, dtype: str) -> None:
    write(VolumeFiles(tmp_path, 0), request(dtype=dtype))
    (on_disk,) = open_cache(tmp_path)
    (in_memory,) = pooled([on_disk], 1)
    assert isinstance(in_memory, PooledVolume)
    for _ in range(2):
        for roi in BOXES:
            found, expected = everything(in_memory, roi), everything(on_disk, roi)
            for one, other in zip(found, expected, strict=True):
                assert one.dtype == other.dtype
                np.testing.assert_array_equal(one, other)
    assert torch.equal(in_memory.plane_grid("xz").values, on_disk.plane_grid("xz").values)
    size = WHOLE if dtype == "float16" else (WHOLE + WITHOUT_TOKENS) // 2
    assert in_memory.bytes_kept == size == bytes_in_memory(on_disk)  # int8 stays int8


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_dense_volume_may_stay_in_memory_too(tmp_path: Path, dtype: str) -> None:
    on_disk = write_dense(VolumeFiles(tmp_path, 0), dtype)
    (in_memory,) = pooled([on_disk], 1)
    for roi in (None, BOXES[0], BOXES[1]):
        assert torch.equal(in_memory.read_features(roi), on_disk.read_features(roi))
    in_memory.read_raw(BOXES[1])
    assert isinstance(in_memory, PooledVolume)
    assert in_memory.bytes_kept == bytes_in_memory(on_disk)
    assert bytes_in_memory(on_disk, tokens=False) == voxels()["raw"].nbytes


def test_what_was_read_once_is_not_read_again(cache_dir: Path) -> None:
    volume = PooledVolume(cache_dir / "volume_000000.zarr")
    before = everything(volume, BOXES[1])
    shutil.rmtree(cache_dir / "volume_000000.zarr")
    for one, other in zip(everything(volume, BOXES[1]), before, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("room", "tokens", "kept"),
    [
        (0, True, [0, 0, 0]),
        (WHOLE - 1, True, [0, 0, 0]),
        (WHOLE, True, [1, 0, 0]),
        (2.5 * WHOLE, True, [1, 1, 0]),
        (3 * WHOLE, True, [1, 1, 1]),
        (2 * WITHOUT_TOKENS, False, [1, 1, 0]),
    ],
)
def test_the_pool_never_holds_more_than_it_may(
    cache_dir: Path, caplog: pytest.LogCaptureFixture, room: float, tokens: bool, kept: list[int]
) -> None:
    with caplog.at_level(logging.INFO):
        volumes = pooled(open_cache(cache_dir), room / GIB, tokens)
    assert [volume.id for volume in volumes] == ["cube0", "cube1", "cube2"]
    assert [isinstance(volume, PooledVolume) for volume in volumes] == kept
    assert (f"{sum(kept)} of 3 volumes" in caplog.text) == (room > 0)
    held = [v for v in volumes if isinstance(v, PooledVolume)]
    assert all(volume.bytes_kept == 0 for volume in held)  # nothing is read before it is needed
    for volume in volumes:
        for roi in BOXES:
            volume.read_raw(roi), volume.read_labels(roi)
            if tokens:
                volume.plane_grid("xy", roi), volume.plane_grid("xz", roi)
    assert sum(volume.bytes_kept for volume in held) <= room


def test_a_volume_that_does_not_fit_leaves_its_room_to_the_next(cache_dir: Path) -> None:
    write(VolumeFiles(cache_dir, 3), request(3), labels=False)
    first, *_, last = pooled(open_cache(cache_dir), (WHOLE - 1) / GIB)
    assert (isinstance(first, PooledVolume), isinstance(last, PooledVolume)) == (False, True)


def test_changing_what_was_read_does_not_change_what_is_kept(cache_dir: Path) -> None:
    volume = PooledVolume(cache_dir / "volume_000000.zarr")
    expected = [values.copy() for values in everything(volume, BOXES[0])]
    for values in everything(volume, BOXES[0]):
        values[...] = 1
    for one, other in zip(everything(volume, BOXES[0]), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_threads_share_what_is_kept_and_read_it_once(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, names = cache.read_array, []

    def counting(array: Any, path: Path, *box: Any) -> Any:
        names.append(path.name)
        return read(array, path, *box)

    monkeypatch.setattr(cache, "read_array", counting)
    volume = PooledVolume(cache_dir / "volume_000000.zarr")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: everything(volume, BOXES[n % 4]), range(32)))
    assert sorted(names) == ["gt", "gt_ids", "mask", "raw", *(f"tokens_{p}" for p in PLANES)]
    for number, values in enumerate(found):
        for one, other in zip(values, found[number % 4], strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_pickled_volume_leaves_its_memory_behind(cache_dir: Path) -> None:
    volume = PooledVolume(cache_dir / "volume_000000.zarr")
    size = len(pickle.dumps(volume))
    expected = everything(volume, BOXES[2])
    assert len(pickle.dumps(volume)) == size
    copy = pickle.loads(pickle.dumps(volume))
    assert copy.bytes_kept == 0
    for one, other in zip(everything(copy, BOXES[2]), expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("pool_gib", [-1, "4", True, float("nan"), float("inf")])
def test_rejects(pool_gib: Any) -> None:
    with pytest.raises(InputError, match="pool_gib must be a number from 0 on, got"):
        pooled([], pool_gib)
