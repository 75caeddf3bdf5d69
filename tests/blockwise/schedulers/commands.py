"""A scheduler's commands on the PATH, and what tests do with them."""

import sys
from pathlib import Path
from typing import Any

import pytest

from custom.blockwise.cluster import CLUSTERS, cluster_worker
from custom.blockwise.jobs import ClusterWorker
from tests.blockwise.schedulers.spool import Spool

HERE = Path(__file__).parent
PORT = 4711


def install(cluster: str, folder: Path, patch: pytest.MonkeyPatch) -> Spool:
    """Put the stand-ins of "lsf" or "slurm" on the PATH.

    Args:
        cluster: which.
        folder: for them and their jobs.
        patch: of the test.
    """
    commands, spool = folder / "bin", folder / "spool"
    commands.mkdir()
    spool.mkdir()
    for name in CLUSTERS[cluster].commands:
        path = commands / name
        program = f"{sys.executable} -S {HERE / f'{cluster}.py'} {spool} {name}"
        path.write_text(f'#!/bin/sh\nexec {program} "$@"\n')
        path.chmod(0o755)
    patch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    patch.setenv(
        "DAISY_CONTEXT", f"logdir=None:hostname=127.0.0.1:port={PORT}:task_id=t:worker_id=5"
    )
    return Spool(spool)


def worker(cluster: str, **settings: Any) -> ClusterWorker:
    """A worker as of the configuration, that asks its scheduler ten times a second."""
    made = cluster_worker(cluster, {"queue": "normal", **settings})
    assert isinstance(made, ClusterWorker)
    return made.model_copy(update={"poll_s": 0.1})


def task_file(folder: Path) -> Path:
    """Where a task's file would be."""
    path = folder / "state" / "predict" / "task.json"
    path.parent.mkdir(parents=True)
    return path


def runs(patch: pytest.MonkeyPatch, *command: str) -> None:
    """Let jobs run a command instead of a worker."""
    patch.setattr("custom.blockwise.jobs.job_command", lambda path: list(command))
