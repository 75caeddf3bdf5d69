import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from custom.errors import InputError
from custom.features.cache_check import _ahead, check_cache
from custom.features.cache_files import VolumeFiles, create_array, write_array
from custom.features.cache_writer import VolumeWriter
from tests.features.cached import IDS, SPEC, request, write

Damage = Callable[[Path], object]


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    """Two volumes, the second without labels."""
    write(VolumeFiles(tmp_path, 0), request(0))
    write(VolumeFiles(tmp_path, 1), request(1), labels=False)
    return tmp_path


def defects(cache_dir: Path) -> list[str]:
    return list(check_cache(cache_dir, show_progress=False).defects)


def change_metadata(cache_dir: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = cache_dir / "volume_000000_metadata.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_a_sound_cache_has_no_defects(cache_dir: Path) -> None:
    found = check_cache(cache_dir, show_progress=False)
    assert found.defects == ()
    assert found.volumes == 2
    files = [p for p in cache_dir.glob("*.zarr/**/*") if p.is_file()]
    assert found.bytes_read == sum(p.stat().st_size for p in files)


@pytest.mark.parametrize("truth", [{"labels": "x"}, {"labels": None, "classes": {"a": "x"}}])
def test_labels_that_the_metadata_lost_are_missed(cache_dir: Path, truth: dict[str, Any]) -> None:
    def forget(metadata: dict[str, Any]) -> None:
        metadata["entry"] |= truth
        for name in ("gt", "mask", "gt_ids"):
            del metadata["arrays"][name]

    change_metadata(cache_dir, forget)
    missed = [f"{n}: not in volume_000000_metadata.json" for n in ("gt", "mask", "gt_ids")]
    assert sorted(defects(cache_dir)) == sorted(f"volume_000000 (cube0), {m}" for m in missed)


def test_every_damaged_chunk_is_one_line_with_volume_array_and_file(cache_dir: Path) -> None:
    volume = cache_dir / "volume_000000.zarr"
    for name, file, damage in [
        ("tokens_xy", "c/0/1/0/1", lambda p: p.write_bytes(p.read_bytes()[:-1])),
        ("tokens_xz", "c/0/0/1/0", lambda p: p.write_bytes(b"\0" + p.read_bytes()[1:])),
        ("tokens_xz", "c/0/0/0/0", Path.unlink),
        ("gt", "c/0/0/0", lambda p: p.write_bytes(b"")),
    ]:
        damage(volume / name / file)
    found = defects(cache_dir)
    assert [line.rpartition(": ")[0].split(":")[0] for line in found] == [
        "volume_000000 (cube0), gt, c/0/0/0",
        "volume_000000 (cube0), tokens_xy, c/0/1/0/1",
        "volume_000000 (cube0), tokens_xz, c/0/0/0/0",
        "volume_000000 (cube0), tokens_xz, c/0/0/1/0",
    ]
    assert not any("\n" in line for line in found)


def other_table(cache_dir: Path) -> None:
    path = cache_dir / "volume_000000.zarr" / "gt_ids"
    array = create_array(path, IDS.shape, IDS.dtype, IDS.shape, "zstd")
    content = (path / "c" / "0").stat().st_size
    write_array(array, path, (slice(None),), np.flip(IDS).copy())
    change_metadata(
        cache_dir,
        lambda m: m["arrays"]["gt_ids"].update(
            bytes=m["arrays"]["gt_ids"]["bytes"] + (path / "c" / "0").stat().st_size - content
        ),
    )


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (
            lambda c: shutil.rmtree(c / "volume_000000.zarr"),
            r"\(cube0\): cached volume .* is not there",
        ),
        (
            lambda c: shutil.rmtree(c / "volume_000000.zarr" / "mask"),
            r"\(cube0\), mask: .* 'zarr\.json' .* is missing",
        ),
        (
            lambda c: (c / "volume_000000.zarr" / "raw" / "notes").write_text("mine"),
            r"\(cube0\), raw: \d+ bytes on disk, not \d+ as the metadata",
        ),
        (other_table, r"\(cube0\), gt_ids: not the table"),
        (
            lambda c: change_metadata(c, lambda m: m["arrays"].pop("tokens_yz")),
            r"\(cube0\), tokens_yz: not in volume_000000_metadata\.json",
        ),
        (
            lambda c: change_metadata(c, lambda m: m["roi"].update(shape=[20, 12, 31])),
            r"\(cube0\), raw: shape \[20, 12, 30\], not \[20, 12, 31\] as its volume",
        ),
        (
            lambda c: change_metadata(c, lambda m: m["arrays"]["gt"].update(dtype="uint64")),
            r"\(cube0\), gt: dtype uint32, not uint64 as the metadata",
        ),
        (
            lambda c: change_metadata(c, lambda m: m["features"].update(dtype="int8")),
            r"\(cube0\), tokens_xy: dtype float16, not int8 as its volume",
        ),
        (
            lambda c: change_metadata(c, lambda m: m["features"].pop("window")),
            r"\(cube0\): .*window missing",
        ),
        (
            lambda c: change_metadata(c, lambda m: m.pop("planes")),
            r"\(cube0\): volume_000000_metadata\.json has no planes",
        ),
    ],
)
def test_what_does_not_fit_the_metadata_is_named(
    cache_dir: Path, damage: Damage, line: str
) -> None:
    damage(cache_dir)
    found = defects(cache_dir)
    assert found
    assert re.search(line, found[0]), found
    assert all(text.startswith("volume_00000") and "\n" not in text for text in found)


def test_an_unfinished_volume_and_unlike_features_are_defects(cache_dir: Path) -> None:
    VolumeWriter(VolumeFiles(cache_dir, 2), request(2))
    write(VolumeFiles(cache_dir, 3), request(3, window=SPEC.window * 2))
    assert defects(cache_dir) == [
        "volume_000002 (cube2): unfinished: run preprocessing",
        "volume_000003 (cube3): features unlike those of volume_000000: window (128, not 64)",
    ]


def test_an_int8_cache_needs_its_scales(tmp_path: Path) -> None:
    write(VolumeFiles(tmp_path, 0), request(dtype="int8"))
    assert defects(tmp_path) == []
    change_metadata(tmp_path, lambda m: m["arrays"]["tokens_xz"]["scales"].pop())
    assert defects(tmp_path) == [
        "volume_000000 (cube0), tokens_xz: the metadata does not have one scale per channel"
    ]


def test_a_folder_without_volumes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no volumes: run preprocessing"):
        check_cache(tmp_path)


def test_chunks_are_asked_for_ahead_and_only_so_many() -> None:
    made: list[int] = []

    def reads() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            yield number

    for number, read in enumerate(_ahead(reads(), 4)):
        assert read == number
        assert len(made) == min(number + 4, 10)
    assert list(_ahead(iter([]), 4)) == []
