"""Backbones by id, from a server on this machine that answers as the Hugging Face hub does."""

import hashlib
import http.server
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
import pytest
from huggingface_hub import errors

from custom.errors import InputError
from custom.features.backbone import load_backbone
from custom.features.hub import ungated_mirror
from tests.features.test_timm_weights import timm_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
VIT = {
    "model_type": "dinov3_vit",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 8,
}


@dataclass
class Hub:
    """What a server has, and what it was asked for.

    Args:
        repositories: id to folder.
        refused: id to status and error code.
        stalled: paths whose answers never come.
        status: answer to everything, if not 0.
    """

    repositories: dict[str, Path] = field(default_factory=dict)
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    stalled: tuple[str, ...] = ()
    status: int = 0
    asked: list[str] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)


class Handler(http.server.BaseHTTPRequestHandler):
    """The parts of the hub that a download asks for."""

    def __init__(self, *args: Any, hub: Hub) -> None:
        self.hub = hub
        super().__init__(*args)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.hub.asked.append(f"{self.command} {path}")
        if any(part in path for part in self.hub.stalled):
            self.hub.closing.wait()
            return
        repo_id = "/".join(path.removeprefix("/api/models/").strip("/").split("/")[:2])
        if self.hub.status:
            self._answer(self.hub.status)
        elif repo_id not in self.hub.repositories:
            status, code = self.hub.refused.get(repo_id, (401, "RepoNotFound"))
            self._answer(status, headers={"X-Error-Code": code, "X-Error-Message": "no"})
        elif path.startswith("/api/models/"):
            self._describe(path, repo_id)
        else:
            self._file(self.hub.repositories[repo_id] / path.split(f"/resolve/{COMMIT}/")[1])

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def _describe(self, path: str, repo_id: str) -> None:
        files = sorted(self.hub.repositories[repo_id].iterdir())
        if "/tree/" in path:
            self._json([_entry(file) for file in files])
        else:
            siblings = [{"rfilename": file.name} for file in files]
            self._json({"id": repo_id, "sha": COMMIT, "siblings": siblings, "tags": []})

    def _file(self, file: Path) -> None:
        if not file.exists():
            self._answer(404, headers={"X-Error-Code": "EntryNotFound"})
            return
        etag = {"ETag": f'"{_blob(file)}"', "X-Repo-Commit": COMMIT}
        self._answer(200, file.read_bytes(), etag)

    def _json(self, content: Any) -> None:
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _answer(
        self, status: int, content: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


def _blob(file: Path) -> str:
    """Git's name of a file's content."""
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(file: Path) -> dict[str, Any]:
    return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _blob(file)}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    answers = Hub()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, hub=answers))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    use_hub(monkeypatch, f"http://127.0.0.1:{server.server_port}", tmp_path)
    yield answers
    answers.closing.set()
    server.shutdown()
    thread.join()
    server.server_close()


def use_hub(monkeypatch: pytest.MonkeyPatch, address: str, tmp_path: Path) -> None:
    """What HF_ENDPOINT and HF_HUB_CACHE do when they are set before Python starts."""
    files = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository in Hugging Face's form."""
    load_backbone(VIT).model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "readme.md").write_text("not needed")
    (tmp_path / "model" / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]})
    )
    return tmp_path / "model"


def test_an_id_is_downloaded_and_loaded(hub: Hub, folder: Path) -> None:
    hub.repositories["owner/model"] = folder
    backbone = load_backbone("owner/model")
    assert (backbone.name, backbone.digest) == ("owner/model", load_backbone(VIT).digest)
    assert backbone.image_mean == (0.1, 0.2, 0.3)
    assert not any("readme.md" in path for path in hub.asked)


def test_a_mirror_of_timm_is_downloaded_and_loaded(hub: Hub, tmp_path: Path) -> None:
    mirror = timm_folder(tmp_path / "timm", "vit_small_patch16_dinov3")
    hub.repositories["timm/vit_small_patch16_dinov3.lvd1689m"] = mirror
    backbone = load_backbone("timm/vit_small_patch16_dinov3.lvd1689m")
    assert backbone.digest == load_backbone(mirror).digest


def test_an_old_file_of_weights_is_downloaded_where_there_is_no_safe_one(
    hub: Hub, folder: Path
) -> None:
    import torch

    expected = load_backbone(folder)
    (folder / "model.safetensors").unlink()
    torch.save(expected.model.state_dict(), folder / "pytorch_model.bin")
    hub.repositories["owner/old"] = folder
    assert load_backbone("owner/old").digest == expected.digest


def test_weights_are_not_downloaded_for_a_configuration_that_is_not_supported(
    hub: Hub, folder: Path
) -> None:
    (folder / "config.json").write_text('{"model_type": "bert"}')
    hub.repositories["owner/model"] = folder
    with pytest.raises(InputError, match=r"owner/model.*model_type 'bert' is not supported"):
        load_backbone("owner/model")
    assert any("config.json" in path for path in hub.asked)
    assert not any("safetensors" in path for path in hub.asked)


