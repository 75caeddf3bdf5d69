"""Whole runs on the stand-ins for LSF and Slurm."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from custom.blockwise.runs import run_tasks
from custom.errors import InputError
from custom.interruption import STOPPED
from tests.blockwise.schedulers.commands import install, worker
from tests.blockwise.slow_counting import SlowCounting

BLOCKS = 8
pytestmark = pytest.mark.slow


def chain(cluster: str, folder: Path, queue: str = "normal", rest_s: float = 0.2) -> list:
    """Two tasks whose workers are jobs."""
    return [
        SlowCounting(
            state_dir=folder / "state",
            name=name,
            folder=folder / name,
            rest_s=rest_s,
            worker_config=worker(cluster, queue=queue),
        )
        for name in ("first", "second")
    ]


def begin_run(cluster: str, folder: Path) -> None:
    """A run of two workers that does not end by itself, in a process of its own."""
    run_tasks(chain(cluster, folder, rest_s=600), folder / "state", 2)


@pytest.mark.parametrize("cluster", ["lsf", "slurm"])
def test_a_chain_runs_on_a_cluster_whose_jobs_wait_and_are_killed(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = install(cluster, tmp_path, monkeypatch)
    spool.control(delay_s=0.5, kill={"1": f"{tmp_path}/state/first/running/[0-9]*.json"})
    run_tasks(chain(cluster, tmp_path), tmp_path / "state", 2)
    for name in ("first", "second"):
        done = {path.name: path.read_text().split() for path in (tmp_path / name).iterdir()}
        assert len(done) == BLOCKS
        assert all(len(processes) == 1 for processes in done.values())
    spool.wait_for(0)
    assert spool.jobs()[1]["state"] == "EXIT"
    assert len(spool.jobs()) == 5  # two for each task, and one in the place of the killed one


@pytest.mark.parametrize(
    ("cluster", "number", "status"),
    [("lsf", signal.SIGTERM, STOPPED), ("slurm", signal.SIGKILL, -signal.SIGKILL)],
)
def test_no_job_is_left_behind(
    cluster: str, number: int, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = install(cluster, tmp_path, monkeypatch)
    program = f"from {__name__} import *; begin_run({cluster!r}, Path({str(tmp_path)!r}))"
    with subprocess.Popen([sys.executable, "-c", program], env=os.environ) as run:
        spool.wait_for(2)
        run.send_signal(number)
        assert run.wait(60) == status
    spool.wait_for(0)
    assert len(spool.jobs()) == 2


def test_a_partition_that_does_not_exist_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = install("slurm", tmp_path, monkeypatch)
    with pytest.raises(InputError, match=r"sbatch refused a job of 'first' .*partition name"):
        run_tasks(chain("slurm", tmp_path, queue="unknown"), tmp_path / "state", 2)
    assert len(spool.calls("sbatch")) <= 2
