import shlex
from pathlib import Path

import pytest

from custom.blockwise.lsf import LsfWorker
from custom.blockwise.scheduler import Answer, call
from custom.blockwise.workers import THREADS, worker_paths
from tests.blockwise.schedulers.commands import PORT, install, runs, task_file, worker


def test_what_is_submitted_is_what_ibm_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, path = install("lsf", tmp_path, monkeypatch), task_file(tmp_path)
    runs(monkeypatch, "true")
    made = worker(
        "lsf",
        queue="gpu",
        gpus=1,
        cpus=4,
        memory_gb=16,
        walltime="24:00",
        project="connectome",
        extra_flags=["-m", "h01 h02"],
        job_name="fly",
        server_host="login1",
    )
    made.run(path)
    (call,) = spool.calls("bsub")
    logs = path.parent / "logs" / "worker_5"
    assert call[:-1] == [
        *("bsub", "-J", "fly_predict", "-q", "gpu", "-n", "4"),
        *("-R", "span[hosts=1] rusage[mem=16384MB]", "-rn", "-gpu", "num=1", "-W", "24:00"),
        *("-P", "connectome", "-o", f"{logs}_%J.out", "-e", f"{logs}_%J.err", "-m", "h01 h02"),
    ]
    context = f"logdir=None:hostname=login1:port={PORT}:task_id=t:worker_id=5"
    variables = [f"DAISY_CONTEXT={context}", f"PYTHONPATH={worker_paths()}"]
    variables += [f"{name}=4" for name in THREADS]
    assert shlex.split(call[-1]) == ["env", *variables, "true"]


def test_what_is_not_said_is_left_to_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("lsf", tmp_path, monkeypatch)
    command = worker("lsf").submission("true", "emseg_t", tmp_path / "log")
    assert command[1:8] == ["-J", "emseg_t", "-q", "normal", "-n", "1", "-R"]
    assert command[8:10] == ["span[hosts=1]", "-rn"]
    assert not {"-gpu", "-W", "-P"} & set(command)


def test_the_stand_in_refuses_what_volara_submits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("lsf", tmp_path, monkeypatch)
    assert "illegal option -- num-gpus" in call(["bsub", "-n", "1", "-num-gpus", "1", "true"]).words


@pytest.mark.parametrize(
    ("state", "ended"),
    [
        ("PEND", "alive"),
        ("PSUSP", "alive"),
        ("RUN", "alive"),
        ("SSUSP", "alive"),
        ("UNKWN", "alive"),
        ("DONE", "done"),
        ("EXIT", "failed"),
        ("ZOMBI", "failed"),
    ],
)
def test_states_are_those_of_bjobs(state: str, ended: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Answer(255, f"12 {state}\n", "Job <13> is not found")
    monkeypatch.setattr("custom.blockwise.lsf.call", lambda command: answer)
    assert LsfWorker(queue="normal").states(["12", "13"]) == {"12": ended}
