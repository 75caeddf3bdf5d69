"""Sources that stop answering, or are no longer there, while they are read."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from funlib.geometry import Roi

from custom import locations
from custom.errors import InputError
from custom.features.cache_files import VolumeFiles, read_json
from custom.features.cache_writer import VolumeWriter
from custom.locations import Location
from custom.volumes import Volume, create_ome_zarr_array, open_volume
from tests.server import serve
from tests.test_preprocessing import assert_same_arrays, preprocessor
from tests.written_volumes import OFFSET, SIZE, VALUES, corner_of, write_n5, write_precomputed

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (24, 20, 22)


def write_zarr(path: Path, version: str) -> Path:
    store = create_ome_zarr_array(
        path, "raw", VALUES.shape, VALUES.dtype, "zyx", SIZE, OFFSET, (2, 3, 4), {}, version
    )
    store.write(VALUES).result()
    return path / "raw" / "s0"


FORMS: dict[str, Callable[[Path], Path]] = {
    "v2.zarr": partial(write_zarr, version="0.4"),
    "v3.zarr": partial(write_zarr, version="0.5"),
    "x.n5": lambda p: write_n5(p / "em/s0", resolution=SIZE[::-1], offset=OFFSET[::-1]),
    "pre": lambda p: write_precomputed(p, ("a", VALUES, SIZE, corner_of(SIZE, OFFSET))),
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """One retry instead of ten."""
    monkeypatch.setattr(Location.kvstore, "__defaults__", (1,))


def whole(volume: Volume) -> np.ndarray:
    return volume.read(volume.metadata.roi)


@pytest.mark.parametrize("form", FORMS)
def test_a_volume_that_is_removed_does_not_become_zeros(form: str, tmp_path: Path) -> None:
    path = FORMS[form](tmp_path / form)
    volume = open_volume(path)
    np.testing.assert_array_equal(volume.read(Roi((0, 0, 0), (2, 3, 4))), VALUES[:2, :3, :4])
    (tmp_path / form).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=rf"{form}.* cannot be read: '.*' is no longer there"):
        whole(volume)
    (tmp_path / "elsewhere").rename(tmp_path / form)
    np.testing.assert_array_equal(whole(volume), VALUES)


@pytest.mark.parametrize("form", FORMS)
def test_a_url_that_leads_nowhere_any_more_does_not_become_zeros(form: str, tmp_path: Path) -> None:
    path = FORMS[form](tmp_path / form).relative_to(tmp_path)
    with serve(tmp_path) as served:
        volume = open_volume(f"{served.url}/{path}")
        assert whole(volume).any()
        served.gone = True
        with pytest.raises(InputError, match=rf"raw '{served.url}/.*is no longer there"):
            whole(volume)
        served.gone = False
        np.testing.assert_array_equal(whole(volume), VALUES)


def test_chunks_that_were_never_written_are_zeros(tmp_path: Path) -> None:
    array = zarr.create_array(
        tmp_path / "x.zarr", shape=(6, 5, 4), chunks=(2, 5, 4), dtype="uint8", zarr_format=2
    )
    array[2:4] = 7
    found = whole(open_volume(tmp_path / "x.zarr", voxel_size_nm=(1, 1, 1)))
    assert found[2:4].min() == 7 and not found[:2].any() and not found[4:].any()


def test_a_server_that_stops_is_one_sentence(tmp_path: Path, impatient: None) -> None:
    path = FORMS["v2.zarr"](tmp_path / "v2.zarr").relative_to(tmp_path)
    with serve(tmp_path) as served:
        volume = open_volume(f"{served.url}/{path}")
        whole(volume)
    with pytest.raises(InputError, match=rf"raw '{served.url}/{path}' cannot be read: ") as caught:
        whole(volume)
    assert "\n" not in str(caught.value)


STALLING = """
import sys
from pathlib import Path
from custom.locations import Location
from custom.volumes import open_volume
from tests.server import serve
Location.kvstore.__defaults__ = (int(sys.argv[3]),)
with serve(Path(sys.argv[1])) as served:
    volume = open_volume(f"{served.url}/{sys.argv[2]}", voxel_size_nm=(1, 1, 1))
    volume.read(volume.metadata.roi)
    served.stalled = True
    try:
        volume.read(volume.metadata.roi)
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.slow
def test_a_server_that_stands_still_midway_is_given_up(tmp_path: Path) -> None:
    """In a process of its own: TensorStore reads its patience once, so the user's is kept, too."""
    values = np.random.default_rng(0).integers(1, 255, (20, 30, 40), np.uint8)
    zarr.create_array(tmp_path / "x.zarr", data=values, zarr_format=2)
    patience = dict.fromkeys(locations.PATIENCE, "1")
    started = time.monotonic()
    found = subprocess.run(
        [sys.executable, "-c", STALLING, str(tmp_path), "x.zarr", "1"],
        env={**os.environ, **patience, "PYTHONPATH": f"{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert time.monotonic() - started < 100
    assert found.stdout.startswith("InputError raw 'http://127.0.0.1:")
    assert "x.zarr' cannot be read: " in found.stdout and "too slow" in found.stdout
    assert found.stdout.count("\n") == 1


def test_remote_reads_have_a_patience_that_the_user_may_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    low_speed = "TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS"
    for name in locations.PATIENCE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(low_speed, "300")
    Location("/disk/x.zarr").kvstore()
    assert not set(os.environ) & (set(locations.PATIENCE) - {low_speed})
    for url in ("s3://bucket/x", "gs://bucket/x", "http://host/x", "https://host/x"):
        Location(url).kvstore()
        assert set(locations.PATIENCE) <= set(os.environ)
        assert os.environ[low_speed] == "300"
        monkeypatch.delenv("TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS")


def write_datalist(folder: Path, url: str) -> Path:
    labels = np.random.default_rng(1).integers(1, 4, SHAPE, dtype=np.uint32)
    np.save(folder / "labels.npy", labels)
    size = {"raw": [8, 4, 5.5], "labels": [8, 4, 5.5]}
    entry = {"raw": url, "labels": "labels.npy", "voxel_size_nm": size}
    path = folder / "datalist.json"
    path.write_text(json.dumps({"name": "x", "training": [{"id": "a", **entry}], "validation": []}))
    return path


@pytest.mark.parametrize("remote", [False, True])
def test_preprocessing_of_a_source_that_vanishes_goes_on_when_it_is_back(
    remote: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "served" / "x.zarr"
    values = np.random.default_rng(0).integers(0, 255, SHAPE, np.uint8)
    zarr.create_array(source, data=values, chunks=(8, 8, 8), zarr_format=2)
    away = source.with_name("away")

    def vanish() -> None:
        source.rename(away)

    with serve(source.parent) as served:
        url = f"{served.url}/x.zarr" if remote else str(source)
        datalist = write_datalist(tmp_path, url)
        run(datalist, tmp_path / "whole")
        with monkeypatch.context() as patch:
            complete = VolumeWriter.complete_tokens

            def vanishing(self: VolumeWriter, plane: str) -> None:
                complete(self, plane)
                vanish()

            patch.setattr(VolumeWriter, "complete_tokens", vanishing)
            with pytest.raises(InputError, match=r"x\.zarr'.* is no longer there") as caught:
                run(datalist, tmp_path / "cache")
        assert "\n" not in str(caught.value)
        written = read_json(VolumeFiles(tmp_path / "cache", 0).progress)["written"]
        assert written["tokens_xy"] == SHAPE[0] and "tokens_xz" not in written
        away.rename(source)
        run(datalist, tmp_path / "cache")
        timing = read_json(VolumeFiles(tmp_path / "cache", 0).metadata)["timing"]
        assert timing["resumed"]
    assert_same_arrays(tmp_path / "whole", tmp_path / "cache")


def run(datalist: Path, cache_dir: Path, **changes: Any) -> None:
    preprocessor(datalist, cache_dir, sections=("training",), **changes).run()