@pytest.mark.parametrize("kind", ["stopped", "offline", "stalled", "failing"])
def test_a_cached_copy_is_used_when_the_hub_is_out_of_reach(
    kind: str, hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.repositories["owner/model"] = folder
    expected = load_backbone("owner/model").digest
    _cut_off(kind, hub, monkeypatch, tmp_path)
    assert load_backbone("owner/model").digest == expected


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("stopped", "the Hugging Face hub is out of reach"),
        ("offline", "is out of reach because HF_HUB_OFFLINE is set"),
        ("stalled", "the Hugging Face hub does not answer"),
        ("failing", "answers with status 503 and is out of reach"),
    ],
)
def test_a_hub_out_of_reach_ends_in_one_sentence_soon(
    kind: str, message: str, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _cut_off(kind, hub, monkeypatch, tmp_path)
    started = time.perf_counter()
    with pytest.raises(InputError, match=message) as raised:
        load_backbone("owner/model")
    assert time.perf_counter() - started < 20
    assert "give a local folder" in str(raised.value)
    assert "\n" not in str(raised.value)


def _cut_off(kind: str, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if kind == "stopped":
        use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path)  # discard: nothing listens
    elif kind == "offline":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    elif kind == "stalled":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_ETAG_TIMEOUT", 0.5)
        hub.stalled = ("/",)
    else:
        hub.status = 503


@pytest.mark.parametrize("status", [401, 404])
def test_a_misspelt_id_says_so(status: int, hub: Hub) -> None:
    hub.refused["owner/mispelt"] = (status, "RepoNotFound")
    with pytest.raises(InputError, match=r"owner/mispelt is neither a folder .*check the spelling"):
        load_backbone("owner/mispelt")


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_id_names_its_licence_and_its_mirror(status: int, hub: Hub) -> None:
    gated = "facebook/dinov3-vits16-pretrain-lvd1689m"
    hub.refused[gated] = (status, "GatedRepo")
    with pytest.raises(InputError) as raised:
        load_backbone(gated)
    assert str(raised.value).startswith(f"backbone {gated} is gated: accept its licence at https:")
    assert "`hf auth login`" in str(raised.value)
    assert '"backbone": "timm/vit_small_patch16_dinov3.lvd1689m"' in str(raised.value)


def test_a_gated_id_without_a_mirror_names_none(hub: Hub) -> None:
    hub.refused["owner/gated"] = (401, "GatedRepo")
    with pytest.raises(InputError, match="run `hf auth login`, or give a local folder"):
        load_backbone("owner/gated")


@pytest.mark.parametrize(
    ("repo_id", "mirror"),
    [
        ("vits16-pretrain-lvd1689m", "vit_small_patch16_dinov3.lvd1689m"),
        ("vits16plus-pretrain-lvd1689m", "vit_small_plus_patch16_dinov3.lvd1689m"),
        ("vitb16-pretrain-lvd1689m", "vit_base_patch16_dinov3.lvd1689m"),
        ("vitl16-pretrain-lvd1689m", "vit_large_patch16_dinov3.lvd1689m"),
        ("vitl16-pretrain-sat493m", "vit_large_patch16_dinov3.sat493m"),
        ("vith16plus-pretrain-lvd1689m", "vit_huge_plus_patch16_dinov3.lvd1689m"),
        ("vit7b16-pretrain-lvd1689m", "vit_7b_patch16_dinov3.lvd1689m"),
        ("vit7b16-pretrain-sat493m", "vit_7b_patch16_dinov3.sat493m"),
        ("convnext-tiny-pretrain-lvd1689m", "convnext_tiny.dinov3_lvd1689m"),
        ("convnext-large-pretrain-lvd1689m", "convnext_large.dinov3_lvd1689m"),
    ],
)
def test_every_gated_dinov3_has_a_mirror(repo_id: str, mirror: str) -> None:
    assert ungated_mirror(f"facebook/dinov3-{repo_id}") == f"timm/{mirror}"


@pytest.mark.parametrize(
    "repo_id", ["facebook/dinov2-small", "owner/dinov3-vits16-pretrain-lvd1689m", "facebook/dinov3"]
)
def test_other_ids_have_no_mirror(repo_id: str) -> None:
    assert ungated_mirror(repo_id) is None


def test_a_name_that_the_hub_does_not_allow_is_refused(hub: Hub) -> None:
    with pytest.raises(InputError, match="check the spelling"):
        load_backbone("owner/bad..name")


@pytest.mark.parametrize("source", ["models/dinov2/small", "small", Path("owner/model")])
def test_what_cannot_be_an_id_is_taken_for_a_missing_folder(source: str | Path) -> None:
    with pytest.raises(InputError, match="neither a folder that exists nor a Hugging Face id"):
        load_backbone(source)


def test_an_unknown_failure_of_the_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(InputError, match="out of reach"):
        load_backbone("owner/model")
