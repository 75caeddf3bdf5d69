import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from funlib.geometry.roi import Roi

from custom.errors import InputError
from custom.features import cache_files
from custom.features.cache import CachedVolume, open_cache
from custom.features.cache_files import COMPRESSIONS, VolumeFiles, token_array, volumes_in
from custom.features.cache_writer import VolumeWriter
from custom.features.spec import FeatureSpec
from custom.features.stored_grids import read_entries
from custom.features.triplane import crop, upsample
from custom.planes import NORMAL_AXIS, PLANES
from tests.features.cached import IDS, SHAPE, SPEC, placements, request, tokens, voxels, write


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
    name, grid = token_array(plane), volume.plane_grid(plane).values.numpy()
    shape = volume.metadata["arrays"][name]["shape"]
    padded = np.pad(grid, [(0, 0), (40, 40), (40, 40), (40, 40)], mode="edge")
    for first, count in [
        ((-3, 2, -1), (5, 40, 4)),
        ((1, -9, 33), (2, 3, 4)),
        ((0, 0, 0), (1, 2, 3)),
    ]:
        inside = tuple(slice(40 + f, 40 + f + c) for f, c in zip(first, count, strict=True))
        entries = Roi(first, count)
        found = read_entries(partial(volume._tokens, name), shape, plane, entries)
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


def test_arrays_are_plain_zarr_v3_in_small_chunks(volume: CachedVolume) -> None:
    group = zarr.open_group(volume.path, mode="r")
    assert group.metadata.zarr_format == 3
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
    with pytest.raises(InputError, match=r"or whose volume_000000_metadata\.json is lost"):
        volumes_in(tmp_path / "with volume_000000.zarr")
    original = tmp_path / "original"
    original.mkdir()
    (original / "volume_000000_metadata.json").write_text('{"volume_index": 0}')
    with pytest.raises(InputError, match="which preprocessing did not write"):
        open_cache(original)


def test_a_cache_of_an_earlier_version_is_refused_and_says_what_to_do(tmp_path: Path) -> None:
    write(VolumeFiles(tmp_path, 0), request())
    path = tmp_path / "volume_000000_metadata.json"
    path.write_text(path.read_text().replace("emseg feature cache 2", "emseg feature cache 1"))
    for action in (volumes_in, open_cache, lambda at: CachedVolume(at / "volume_000000.zarr")):
        with pytest.raises(InputError, match=r"without checksums: remove it .* run preprocessing"):
            action(tmp_path)


# --- damage ---


def flip(byte: int) -> Callable[[Path], object]:
    def damage(chunk: Path) -> None:
        content = bytearray(chunk.read_bytes())
        content[byte] ^= 4
        chunk.write_bytes(content)

    return damage


def truncate(chunk: Path) -> None:
    chunk.write_bytes(chunk.read_bytes()[:-5])


def empty(chunk: Path) -> None:
    chunk.write_bytes(b"")


DAMAGES = [flip(0), flip(37), flip(-1), flip(-5), truncate, empty, Path.unlink]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_damaged_chunk_is_named_when_it_is_read(
    tmp_path: Path, compression: str, dtype: str
) -> None:
    write(VolumeFiles(tmp_path, 0), request(dtype=dtype), compression=compression)
    volume = CachedVolume(tmp_path / "volume_000000.zarr")
    places = {"tokens_xz": "c/0/0/1/0", "gt": "c/0/0/0", "mask": "c/0/0/0", "raw": "c/0/0/0"}
    readers = {
        "tokens_xz": lambda: volume.plane_grid("xz", Roi((4, 0, 0), (12, 2, 2))),
        "raw": lambda: volume.read_raw(Roi((0, 0, 0), (2, 2, 2))),
        "gt": lambda: volume.read_labels(Roi((0, 0, 0), (2, 2, 2))),
        "mask": lambda: volume.read_labels(Roi((0, 0, 0), (2, 2, 2))),
    }
    for name, file in places.items():
        chunk = volume.path / name / file
        content = chunk.read_bytes()
        for damage in DAMAGES:
            damage(chunk)
            with pytest.raises(InputError) as caught:
                readers[name]()
            for words in (f"'{volume.path}'", f"'{file}'", f"'{name}'", "run preprocessing again"):
                assert words in str(caught.value)
            assert "\n" not in str(caught.value)
            chunk.write_bytes(content)
        readers[name]()


