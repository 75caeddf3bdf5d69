"""Whole runs on the stand-ins for LSF and Slurm."""

from pathlib import Path

import pytest

from custom.blockwise.runs import run_tasks
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
