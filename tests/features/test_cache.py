import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from funlib.geometry.roi import Roi

from custom.errors import InputError
from custom.features.cache import CachedVolume, VolumeWriter, open_cache
from custom.features.cache_files import VolumeFiles, volumes_in
from custom.features.spec import FeatureSpec
from custom.features.triplane import crop, upsample
from custom.planes import NORMAL_AXIS, PLANES

SHAPE = (20, 12, 30)
STEP = {0: 4.0, 1: 2.5, 2: 3.0}
START = {0: -1.5, 1: -2.0, 2: 0.0}
SPEC = FeatureSpec(
    backbone="folder",
    digest="0123",
    patch_size=8,
    channels=3,
    layers=(2,),
    final_norm=True,
    pixels_per_voxel=(2.0, 3.2, 8 / 3),
    window=64,
    overlap=0,
    stride=8,
    planes=PLANES,
    slice_step=(1, 1, 1),
    intensity_percentiles=(0.1, 99.9),
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.2, 0.2, 0.2),
    precision="float32",
    dtype="float16",
    layout="tokens",
)


def request(index: int = 0, section: str = "training", **changes: Any) -> dict[str, Any]:
    return {
        "entry": {"id": f"cube{index}", "section": section},
        "roi": {"offset": [5, 6, 7], "shape": list(SHAPE)},
        "voxel_size_nm": [8.0, 4.0, 4.5],
        "features": {**SPEC.to_json(), **changes},
    }


def tokens(plane: str) -> torch.Tensor:
    """Grid (C, slices, h, w) with one neighbour beyond the ROI."""
    normal = NORMAL_AXIS[plane]
    sizes = [
        SHAPE[a] if a == normal else int(-(-(SHAPE[a] - START[a]) // STEP[a])) + 1 for a in range(3)
    ]
    sizes.insert(0, sizes.pop(normal))
    generator = torch.Generator().manual_seed(normal)
    return torch.randn((3, *sizes), generator=generator).half()


def voxels() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "raw": rng.integers(0, 256, SHAPE, dtype=np.uint8),
        "gt": rng.integers(0, 5, SHAPE, dtype=np.uint32),
        "mask": rng.random(SHAPE) < 0.5,
    }


IDS = np.array([0, 7, 2**40, 2**63, 2**64 - 1], np.uint64)


def write(files: VolumeFiles, asked: dict[str, Any], labels: bool = True) -> None:
    writer = VolumeWriter(files, asked)
    if labels:
        writer.write_table("gt_ids", IDS)
    for name, values in voxels().items():
        if name == "raw" or labels:
            writer.create_voxels(name, SHAPE, values.dtype)
            writer.write_voxels(name, 0, values)
    for plane in PLANES:
        values = tokens(plane)
        writer.create_tokens(plane, values.shape, "float16")
        for begin in range(0, values.shape[1], 16):
            writer.write_tokens(plane, begin, values[:, begin : begin + 16])
    writer.finish({"planes": placements()})


def placements() -> dict[str, Any]:
    return {
        plane: {
            "start": [0.0 if a == NORMAL_AXIS[plane] else START[a] for a in range(3)],
            "step": [1.0 if a == NORMAL_AXIS[plane] else STEP[a] for a in range(3)],
        }
        for plane in PLANES
    }


@pytest.fixture
def volume(tmp_path: Path) -> CachedVolume:
    files = VolumeFiles(tmp_path, 0)
    write(files, request())
    return CachedVolume(files.arrays)


def test_a_volume_gives_back_what_was_written(volume: CachedVolume) -> None:
    whole = Roi((0, 0, 0), SHAPE)
    np.testing.assert_array_equal(volume.read_raw(whole), voxels()["raw"])
    labels, mask = volume.read_labels(whole)
    np.testing.assert_array_equal(labels, voxels()["gt"])
    np.testing.assert_array_equal(mask, voxels()["mask"])
    assert (labels.dtype, mask.dtype) == (np.uint32, np.bool_)
    np.testing.assert_array_equal(volume.label_ids(), IDS)
    for plane in PLANES:
        grid = volume.plane_grid(plane)
        assert torch.equal(grid.values, tokens(plane).movedim(1, 1 + NORMAL_AXIS[plane]))
        assert list(grid.start) == placements()[plane]["start"]
        assert list(grid.step) == placements()[plane]["step"]
    assert volume.spec == SPEC
    assert (volume.id, volume.section, volume.shape) == ("cube0", "training", SHAPE)
    assert volume.voxel_size_nm == (8.0, 4.0, 4.5)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize(
    "roi",
    [Roi((0, 0, 0), SHAPE), Roi((3, 5, 11), (9, 4, 13)), Roi((19, 0, 29), (1, 1, 1))],
    ids=str,
)
def test_a_crops_grid_is_that_of_the_whole_volume_cropped(
    volume: CachedVolume, plane: str, roi: Roi
) -> None:
    expected = crop(volume.plane_grid(plane), roi.offset, roi.shape)
    found = volume.plane_grid(plane, roi)
    assert torch.equal(found.values, expected.values)
    assert (found.start, found.step) == (expected.start, expected.step)
    whole = upsample(volume.plane_grid(plane), SHAPE, plane)[:, *roi.to_slices()]
    torch.testing.assert_close(upsample(found, roi.shape, plane), whole)


@pytest.mark.parametrize("plane", PLANES)
def test_tokens_beyond_the_grid_repeat_its_border(volume: CachedVolume, plane: str) -> None:
    grid = volume.plane_grid(plane).values.numpy()
    padded = np.pad(grid, [(0, 0), (40, 40), (40, 40), (40, 40)], mode="edge")
    for first, count in [
        ((-3, 2, -1), (5, 40, 4)),
        ((1, -9, 33), (2, 3, 4)),
        ((0, 0, 0), (1, 2, 3)),
    ]:
        inside = tuple(slice(40 + f, 40 + f + c) for f, c in zip(first, count, strict=True))
        found = volume.read_tokens(plane, Roi(first, count)).numpy()
        np.testing.assert_array_equal(found, padded[:, *inside])


def test_voxels_beyond_the_roi_are_zero_and_unmasked(volume: CachedVolume) -> None:
    roi = Roi((-2, 9, 25), (6, 5, 9))
    raw = np.pad(voxels()["raw"], 10)[8:14, 19:24, 35:44]
    np.testing.assert_array_equal(volume.read_raw(roi), raw)
    labels, mask = volume.read_labels(roi)
    np.testing.assert_array_equal(labels, np.pad(voxels()["gt"], 10)[8:14, 19:24, 35:44])
    np.testing.assert_array_equal(mask, np.pad(voxels()["mask"], 10)[8:14, 19:24, 35:44])
    assert not volume.read_labels(Roi((30, 30, 30), (2, 2, 2)))[1].any()


def test_a_volume_may_be_pickled_after_reading_and_read_from_threads(volume: CachedVolume) -> None:
    roi = Roi((1, 2, 3), (4, 5, 6))
    expected = volume.read_raw(roi)
    copy = pickle.loads(pickle.dumps(volume))
    assert copy._arrays == {}, "arrays are opened in the process that reads them"
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: copy.read_raw(roi), range(16)):
            np.testing.assert_array_equal(found, expected)


