"""Pushing, to a stand-in on 127.0.0.1."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

import custom
from custom.errors import InputError
from custom.inspection.bundle import inspect_bundle
from custom.inspection.own_project import OwnProject
from custom.sharing.bundle import share_bundle
from custom.sharing.hub import push_bundle
from tests.bundle import tiny
from tests.sharing.models import write_trained_model

OWN = OwnProject(Path(custom.__file__).parent, tiny.BUNDLE)


class Hub(HTTPServer):
    """Answers every request alike and keeps what it was asked."""

    asked: list[tuple[str, dict[str, Any]]]
    status = 200


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, json.loads(body)))
        answer = json.dumps({"url": "http://127.0.0.1/me/x", "name": "me/x"}).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Not on the terminal."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with Hub(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    write_trained_model(folder)
    return share_bundle("cells", folder / "model", folder / "eval", folder, OWN)


@pytest.fixture
def uploaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Folder that uploads are copied to, as a download of the repository would give it back."""
    place = tmp_path / "repository"

    def upload_folder(_: Any, repo_id: str, folder_path: str, **options: Any) -> str:
        patterns = options["ignore_patterns"]
        assert repo_id == "me/x"
        paths = [p for p in Path(folder_path).rglob("*") if p.is_file()]
        names = [p.relative_to(folder_path).as_posix() for p in paths]
        kept = huggingface_hub.utils.filter_repo_objects(names, ignore_patterns=patterns)
        for name in kept:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes((Path(folder_path) / name).read_bytes())
        return "http://127.0.0.1/me/x/tree/main"

    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    return place


def test_a_push_makes_a_private_repository_of_the_shared_files_alone(
    shared: Path, hub: Hub, uploaded: Path
) -> None:
    assert push_bundle(shared, "me/x", OWN).endswith("/me/x/tree/main")
    ((path, asked),) = hub.asked
    assert path == "/api/repos/create"
    assert "private" in (asked.get("visibility"), *[key for key, on in asked.items() if on is True])
    report = inspect_bundle(uploaded, OWN)
    assert report.safe, report.lines()
    assert (uploaded / "README.md").read_text().startswith("---\ntags:\n- monai")
    assert (uploaded / "models" / "model.pt").is_file()


def test_a_public_repository_has_to_be_asked_for(shared: Path, hub: Hub, uploaded: Path) -> None:
    push_bundle(shared, "me/x", OWN, private=False)
    ((_, asked),) = hub.asked
    assert asked.get("visibility") == "public" or asked.get("private") is False


def test_a_hub_that_refuses_is_one_sentence(shared: Path, hub: Hub) -> None:
    hub.status = 403
    with pytest.raises(InputError, match="me/x was not uploaded") as caught:
        push_bundle(shared, "me/x", OWN)
    assert "\n" not in str(caught.value)


def test_a_hub_out_of_reach_is_one_sentence(
    shared: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="check the network"):
        push_bundle(shared, "me/x", OWN)


def test_without_a_token_one_is_asked_for(
    shared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(InputError, match="hf auth login"):
        push_bundle(shared, "me/x", OWN)


def test_a_changed_zip_is_not_pushed(shared: Path, hub: Hub, tmp_path: Path) -> None:
    changed = tmp_path / "cells.zip"
    changed.write_bytes(shared.read_bytes().replace(b"# cells", b"# bells"))
    with pytest.raises(InputError, match="look with inspect"):
        push_bundle(changed, "me/x", OWN)
    assert hub.asked == []


@pytest.mark.parametrize("repository", ["x", "a/b/c", "", "me/../x", "https://huggingface.co/me/x"])
def test_what_is_no_repository_is_refused(shared: Path, repository: str) -> None:
    with pytest.raises(InputError, match="is no repository"):
        push_bundle(shared, repository, OWN)


def test_a_zip_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run share first"):
        push_bundle(tmp_path / "x.zip", "me/x", OWN)
