import json
import logging
import pickle
import shutil
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import zarr
from funlib.geometry import Roi
from moto.server import ThreadedMotoServer

from custom import locations
from custom.datalist import open_entry, parse_datalist
from custom.errors import InputError
from custom.locations import Location, moved, parse_location, resolve
from custom.volumes import create_ome_zarr_array, open_volume
from tests.written_volumes import OFFSET, SIZE, VALUES, corner_of, write_n5, write_precomputed

pytestmark = pytest.mark.slow

BUCKET = "tissue"


def write_ome(path: Path, version: str = "0.4") -> Path:
    store = create_ome_zarr_array(
        path, "raw", VALUES.shape, VALUES.dtype, "zyx", SIZE, OFFSET, (2, 3, 4), {}, version
    )
    store.write(VALUES).result()
    return path / "raw"


def write_zarr(path: Path) -> Path:
    array = zarr.create_array(path, data=VALUES, zarr_format=2, chunks=(2, 3, 4))
    array.attrs.update({"voxel_size": SIZE, "offset": OFFSET})
    return path


FORMS: dict[str, Callable[[Path], Path]] = {
    "ome 04.zarr": write_ome,  # a blank must survive in a URL
    "ome05.zarr": partial(write_ome, version="0.5"),
    "plain.zarr": write_zarr,
    "level.zarr": lambda p: write_ome(p) / "s0",
    "x.n5": lambda p: write_n5(p / "em/s0", resolution=SIZE[::-1], offset=OFFSET[::-1]),
    "group.n5": lambda p: write_n5(p / "em/s0", resolution=SIZE[::-1], offset=OFFSET[::-1]).parent,
    "pre": lambda p: write_precomputed(p, ("a", VALUES, SIZE, corner_of(SIZE, OFFSET))),
    "scale": lambda p: write_precomputed(p, ("a", VALUES, SIZE, corner_of(SIZE, OFFSET))) / "a",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def paths(folder: Path) -> dict[str, str]:
    """Every form, relative to the folder that is served."""
    return {
        name: write(folder / name).relative_to(folder).as_posix() for name, write in FORMS.items()
    }


@contextmanager
def serving(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class QuietFiles(SimpleHTTPRequestHandler):
    """The files of a folder, as ``python -m http.server`` gives them."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


class DeniedFiles(QuietFiles):
    """Denies what is not there, as a bucket does that may not be listed."""

    def send_error(self, code: int, *args: Any) -> None:
        super().send_error(403 if code == 404 else code, *args)


class GoogleStorage(QuietFiles):
    """The one call of Google Cloud Storage's JSON API that reads an object."""

    def translate_path(self, path: str) -> str:
        name = path.partition("?")[0].removeprefix(f"/storage/v1/b/{BUCKET}/o/")
        return str(Path(self.directory) / unquote(name))


@pytest.fixture(scope="module")
def http(folder: Path) -> Iterator[str]:
    with serving(partial(QuietFiles, directory=str(folder))) as url:
        yield url


@pytest.fixture(scope="module")
def s3(folder: Path, paths: dict[str, str]) -> Iterator[str]:
    """A server of S3 with everything in ``public``, readable by all, and in ``private``."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    put(f"{url}/{BUCKET}", b"")
    for file in folder.rglob("*"):
        if file.is_file():
            key = file.relative_to(folder).as_posix().replace(" ", "%20")
            put(f"{url}/{BUCKET}/public/{key}", file.read_bytes(), {"x-amz-acl": "public-read"})
            put(f"{url}/{BUCKET}/private/{key}", file.read_bytes())
    yield url
    server.stop()


def put(url: str, content: bytes, headers: dict[str, str] | None = None) -> None:
    headers = {"Content-Type": "application/octet-stream", **(headers or {})}
    request = urllib.request.Request(url, content, headers, method="PUT")
    with urllib.request.urlopen(request, timeout=60):
        pass


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name in (*locations.CREDENTIAL_FILES, "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def assert_same_as_local(url: str, local: Path) -> None:
    volume, expected = open_volume(url), open_volume(local)
    assert volume.metadata == expected.metadata
    for roi in (Roi((1, 2, 3), (3, 4, 5)), volume.metadata.roi):
        np.testing.assert_array_equal(volume.read(roi), VALUES[roi.to_slices()], strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_http_gives_what_the_disk_gives(
    http: str, folder: Path, paths: dict[str, str], form: str
) -> None:
    path = paths[form]
    assert_same_as_local(f"{http}/{path.replace(' ', '%20')}/", folder / path)


@pytest.mark.parametrize("form", FORMS)
def test_s3_gives_what_the_disk_gives(
    s3: str, folder: Path, paths: dict[str, str], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    assert_same_as_local(f"s3://{BUCKET}/public/{paths[form]}", folder / paths[form])


def test_s3_takes_credentials_from_the_environment(
    s3: str, folder: Path, paths: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://{BUCKET}/private/{paths['plain.zarr']}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3)
    with pytest.raises(InputError, match=r"plain.zarr' cannot be read: access is denied"):
        open_volume(url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert_same_as_local(url, folder / paths["plain.zarr"])


@pytest.mark.parametrize("profile", ["default", "mine"])
def test_s3_takes_credentials_from_a_file(
    s3: str,
    folder: Path,
    paths: dict[str, str],
    tmp_path: Path,
    profile: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = f"[{profile}]\naws_access_key_id = a\naws_secret_access_key = b\n"
    (tmp_path / "keys").write_text(keys)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    if profile != "default":
        monkeypatch.setenv("AWS_PROFILE", profile)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    assert_same_as_local(
        f"s3://{BUCKET}/private/{paths['plain.zarr']}", folder / paths["plain.zarr"]
    )


@pytest.mark.slow
def test_gs_gives_what_the_disk_gives(
    folder: Path, paths: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(partial(GoogleStorage, directory=str(folder))) as url:
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
        for form in ("ome05.zarr", "x.n5", "scale"):
            assert_same_as_local(f"gs://{BUCKET}/{paths[form]}", folder / paths[form])


@pytest.mark.slow
@pytest.mark.parametrize("form", ["plain.zarr", "x.n5", "pre"])
def test_a_prefix_of_neuroglancer_chooses_the_format(
    http: str, folder: Path, paths: dict[str, str], form: str
) -> None:
    right = {"plain.zarr": "zarr", "x.n5": "n5", "pre": "precomputed"}[form]
    assert_same_as_local(f"{right}://{http}/{paths[form]}", folder / paths[form])
    assert_same_as_local(f"{right}://{folder / paths[form]}", folder / paths[form])
    for wrong in {"zarr", "n5", "precomputed"} - {right}:
        for place in (http, folder):
            with pytest.raises(InputError, match=f"no metadata of {wrong},"):
                open_volume(f"{wrong}://{place}/{paths[form]}")


@pytest.mark.parametrize("form", FORMS)
def test_denied_files_count_as_missing_where_others_are_there(
    folder: Path, paths: dict[str, str], form: str
) -> None:
    with serving(partial(DeniedFiles, directory=str(folder))) as url:
        volume = open_volume(f"{url}/{paths[form]}")
    assert volume.metadata == open_volume(folder / paths[form]).metadata


@pytest.mark.slow
def test_a_remote_volume_is_pickled(http: str, paths: dict[str, str]) -> None:
    volume = pickle.loads(pickle.dumps(open_volume(f"{http}/{paths['x.n5']}")))
    np.testing.assert_array_equal(volume.read(volume.metadata.roi), VALUES)


def silent_server() -> tuple[socket.socket, str]:
    """Takes connections, and says nothing."""
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_server_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locations, "TIMEOUT_S", 1.0)
    listener, url = silent_server()
    begin = time.monotonic()
    with listener, pytest.raises(InputError, match=r"raw 'http:.*/x.zarr' .*within 1 seconds"):
        open_volume(f"{url}/x.zarr")
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x.zarr", "http://nowhere.invalid/x.zarr"])
def test_a_host_that_is_not_there_is_named_soon(url: str) -> None:
    begin = time.monotonic()
    with pytest.raises(InputError, match=f"mask '{url}' cannot be read: .*[Cc]onnect|resolve"):
        open_volume(url, field="mask")
    assert time.monotonic() - begin < locations.TIMEOUT_S


@pytest.mark.slow
def test_a_source_that_vanishes_is_named(
    folder: Path, paths: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locations, "MANY_RETRIES", 2)
    with serving(partial(QuietFiles, directory=str(folder))) as url:
        volume = open_volume(f"{url}/{paths['plain.zarr']}")
        volume.read(Roi((0, 0, 0), (1, 1, 1)))
    with pytest.raises(InputError, match=r"plain.zarr' cannot be read: .*onnect"):
        volume.read(volume.metadata.roi)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.zarr", "does not exist: there is no metadata of zarr or n5 or precomputed"),
        ("", "does not exist"),
        ("group.zarr", "is a Zarr group, not an array; add what to read .the path of an array"),
        ("html", "html/info is not valid JSON"),
        ("pre/b", "names no scale of .*/pre; it holds a"),
        ("stack.tif", "the formats that URLs may have"),
        ("plain.zarr?key=1", "has a query or a fragment"),
    ],
)
def test_mistakes_in_a_url_are_named(
    http: str, folder: Path, paths: dict[str, str], name: str, message: str
) -> None:
    zarr.open_group(folder / "group.zarr", mode="w", zarr_format=2)
    (folder / "html").mkdir(exist_ok=True)
    (folder / "html" / "info").write_text("<html>")
    with pytest.raises(InputError, match=f"labels '{http}.*{message}"):
        open_volume(f"{http}/{name}", SIZE, field="labels")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ftp://host/x.zarr", "unknown scheme 'ftp://'; known are s3, gs, http, https and file"),
        ("precomputed://gcs://x", "unknown scheme 'gcs://'"),
        ("s3://", "names no bucket or host"),
    ],
)
def test_urls_of_no_known_kind_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=f"raw '{text}' .*{message}"):
        open_volume(text)


@pytest.mark.parametrize("url", ["s3://b/a/b", "http://host:80/a/b", "/a/b"])
def test_parents_are_where_a_name_leads_back(url: str) -> None:
    location = Location(url)
    names = [url.rsplit("/", 2)[-1], "a"]
    for parent, name in zip(location.parents, names, strict=False):
        assert parent / name == location
        location = parent
    assert Location(url) / "../c" in (Location(f"{url[:-2]}/c"), Location(f"{url}/../c"))
    assert parse_location(f"{url}/", "raw")[1] == Location(url)


@pytest.mark.parametrize("url", ["s3://b/x", "n5://gs://b/x", "precomputed://https://h/x"])
def test_urls_are_relative_to_no_folder(url: str) -> None:
    assert resolve(url, Path("/data")) == moved(url, "/data") == url


@pytest.mark.parametrize("prefix", ["", "precomputed://"])
def test_a_path_is_made_absolute_and_relative_again(prefix: str) -> None:
    assert resolve(f"{prefix}../em/x", Path("/data/lists")) == f"{prefix}/data/lists/../em/x"
    assert moved(f"{prefix}/data/em/x", "/data/cache") == f"{prefix}../em/x"


@pytest.mark.parametrize("form", FORMS)
def test_a_path_may_lead_through_the_folder_above(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bundle").mkdir()
    monkeypatch.chdir(tmp_path / "bundle")
    name = FORMS[form](Path("../x") / form).relative_to("..")
    volume = open_volume(f"../{name}")
    np.testing.assert_array_equal(volume.read(volume.metadata.roi), VALUES)


def save_datalist(folder: Path, **sections: Any) -> Path:
    path = folder / "datalist.json"
    path.write_text(json.dumps(sections))
    return path


@pytest.mark.slow
def test_a_datalist_takes_urls(
    http: str, folder: Path, paths: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(folder / "pre", tmp_path / "pre")
    entry = {
        "id": "a",
        "raw": f"{http}/{paths['plain.zarr']}",
        "labels": f"n5://{http}/{paths['x.n5']}",
        "mask": "precomputed://pre",
    }
    opened = open_entry(parse_datalist(save_datalist(tmp_path, test=[entry])).test[0])
    assert opened.entry.raw == entry["raw"]
    assert opened.entry.mask == f"precomputed://{tmp_path / 'pre'}"
    np.testing.assert_array_equal(opened.read_raw(opened.roi), VALUES)
    labels, annotated = opened.read_labels(opened.roi)
    np.testing.assert_array_equal(labels, VALUES)
    np.testing.assert_array_equal(annotated, VALUES != 0)


def test_training_and_validation_may_not_overlap_in_one_url(
    http: str, paths: dict[str, str], tmp_path: Path
) -> None:
    url = f"{http}/{paths['pre']}"
    both = {"training": [{"id": "a", "raw": url}], "validation": [{"id": "b", "raw": f"{url}/a"}]}
    with pytest.raises(InputError, match="'a' overlaps that of validation entry 'b'"):
        parse_datalist(save_datalist(tmp_path, **both))