def test_arrays_are_plain_zarr_v2_in_small_chunks(volume: CachedVolume) -> None:
    group = zarr.open_group(volume.path, mode="r")
    assert group.metadata.zarr_format == 2
    np.testing.assert_array_equal(group["raw"][:], voxels()["raw"])
    np.testing.assert_array_equal(group["tokens_xz"][:], tokens("xz").numpy())
    assert group["tokens_xz"].chunks[0] == 3
    assert group["tokens_xz"].chunks[1] <= 16


def test_metadata_says_what_is_there(volume: CachedVolume) -> None:
    arrays = volume.metadata["arrays"]
    assert set(arrays) == {"raw", "gt", "gt_ids", "mask", *(f"tokens_{p}" for p in PLANES)}
    assert arrays["tokens_yz"]["shape"] == list(tokens("yz").shape)
    assert arrays["tokens_yz"]["dtype"] == "float16"
    files = [p for p in (volume.path / "gt").rglob("*") if p.is_file()]
    assert arrays["gt"]["bytes"] == sum(p.stat().st_size for p in files)


def test_a_cache_can_be_moved(volume: CachedVolume, tmp_path: Path) -> None:
    raw = volume.read_raw(Roi((0, 0, 0), SHAPE))
    (tmp_path / "moved").mkdir()
    for path in list(tmp_path.glob("volume_*")):
        path.rename(tmp_path / "moved" / path.name)
    moved = open_cache(tmp_path / "moved")[0]
    np.testing.assert_array_equal(moved.read_raw(Roi((0, 0, 0), SHAPE)), raw)


def test_a_volume_without_labels_says_so(tmp_path: Path) -> None:
    files = VolumeFiles(tmp_path, 0)
    write(files, request(), labels=False)
    volume = CachedVolume(files.arrays)
    assert not volume.has_labels
    with pytest.raises(ValueError, match="has no labels"):
        volume.read_labels(Roi((0, 0, 0), SHAPE))


