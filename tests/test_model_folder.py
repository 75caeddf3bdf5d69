"""Whenever a kill comes, the description is of the weights beside it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from custom.checkpoints import load_checkpoint
from custom.errors import InputError
from custom.model_folder import complete_model, read_model, write_model

FILES = ["model.json", "model.pt", "model.safetensors", "pca.safetensors"]


class Killed(BaseException):
    """Stands in for the end of the process."""


def write(folder: Path, epoch: int) -> None:
    """A model whose weights are its epoch's number."""
    weights = {"w": torch.full((2, 3), float(epoch))}
    write_model(folder, weights, {"epoch": epoch}, {"pca.safetensors": b"basis"})


def killed_before(monkeypatch: pytest.MonkeyPatch, name: int, action: Callable[[], None]) -> bool:
    """Kill before the ``name``-th file gets its name, and leave parts where they are."""
    replace, calls = os.replace, 0

    def dying(source: Any, target: Any) -> None:
        nonlocal calls
        calls += 1
        if calls >= name:
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying)
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        try:
            action()
        except Killed:
            return True
    return False


@pytest.mark.parametrize("name", range(1, 6))
def test_a_kill_between_any_two_files_leaves_no_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: int
) -> None:
    write(tmp_path, 1)
    assert killed_before(monkeypatch, name, lambda: write(tmp_path, 2))
    epoch = read_model(tmp_path)["epoch"]
    assert epoch == (1 if name < 4 else 2)  # model.json, the basis, then model.pt
    assert load_checkpoint(tmp_path / "model.pt")["w"].mean() == epoch

    described = complete_model(tmp_path)
    assert described == read_model(tmp_path) == json.loads((tmp_path / "model.json").read_text())
    assert described is not None and described["epoch"] == epoch
    for read in (load_checkpoint, load_file):
        name_of = "model.pt" if read is load_checkpoint else "model.safetensors"
        assert torch.equal(read(tmp_path / name_of)["w"], torch.full((2, 3), float(epoch)))  # type: ignore[operator]


def test_an_undisturbed_exchange_has_five_names_and_leaves_no_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1)
    assert not killed_before(monkeypatch, 6, lambda: write(tmp_path, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    assert "previous" not in read_model(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    complete_model(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_first_model_that_is_half_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert killed_before(monkeypatch, 3, lambda: write(tmp_path, 1))
    assert complete_model(tmp_path) is None
    with pytest.raises(InputError, match="holds no trained model"):
        read_model(tmp_path)


def test_weights_that_were_exchanged_by_hand_are_refused(tmp_path: Path) -> None:
    for epoch in (1, 2):
        write(tmp_path / str(epoch), epoch)
    (tmp_path / "1" / "model.pt").write_bytes((tmp_path / "2" / "model.pt").read_bytes())
    with pytest.raises(InputError, match=r"model\.pt' is not the one that model\.json"):
        read_model(tmp_path / "1")
    assert complete_model(tmp_path / "1") is None


def test_a_description_without_digests_is_believed(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (tmp_path / "model.json").write_text('{"epoch": 7}')
    assert read_model(tmp_path) == complete_model(tmp_path) == {"epoch": 7}