def test_a_lost_array_is_named(volume: CachedVolume) -> None:
    (volume.path / "raw" / "zarr.json").unlink()
    with pytest.raises(InputError, match=r"file 'zarr\.json' of array 'raw' is missing"):
        volume.read_raw(Roi((0, 0, 0), SHAPE))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_compression_changes_no_value(tmp_path: Path, compression: str) -> None:
    write(VolumeFiles(tmp_path, 0), request(), compression=compression)
    volume = CachedVolume(tmp_path / "volume_000000.zarr")
    grid = volume.plane_grid("yz")
    assert torch.equal(grid.values, tokens("yz").movedim(1, 3))
    found = json.loads((volume.path / "tokens_yz" / "zarr.json").read_text())["codecs"]
    names = [c.get("configuration", {}).get("cname", c["name"]) for c in found]
    assert names == ["bytes", *([] if compression == "none" else [compression]), "crc32c"]


# --- int8 ---


def test_int8_features_are_read_within_half_a_step_of_every_channel(tmp_path: Path) -> None:
    write(VolumeFiles(tmp_path, 0), request(dtype="int8"))
    volume = CachedVolume(tmp_path / "volume_000000.zarr")
    for plane in PLANES:
        expected = tokens(plane).movedim(1, 1 + NORMAL_AXIS[plane]).float()
        found = volume.plane_grid(plane)
        assert found.values.dtype == torch.float16
        step = expected.abs().amax((1, 2, 3), keepdim=True) / 127
        error = (found.values.float() - expected).abs()
        assert (error <= step / 2 + expected.abs() * 2**-10).all()
        described = volume.metadata["arrays"][f"tokens_{plane}"]
        assert described["dtype"] == "int8"
        torch.testing.assert_close(torch.tensor(described["scales"]), step.flatten())
        box = volume.plane_grid(plane, Roi((3, 5, 11), (9, 4, 13)))
        assert torch.equal(box.values, crop(found, (3, 5, 11), (9, 4, 13)).values)
    assert not list(volume.path.glob("*float16*"))


def test_an_int8_cache_is_refused_where_float16_is_wanted(tmp_path: Path) -> None:
    write(VolumeFiles(tmp_path, 0), request())
    wanted = FeatureSpec.from_json({**SPEC.to_json(), "dtype": "int8"})
    with pytest.raises(InputError, match=r"dtype \(float16, not int8\).*change features\.dtype"):
        open_cache(tmp_path, spec=wanted)


# --- disks that do not take it ---


FULL_DISK = """
import sys, torch
from pathlib import Path
from custom.errors import InputError
from custom.features.cache_files import VolumeFiles
from custom.features.cache_writer import VolumeWriter
files = VolumeFiles(Path(sys.argv[1]), 0)
writer = VolumeWriter(files, {})
writer.create_tokens("xy", (64, 64, 16, 16), "float16")
try:
    for begin in range(0, 64, 16):
        writer.write_tokens("xy", begin, torch.ones(64, 16, 16, 16).half())
except InputError as error:
    print(error)
print(VolumeWriter(files, {}).create_tokens("xy", (64, 64, 16, 16), "float16"))
"""


@pytest.mark.slow
def test_a_full_disk_ends_in_a_sentence_and_keeps_what_is_written(tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=1m tmpfs "$1" && exec "$2" -c "$3" "$1"'
    outside = ["unshare", "-rm", "sh", "-c", script, "sh"]
    if shutil.which("unshare") is None or subprocess.call([*outside, str(tmp_path), "true", ""]):
        pytest.skip("mounting a small disk needs a user namespace")
    done = subprocess.run(
        [*outside, str(tmp_path), sys.executable, FULL_DISK],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    sentence, kept = done.stdout.splitlines()
    assert "tokens_xy' cannot be written (No space left on device): make room" in sentence
    assert kept == "16"


def test_tensorstores_word_for_a_full_disk_is_understood(tmp_path: Path) -> None:
    text = "Failed to write 43012 bytes to file 3: No space left on device [os_error_code='28']"
    sentence = r"No space left on device\): make room or choose"
    with pytest.raises(InputError, match=sentence), cache_files.writing(tmp_path):
        raise ValueError(f"RESOURCE_EXHAUSTED: {text}")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "No space left on device): make room"),
        (errno.EROFS, "Read-only file system): allow writing there"),
        (errno.EACCES, "Permission denied): allow writing there"),
    ],
)
def test_a_marker_that_cannot_be_written_is_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    def failing(path: Path, content: bytes) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(cache_files, "write_atomically", failing)
    with pytest.raises(InputError) as caught:
        VolumeWriter(VolumeFiles(tmp_path, 0), request())
    assert words in str(caught.value)
    assert "volume_000000_progress.json" in str(caught.value)


def test_other_mistakes_while_writing_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken") as caught, cache_files.writing(tmp_path):
        raise ValueError("broken")
    assert not isinstance(caught.value, InputError)
    with pytest.raises(FileNotFoundError), cache_files.writing(tmp_path):
        (tmp_path / "absent").read_bytes()