def test_a_volume_exists_only_when_it_is_finished(tmp_path: Path) -> None:
    files = VolumeFiles(tmp_path, 0)
    writer = VolumeWriter(files, request())
    writer.create_voxels("raw", SHAPE, np.uint8)
    writer.write_voxels("raw", 0, voxels()["raw"])
    with pytest.raises(InputError, match="not finished: run preprocessing"):
        CachedVolume(files.arrays)
    with pytest.raises(InputError, match="volume 'cube0' is unfinished: run preprocessing"):
        open_cache(tmp_path)
    writer.finish({})
    assert not files.progress.exists()
    with pytest.raises(ValueError, match="is finished"):
        VolumeWriter(files, request())


def test_work_counts_again_only_for_the_same_request(tmp_path: Path) -> None:
    files = VolumeFiles(tmp_path, 0)
    writer = VolumeWriter(files, request())
    writer.create_tokens("xy", (3, 20, 4, 5), "float16")
    writer.write_tokens("xy", 0, torch.ones(3, 16, 4, 5).half())
    again = VolumeWriter(files, request())
    assert again.resumed
    assert again.create_tokens("xy", (3, 20, 4, 5), "float16") == 16
    other = VolumeWriter(files, request(window=128))
    assert not other.resumed
    assert other.create_tokens("xy", (3, 20, 6, 7), "float16") == 0
    assert not VolumeWriter(files, request()).resumed


def test_a_run_that_was_killed_while_removing_is_not_trusted(tmp_path: Path) -> None:
    files = VolumeFiles(tmp_path, 0)
    writer = VolumeWriter(files, request())
    writer.create_tokens("xy", (3, 20, 4, 5), "float16")
    writer.write_tokens("xy", 0, torch.ones(3, 16, 4, 5).half())
    seen: list[Any] = []

    class Killed(VolumeFiles):
        def remove_arrays(self) -> None:
            seen.append(json.loads(self.progress.read_text())["written"])

    VolumeWriter(Killed(tmp_path, 0), request(window=128))
    assert seen == [{}]


def test_opening_a_cache_selects_by_section_and_id(tmp_path: Path) -> None:
    for index, section in enumerate(["training", "training", "validation"]):
        write(VolumeFiles(tmp_path, index), request(index, section))
    assert [v.id for v in open_cache(tmp_path)] == ["cube0", "cube1", "cube2"]
    assert [v.id for v in open_cache(tmp_path, "training")] == ["cube0", "cube1"]
    assert [v.id for v in open_cache(tmp_path, ids=["cube2"])] == ["cube2"]
    with pytest.raises(InputError, match="no training volume 'cube2': run preprocessing"):
        open_cache(tmp_path, "training", ids=["cube2"])
    with pytest.raises(InputError, match="no test volumes: run preprocessing"):
        open_cache(tmp_path, "test")
    with pytest.raises(InputError, match="no volumes: run preprocessing"):
        open_cache(tmp_path / "nowhere")


def test_an_unfinished_volume_of_another_section_does_not_matter(tmp_path: Path) -> None:
    write(VolumeFiles(tmp_path, 0), request(0))
    VolumeWriter(VolumeFiles(tmp_path, 1), request(1, "test"))
    assert len(open_cache(tmp_path, "training")) == 1
    with pytest.raises(InputError, match="'cube1' is unfinished"):
        open_cache(tmp_path)


def test_a_cache_with_another_spec_is_refused(tmp_path: Path) -> None:
    write(VolumeFiles(tmp_path, 0), request(0))
    wanted = FeatureSpec.from_json({**SPEC.to_json(), "window": 128, "digest": "x"})
    with pytest.raises(InputError) as caught:
        open_cache(tmp_path, spec=wanted)
    assert "differs from the request in: digest (0123, not x), window (64, not 128). " in str(
        caught.value
    )
    moved = FeatureSpec.from_json({**SPEC.to_json(), "backbone": "elsewhere"})
    assert len(open_cache(tmp_path, spec=moved)) == 1
    write(VolumeFiles(tmp_path, 1), request(1, window=128))
    with pytest.raises(InputError, match=r"window \(128, not 64\)"):
        open_cache(tmp_path)


def test_what_is_not_a_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; choose another cache_dir"):
        volumes_in(tmp_path / "file")
    for name in ("volume_000000.zarr", "volume_other", "volume_000000_notes.txt"):
        folder = tmp_path / f"with {name}"
        folder.mkdir()
        (folder / name).mkdir()
        with pytest.raises(InputError, match=f"holds '{name}', which preprocessing did not write"):
            volumes_in(folder)
    original = tmp_path / "original"
    original.mkdir()
    (original / "volume_000000_metadata.json").write_text('{"volume_index": 0}')
    with pytest.raises(InputError, match="which preprocessing did not write"):
        open_cache(original)
