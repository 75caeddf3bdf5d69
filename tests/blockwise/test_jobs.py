import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from custom.blockwise.cluster import CLUSTERS, cluster_worker
from custom.blockwise.connection import refuse_unreachable
from custom.blockwise.job_board import JobBoard, JobState
from custom.blockwise.scheduler import Answer, call
from custom.errors import InputError
from tests.blockwise.schedulers.commands import install, runs, task_file, worker
from tests.blockwise.schedulers.spool import Spool

WORDS = {
    "lsf": "unknown: No such queue. Job not submitted.",
    "slurm": "Invalid partition name specified",
}


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow) for name in ("lsf", "slurm")])
def cluster(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def spool(cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spool]:
    made = install(cluster, tmp_path, monkeypatch)
    yield made
    for number in made.alive():
        made.cancel(number)


def test_a_job_is_waited_for_and_its_output_kept(
    cluster: str, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.control(delay_s=0.3)
    runs(monkeypatch, "sh", "-c", "echo it went well")
    worker(cluster).run(task_file(tmp_path))
    assert spool.jobs()[1]["state"] == "DONE"
    logs = tmp_path / "state" / "predict" / "logs"
    assert (logs / "worker_5_1.out").read_text() == "it went well\n"


def test_a_job_that_fails_is_told_with_its_output(
    cluster: str, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(monkeypatch, "sh", "-c", "echo no GPU here >&2; exit 3")
    with pytest.raises(SystemExit, match=r"job 1 failed \(no GPU here\)") as ended:
        worker(cluster).run(task_file(tmp_path))
    told = Path(str(ended.value).split("'")[1])
    assert told.read_text() == "no GPU here\n"
    assert told.name == "worker_5_1.err"


def test_a_refused_job_ends_the_run_in_the_schedulers_words(
    cluster: str, spool: Spool, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=rf"refused a job of 'predict' .*{WORDS[cluster]}"):
        worker(cluster, queue="unknown").run(task_file(tmp_path))
    spool.control(refuse="Project zebra may not use this")
    with pytest.raises(InputError, match="Project zebra may not use this"):
        worker(cluster, project="zebra").run(task_file(tmp_path / "2"))
    assert not spool.jobs()


def test_a_scheduler_that_is_away_for_a_moment_is_asked_again(
    cluster: str, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(monkeypatch, "true")
    submit, ask, _ = CLUSTERS[cluster].commands
    spool.control(unreachable=2)

    def add(board: JobBoard, job: str) -> None:
        spool.control(unreachable=2)
        noted(board, job)

    noted = JobBoard.add
    monkeypatch.setattr(JobBoard, "add", add)
    worker(cluster).run(task_file(tmp_path))
    assert len(spool.calls(submit)) == 3
    assert len(spool.calls(ask)) >= 3
    assert len(spool.jobs()) == 1


def test_a_scheduler_that_stays_away_ends_the_run(
    cluster: str, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.control(unreachable=99)
    monkeypatch.setattr("custom.blockwise.jobs.PATIENCE", 1)
    with pytest.raises(InputError, match=r"refused a job.*(LSF is down|Unable to contact)"):
        worker(cluster).run(task_file(tmp_path))


@pytest.mark.parametrize(
    ("number", "delay_s"), [(signal.SIGTERM, 60), (signal.SIGINT, 0)], ids=["waiting", "running"]
)
def test_a_signal_ends_the_job(
    number: int,
    delay_s: float,
    cluster: str,
    spool: Spool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs(monkeypatch, "sleep", "60")
    spool.control(delay_s=delay_s)

    def send() -> None:
        with suppress(TimeoutError):
            spool.wait_for(1)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    worker(cluster).run(task_file(tmp_path))
    thread.join()
    spool.wait_for(0)
    assert len(spool.jobs()) == 1


def test_a_job_is_ended_though_the_scheduler_is_away_for_a_moment(
    cluster: str, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(monkeypatch, "sleep", "60")
    made = worker(cluster)

    def stop(seconds: float) -> bool:
        spool.control(unreachable=2)
        return True

    monkeypatch.setattr("custom.blockwise.jobs.StopRequest.within", lambda self, s: stop(s))
    made.run(task_file(tmp_path))
    spool.wait_for(0)


def test_a_job_that_the_scheduler_has_forgotten_counts_as_failed(
    cluster: str, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(monkeypatch, "true")
    spool.control(forget=[1])
    with pytest.raises(SystemExit, match=r"job 1 failed"):
        worker(cluster).run(task_file(tmp_path))


def test_jobs_of_a_server_that_is_no_more_are_ended_by_the_next_run(
    cluster: str, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(monkeypatch, "sleep", "60")
    path, made = task_file(tmp_path), worker(cluster)
    left = made.job_of(call(made.submission("sleep 60", "left", path.parent / "left")))
    assert left is not None
    folder = tmp_path / "state" / f"{made.commands[0]}_jobs"
    with monkeypatch.context() as patch:
        patch.setattr(os, "getppid", lambda: 2**22 + 1)  # no process has this number
        JobBoard(folder, made.states, 1).add(left)
    runs(monkeypatch, "true")
    made.run(path)
    spool.wait_for(0)
    assert spool.jobs()[int(left)]["state"] == "EXIT"


def test_one_question_serves_all_that_wait(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def ask(jobs: Sequence[str]) -> dict[str, JobState]:
        asked.append(list(jobs))
        assert boards[1].state("7") is None  # another that waits, at the same moment
        return {"7": JobState.DONE}

    boards = [JobBoard(tmp_path, ask, 3600) for _ in range(3)]
    for board, job in zip(boards, "678", strict=True):
        board.add(job)
    states = [board.state(job) for board, job in zip(boards, "678", strict=True)]
    assert asked == [["6", "7", "8"]]
    assert states == [JobState.GONE, JobState.DONE, JobState.GONE]
    boards[0].add("9")
    assert boards[0].state("9") is None


def test_a_worker_says_what_it_does_not_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    context = f"logdir=.:hostname=127.0.0.1:port={port}:task_id=t:worker_id=0"
    monkeypatch.setenv("DAISY_CONTEXT", context)
    path = task_file(tmp_path)
    with pytest.raises(InputError, match=r"does not see '.*task\.json': output_dir must lie on"):
        refuse_unreachable(path)
    path.touch()
    with pytest.raises(InputError, match=rf"127.0.0.1:{port}.*cluster_settings.server_host"):
        refuse_unreachable(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "lacks 'queue'"),
        ({"queue": None, "cpus": 2}, "lacks 'queue'"),
        ({"queue": "a b"}, "cluster_settings#queue must be a name"),
        ({"partition": "gpu"}, "unknown key 'partition'; did you mean 'queue'"),
        ({"queue": "gpu", "gpu": 1}, "unknown key 'gpu'; did you mean 'gpus'"),
        ({"queue": "gpu", "gpus": -1}, "cluster_settings#gpus must be a whole number from 0"),
        ({"queue": "gpu", "cpus": 0}, "cluster_settings#cpus must be a whole number from 1"),
        ({"queue": "gpu", "memory_gb": "16"}, "cluster_settings#memory_gb must be a number"),
        ({"queue": "gpu", "memory_gb": 0}, "cluster_settings#memory_gb must be a number"),
        ({"queue": "gpu", "walltime": 480}, 'walltime must be "hours:minutes"'),
        ({"queue": "gpu", "walltime": "24:00:00"}, 'walltime must be "hours:minutes"'),
        ({"queue": "gpu", "walltime": "0:00"}, 'walltime must be "hours:minutes"'),
        ({"queue": "gpu", "extra_flags": "-m h1"}, "extra_flags must be a list"),
        ({"queue": "gpu", "extra_flags": [1]}, "extra_flags must be a list of strings"),
        ({"queue": "gpu", "server_host": "a:1"}, "server_host must be of letters"),
        ("gpu", "cluster_settings must be a JSON object"),
    ],
)
def test_settings_are_checked_before_any_work(
    settings: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = install("slurm", tmp_path, monkeypatch)
    with pytest.raises(InputError, match=message):
        cluster_worker("slurm", settings)
    assert not spool.calls("sbatch")


def test_clusters_and_their_commands_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="null, 'lsf' or 'slurm', got 'pbs'"):
        cluster_worker("pbs", {"queue": "normal"})
    with pytest.raises(InputError, match="no command 'bsub' here"):
        cluster_worker("lsf", {"queue": "normal"})
    with pytest.raises(InputError, match="no command 'sbatch' here"):
        cluster_worker("slurm", {"queue": "normal"})
    assert cluster_worker(None, None) is None


def test_a_command_without_an_answer_is_a_passing_fault() -> None:
    assert call(["/no/such/command"]).passing
    assert not Answer(1, "", "Invalid account").passing


def test_ctrl_c_does_not_reach_the_schedulers_commands() -> None:
    answer = call([sys.executable, "-S", "-c", "import os; print(os.getsid(0))"])
    assert int(answer.said) != os.getsid(0)
