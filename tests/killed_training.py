"""A training that is killed again and again ends like one that was left alone."""

import json
import math
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from custom.checkpoints import load_checkpoint
from custom.interruption import STOPPED
from custom.model_files import read_description
from tests.bundle import tiny
from tests.zygote import Zygote

SETTINGS: dict[str, Any] = {
    "epochs": 3,
    "iterations_per_epoch": 4,
    "save_interval": 1,
    "unet_dropout": 0.1,
    "batch_size": 2,
}
PLATEAU = {
    "_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau",
    "optimizer": "@optimizer",
    "factor": 0.5,
    "patience": 0,
}
FORMS: dict[str, dict[str, Any]] = {
    "dropout": {},
    "threads": {"num_workers": 2, "workers": "threads"},
    "average, accumulation, plateau": {
        "ema_decay": 0.9,
        "accumulation_steps": 2,
        "iterations_per_epoch": 5,
        "lr_scheduler": PLATEAU,
        "early_stopping": 4,
    },
}


def prepare(folder: Path) -> Path:
    """Data and cache that trainings of ``folder`` begin with."""
    tiny.write_data(folder)
    tiny.run("preprocessing", folder)
    return folder


def beginning(prepared: Path, folder: Path) -> Path:
    """A project before its training."""
    for part in ("data", "cache"):
        shutil.copytree(prepared / part, folder / part)
    return folder


def killed_training(
    prepared: Path,
    folder: Path,
    kills: int,
    seed: int,
    zygote: Zygote,
    number: int = signal.SIGKILL,
    **changes: Any,
) -> int:
    """Kill trainings at random moments, each until it has come to its end.

    After every kill all that is there can be read, and the model is the best so far; every training
    ends as an uninterrupted one.

    Args:
        prepared: from ``prepare``.
        folder: of the trainings.
        kills: how many.
        seed: of the moments.
        zygote: forks them.
        number: of the signal.
        changes: of ``SETTINGS``.

    Returns:
        Number of trainings.
    """
    settings = {**SETTINGS, **changes}
    whole, moments = beginning(prepared, folder / "whole"), random.Random(seed)
    seconds = zygote.run(whole, **settings)
    left, trainings = kills, 0
    while left:
        trainings += 1
        cut = beginning(prepared, folder / f"killed_{trainings}")
        moment = moments.uniform(0, seconds)
        if not _killed(cut, zygote, moment, number, settings):
            seconds = moment  # the machine was busier when the first was timed
            continue
        left -= 1
        assert_readable(cut)
        while left and _killed(cut, zygote, moments.uniform(0, seconds), number, settings):
            left -= 1
            assert_readable(cut)
        zygote.run(cut, **settings)
        assert_as_uninterrupted(whole, cut)
    return trainings


def _killed(
    folder: Path, zygote: Zygote, after_s: float, number: int, settings: dict[str, Any]
) -> bool:
    """Whether a training was still running when it was to be killed."""
    status = zygote.stopped(folder, after_s, number, **settings)
    expected = (-number,) if number == signal.SIGKILL else (-number, STOPPED)
    assert status in (0, *expected), (folder / "log.txt").read_text()[-3000:]
    return status != 0


def assert_readable(folder: Path) -> None:
    """What a kill leaves: a whole checkpoint if any, and the best model so far if any."""
    model_dir, best = folder / "model", math.inf
    if (model_dir / "last.pt").exists():
        entries = load_checkpoint(model_dir / "last.pt")["history"]["entries"]
        best = min((entry["voi"] for entry in entries if "voi" in entry), default=math.inf)
    if best < math.inf:  # else there may be a first model already, or a part of one
        described = read_description(model_dir)
        load_checkpoint(model_dir / "model.pt")
        assert described["validation"]["voi"] <= best


def assert_as_uninterrupted(whole: Path, cut: Path) -> None:
    """Bit-equal checkpoints, models and histories, and no other files."""
    assert _files(whole / "model") == _files(cut / "model")
    for name in ("last.pt", "model.pt"):
        one, other = (load_checkpoint(folder / "model" / name) for folder in (whole, cut))
        assert (difference := _difference(one, other)) is None, f"{name}: {difference}"
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (whole, cut))
    assert _difference(one, other) is None
    for name in ("model/model.json", "eval/history.json"):
        one, other = (_json(folder / name, folder) for folder in (whole, cut))
        assert (difference := _difference(one, other)) is None, f"{name}: {difference}"


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _json(path: Path, folder: Path) -> Any:
    return json.loads(path.read_text().replace(str(folder), ""))


def _difference(one: Any, other: Any, name: str = "") -> str | None:
    """Where two nested values differ."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        parts = [_difference(one[k], other[k], f"{name}/{k}") for k in one]
        return next((part for part in parts if part), None)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        parts = [
            _difference(a, b, f"{name}/{i}")
            for i, (a, b) in enumerate(zip(one, other, strict=True))
        ]
        return next((part for part in parts if part), None)
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return None if torch.equal(one, other) else name
    return None if type(one) is type(other) and one == other else f"{name}: {one}, {other}"
