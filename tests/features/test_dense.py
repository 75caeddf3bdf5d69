from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from funlib.geometry.roi import Roi
from hypothesis import given
from hypothesis import strategies as st

from custom.features import dense, dense_writer
from custom.features.cache import RAW_KEPT, CachedVolume
from custom.features.cache_check import check_cache
from custom.features.cache_files import DENSE_CHUNK, VolumeFiles, create_array
from custom.features.dense import dense_features, tiles
from custom.features.dense_writer import DenseVolumeWriter
from custom.features.triplane import PlaneGrid, average
from custom.planes import NORMAL_AXIS, PLANES
from tests.features.cached import SHAPE, placements, request, tokens, voxels

pytestmark = pytest.mark.slow

LAYOUT = {"layout": "dense"}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many boxes in a small volume, so that most of them are inside."""
    monkeypatch.setattr(dense, "TILE", (6, 5, 7))
    monkeypatch.setattr(dense_writer, "DENSE_CHUNK", (6, 5, 7))


def grids(planes: tuple[str, ...] = PLANES) -> dict[str, PlaneGrid]:
    found = {}
    for plane in planes:
        (z, y, x), (dz, dy, dx) = placements()[plane].values()
        values = tokens(plane).movedim(1, 1 + NORMAL_AXIS[plane])
        found[plane] = PlaneGrid(values, (z, y, x), (dz, dy, dx))
    return found


def write_dense(
    files: VolumeFiles, dtype: str = "float16", planes: tuple[str, ...] = PLANES
) -> CachedVolume:
    writer = DenseVolumeWriter(files, request(**LAYOUT, dtype=dtype, planes=list(planes)))
    writer.create_voxels("raw", SHAPE, np.uint8)
    writer.write_voxels("raw", 0, voxels()["raw"])
    for plane in planes:
        values = tokens(plane).to(getattr(torch, "float16" if dtype == "int8" else dtype))
        done = writer.create_tokens(plane, values.shape, dtype)
        for begin in range(done, values.shape[1], 10):
            writer.write_tokens(plane, begin, values[:, begin : begin + 10])
        writer.complete_tokens(plane)
    writer.combine({plane: (grid.start, grid.step) for plane, grid in grids(planes).items()})
    finish(writer)
    return CachedVolume(files.arrays)


def finish(writer: DenseVolumeWriter) -> None:
    writer.finish({"planes": placements(), "intensity_window": [0, 255], "raw_rule": RAW_KEPT})


@given(st.tuples(*[st.integers(1, 20)] * 3), st.integers(0, 3))
def test_boxes_cover_every_voxel_once(shape: tuple[int, ...], finished: int) -> None:
    first = finished * 6
    seen = np.zeros(shape, int)
    last = first
    for box, done in tiles(shape, first):
        seen[box.to_slices()] += 1
        assert (seen[first:done] == 1).all(), "sections that count as done are done"
        last = done
    assert (seen[first:] == 1).all() and not seen[:first].any()
    assert last == max(first, shape[0]), "all of them are done at the end"


@pytest.mark.parametrize("planes", [PLANES, ("xz",), ("xy", "yz")], ids=str)
def test_features_box_by_box_are_the_average_of_the_planes(planes: tuple[str, ...]) -> None:
    found = dense_features(grids(planes), SHAPE, torch.float32)
    torch.testing.assert_close(found, average(grids(planes), SHAPE), atol=1e-5, rtol=0)
    half = dense_features(grids(planes), SHAPE, torch.float16)
    torch.testing.assert_close(half, found.half(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("planes", [PLANES, ("xz",)], ids=str)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_cached_features_are_the_average_of_the_planes(
    tmp_path: Path, dtype: str, planes: tuple[str, ...]
) -> None:
    volume = write_dense(VolumeFiles(tmp_path, 0), dtype, planes)
    expected = average(grids(planes), SHAPE)
    found = volume.read_features()
    assert str(found.dtype) == f"torch.{dtype}"
    torch.testing.assert_close(found.float(), expected, atol=1e-3, rtol=0)
    assert expected.std() > 0.2


def test_int8_features_are_within_half_a_step(tmp_path: Path) -> None:
    volume = write_dense(VolumeFiles(tmp_path, 0), "int8")
    scales = torch.tensor(volume.metadata["arrays"]["features"]["scales"]).view(-1, 1, 1, 1)
    found, expected = volume.read_features(), average(grids(), SHAPE)
    assert found.dtype == torch.float16
    assert ((found.float() - expected).abs() <= scales / 2 + 1e-3).all()
    largest = (found.float().abs().amax((1, 2, 3)) / scales.flatten()).round()
    assert (largest == 127).all(), "the whole range is used"


@pytest.mark.parametrize("roi", [Roi((0, 0, 0), SHAPE), Roi((3, 2, 5), (7, 9, 11))], ids=str)
def test_a_box_is_the_crop_of_the_whole(tmp_path: Path, roi: Roi) -> None:
    volume = write_dense(VolumeFiles(tmp_path, 0))
    whole = volume.read_features()
    assert torch.equal(volume.read_features(roi), whole[:, *roi.to_slices()])


def test_a_box_that_sticks_out_is_refused(tmp_path: Path) -> None:
    volume = write_dense(VolumeFiles(tmp_path, 0))
    with pytest.raises(ValueError, match="is not inside"):
        volume.read_features(Roi((0, 0, -1), (2, 2, 2)))


def test_only_the_voxels_features_are_left(tmp_path: Path) -> None:
    volume = write_dense(VolumeFiles(tmp_path, 0))
    assert {p.name for p in volume.path.iterdir()} == {"zarr.json", "raw", "features"}
    assert set(volume.metadata["arrays"]) == {"raw", "features"}
    assert volume.metadata["arrays"]["features"]["shape"] == [3, *SHAPE]


class Killed(BaseException):
    """Nobody catches it."""


STEPS = ("_write", "_remove_grid", "finish")


class Fuse:
    """Lets so many steps of the writer pass, then kills."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        for name in STEPS:
            monkeypatch.setattr(DenseVolumeWriter, name, self.on(getattr(DenseVolumeWriter, name)))

    def on(self, work: Any) -> Any:
        def step(*args: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise Killed
            return work(*args)

        return step

    def survives(self, steps: int, files: VolumeFiles, dtype: str) -> bool:
        """Write with so many steps to live."""
        self.left = steps
        try:
            write_dense(files, dtype)
        except Killed:
            assert not files.finished
            return False
        return True


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_run_that_was_killed_anywhere_ends_with_the_same_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """Killed before every single step in turn, and once more two steps later."""
    monkeypatch.setattr(dense, "TILE", (10, 12, 15))
    whole = write_dense(VolumeFiles(tmp_path / "whole", 0), dtype).read_features()
    fuse = Fuse(monkeypatch)
    for steps in range(100):
        files = VolumeFiles(tmp_path / f"killed{steps}", 0)
        if fuse.survives(steps, files, dtype):
            break
        assert fuse.survives(2, files, dtype) or fuse.survives(1000, files, dtype)
        assert torch.equal(CachedVolume(files.arrays).read_features(), whole)
        assert {p.name for p in files.arrays.iterdir()} == {"zarr.json", "raw", "features"}
        names = sorted(p.name for p in files.cache_dir.iterdir())
        assert names == ["volume_000000.zarr", "volume_000000_metadata.json"]
    assert 14 < steps < 99


def test_grids_are_not_asked_for_again_when_the_voxels_are_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = VolumeFiles(tmp_path, 0)

    def die(self: DenseVolumeWriter, metadata: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(DenseVolumeWriter, "finish", die)
        write_dense(files)
    writer = DenseVolumeWriter(files, request(**LAYOUT, dtype="float16", planes=list(PLANES)))
    for plane in PLANES:
        shape = tokens(plane).shape
        assert writer.create_tokens(plane, shape, "float16") == shape[1]
    assert not list(files.arrays.glob("grid_*"))


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_check_finds_a_sound_volume_sound(tmp_path: Path, dtype: str) -> None:
    write_dense(VolumeFiles(tmp_path, 0), dtype)
    assert check_cache(tmp_path, show_progress=False).defects == ()


def test_check_and_reading_name_a_damaged_chunk(tmp_path: Path) -> None:
    volume = write_dense(VolumeFiles(tmp_path, 0))
    chunk = volume.path / "features" / "c" / "0" / "1" / "0" / "2"
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"!")
    (line,) = check_cache(tmp_path, show_progress=False).defects
    assert line.startswith("volume_000000 (cube0), features, c/0/1/0/2: ")
    with pytest.raises(ValueError, match=r"file 'c/0/1/0/2' of array 'features' is missing or dam"):
        volume.read_features()


def test_check_finds_missing_and_wrong_features(tmp_path: Path) -> None:
    volume = write_dense(VolumeFiles(tmp_path, 0))
    create_array(tmp_path / "other", (3, 20, 12, 29), "float16", (3, *DENSE_CHUNK), "none")
    (volume.path / "features").rename(tmp_path / "features")
    (line,) = check_cache(tmp_path, show_progress=False).defects
    assert "features" in line
    (tmp_path / "other").rename(volume.path / "features")
    found = check_cache(tmp_path, show_progress=False).defects
    assert any("shape [3, 20, 12, 29], not [3, 20, 12, 30]" in line for line in found)
