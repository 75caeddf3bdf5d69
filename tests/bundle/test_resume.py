"""Trainings that are stopped from outside, through the command line, workers and all."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from custom.checkpoints import load_checkpoint
from tests.bundle import tiny
from tests.killed_training import assert_as_uninterrupted, beginning
from tests.zygote import zygote

pytestmark = pytest.mark.slow

SETTINGS: dict[str, Any] = {"epochs": 2, "iterations_per_epoch": 20, "save_interval": 1}


def begun(folder: Path, **changes: Any) -> subprocess.Popen[str]:
    """A training through the command line, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, *tiny.arguments("training", folder, **SETTINGS, **changes)],
        cwd=tiny.BUNDLE,
        env=tiny.environment() | {"PYTHONPATH": str(tiny.ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def batches(folder: Path) -> int:
    """Batches that the checkpoint of a training has."""
    path = folder / "model" / "last.pt"
    return int(load_checkpoint(path)["iteration"]) if path.exists() else 0


def begun_until(folder: Path, count: int, **changes: Any) -> subprocess.Popen[str]:
    """A training that has saved so many batches."""
    process = begun(folder, **changes)
    while batches(folder) < count and process.poll() is None:
        time.sleep(0.05)
    return process


def group_is_gone(group: int, within_s: float = 30) -> bool:
    """Whether all processes of a group end in time."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_a_training_with_workers_that_is_stopped_and_killed_ends_like_one_that_was_not(
    finished: Path, tmp_path: Path
) -> None:
    """Ctrl-C as a terminal sends it: to the worker processes, too. The kill: to their parent."""
    whole, cut = (beginning(finished, tmp_path / name) for name in ("whole", "cut"))
    process = begun_until(cut, 2, num_workers=2)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 75, said[-3000:]
    assert "SIGINT: training stops when" in said
    assert "Traceback" not in said and "Error" not in said and "exception" not in said
    done = batches(cut)
    assert 2 <= done < 40 and f"saved after batch {done};" in said
    assert group_is_gone(process.pid)

    process = begun_until(cut, done + 2, num_workers=1)
    process.kill()
    process.communicate()
    assert group_is_gone(process.pid)
    assert done + 2 <= batches(cut) < 40
    with zygote() as runs:
        for folder in (whole, cut):
            runs.run(folder, **SETTINGS)
    assert_as_uninterrupted(whole, cut)
