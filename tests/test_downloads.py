import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from custom.downloads import fetch, read_checksums
from custom.errors import InputError
from tests.server import Served, serve

CONTENT = bytes(range(256)) * 200
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "file.bin").write_bytes(CONTENT)
    with serve(tmp_path / "served") as served:
        yield served


def files_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def test_a_file_arrives_whole_and_a_second_time_the_server_is_not_asked(
    server: Served, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "folder" / "file.bin"
    assert fetch(f"{server.url}/file.bin", path, DIGEST)
    assert path.read_bytes() == CONTENT
    assert not fetch(f"{server.url}/file.bin", path, DIGEST)
    assert server.asked == ["file.bin"]


@pytest.mark.parametrize("before", [CONTENT[:1000], CONTENT + b"x", b""])
def test_a_file_with_another_content_is_fetched_anew(
    server: Served, tmp_path: Path, before: bytes
) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(before)
    assert fetch(f"{server.url}/file.bin", path, DIGEST)
    assert path.read_bytes() == CONTENT


def test_an_answer_that_breaks_off_leaves_nothing_and_the_next_try_succeeds(
    server: Served, tmp_path: Path
) -> None:
    path = tmp_path / "got" / "file.bin"
    server.cut = "file.bin"
    with pytest.raises(InputError, match=r"file\.bin could not be downloaded .*goes on from here"):
        fetch(f"{server.url}/file.bin", path, DIGEST)
    assert files_in(tmp_path / "got") == []
    server.cut = None
    assert fetch(f"{server.url}/file.bin", path, DIGEST)


def test_another_content_than_expected_is_refused_and_not_kept(
    server: Served, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"another file than expected: its sha256 is {DIGEST}"):
        fetch(f"{server.url}/file.bin", tmp_path / "got" / "file.bin", "0" * 64)
    assert files_in(tmp_path / "got") == []


@pytest.mark.parametrize(
    ("status", "advice"),
    [(404, "check the address"), (403, "check the address"), (429, "later"), (503, "later")],
)
def test_a_refusal_names_the_address_its_status_and_what_to_do(
    server: Served, tmp_path: Path, status: int, advice: str
) -> None:
    server.status["file.bin"] = status
    with pytest.raises(InputError, match=rf"{server.url}/file\.bin answered {status} .*{advice}"):
        fetch(f"{server.url}/file.bin", tmp_path / "file.bin", DIGEST)


def test_a_server_that_is_not_there_is_one_sentence(server: Served, tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound and not listening: nobody answers at this port
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/file.bin"
        with pytest.raises(InputError, match="check the network") as refused:
            fetch(url, tmp_path / "file.bin", DIGEST)
    assert "\n" not in str(refused.value)


def test_a_server_that_says_nothing_is_given_up(server: Served, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file.bin"
        with pytest.raises(InputError, match=r"could not be downloaded .*timed out"):
            fetch(url, tmp_path / "file.bin", DIGEST, timeout_s=0.2)


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/x", "/etc/hostname"])
def test_only_http_is_an_address(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError, match="http://"):
        fetch(url, tmp_path / "file.bin", DIGEST)


def test_checksums_are_read_as_sha256sum_writes_them(tmp_path: Path) -> None:
    (tmp_path / "list").write_text(f"{'a' * 64}  one.png\n{'0' * 64} *folder/two three.png\n")
    found = read_checksums(tmp_path / "list")
    assert found == {"one.png": "a" * 64, "folder/two three.png": "0" * 64}


@pytest.mark.parametrize(
    "line",
    ["", "a" * 64, f"{'a' * 63}  x", f"{'g' * 64}  x", f"{'a' * 64}  /x", f"{'a' * 64}  a/../../x"],
)
def test_a_line_that_is_no_checksum_of_a_file_below_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "list").write_text(f"{'a' * 64}  one.png\n{line}\n")
    with pytest.raises(InputError, match="line 2 of"):
        read_checksums(tmp_path / "list")


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent"):
        read_checksums(tmp_path / "absent")
