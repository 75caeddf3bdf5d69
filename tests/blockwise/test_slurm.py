import shlex
from pathlib import Path

import pytest

from custom.blockwise.scheduler import Answer, call
from custom.blockwise.slurm import SlurmWorker
from custom.blockwise.workers import THREADS, worker_paths
from tests.blockwise.schedulers.commands import PORT, install, runs, task_file, worker


def test_what_is_submitted_is_what_the_manual_page_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, path = install("slurm", tmp_path, monkeypatch), task_file(tmp_path / "100% raw")
    runs(monkeypatch, "true")
    made = worker(
        "slurm",
        queue="gpu",
        gpus=2,
        cpus=8,
        memory_gb=0.5,
        walltime="72:30",
        project="connectome",
        extra_flags=["--qos=long"],
        job_name="fly",
        server_host="login1",
    )
    made.run(path)
    (submitted,) = spool.calls("sbatch")
    logs = str(path.parent / "logs" / "worker_5").replace("%", "%%")
    assert submitted[:-1] == [
        *("sbatch", "--parsable", "--job-name=fly_predict", "--partition=gpu", "--nodes=1"),
        *("--ntasks=1", "--cpus-per-task=8", "--no-requeue", "--mem=512M", "--gres=gpu:2"),
        *("--time=72:30:00", "--account=connectome", f"--output={logs}_%j.out"),
        *(f"--error={logs}_%j.err", "--qos=long"),
    ]
    context = f"logdir=None:hostname=login1:port={PORT}:task_id=t:worker_id=5"
    variables = [f"DAISY_CONTEXT={context}", f"PYTHONPATH={worker_paths()}"]
    variables += [f"{name}=8" for name in THREADS]
    line = submitted[-1].removeprefix("--wrap=")
    assert shlex.split(line) == ["env", *variables, "true"]
    assert (path.parent / "logs" / "worker_5_1.out").exists()


def test_what_is_not_said_is_left_to_the_partition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("slurm", tmp_path, monkeypatch)
    command = " ".join(worker("slurm").submission("true", "emseg_t", tmp_path / "log"))
    assert "--partition=normal" in command
    assert not any(word in command for word in ("--mem", "--gres", "--time", "--account"))


def test_the_stand_in_knows_the_documented_options_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("slurm", tmp_path, monkeypatch)
    assert "unrecognized option '--queue'" in call(["sbatch", "--queue=a", "--wrap=true"]).words


def test_jobs_that_slurm_has_forgotten_hide_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def squeue(command: list[str]) -> Answer:
        jobs = command[-1].removeprefix("--jobs=").split(",")
        if "13" in jobs:
            return Answer(1, "", "slurm_load_jobs error: Invalid job id specified")
        return Answer(0, "".join(f"{job} RUNNING\n" for job in jobs), "")

    monkeypatch.setattr("custom.blockwise.slurm.call", squeue)
    assert SlurmWorker(queue="gpu").states(["12", "13", "14"]) == {"12": "alive", "14": "alive"}


@pytest.mark.parametrize(
    ("state", "ended"),
    [
        ("PENDING", "alive"),
        ("CONFIGURING", "alive"),
        ("RUNNING", "alive"),
        ("COMPLETING", "alive"),
        ("SUSPENDED", "alive"),
        ("COMPLETED", "done"),
        ("CANCELLED", "failed"),
        ("OUT_OF_MEMORY", "failed"),
        ("PREEMPTED", "failed"),
        ("TIMEOUT", "failed"),
        ("NODE_FAIL", "failed"),
    ],
)
def test_states_are_those_of_squeue(
    state: str, ended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("custom.blockwise.slurm.call", lambda command: Answer(0, f"12 {state}", ""))
    assert SlurmWorker(queue="gpu").states(["12"]) == {"12": ended}
