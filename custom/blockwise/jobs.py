"""Workers that are jobs of a batch scheduler."""

import logging
import os
import shlex
import signal
import socket
import sys
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import ClassVar

import daisy
from pydantic import Field

from custom.blockwise.job_board import JobBoard, JobState
from custom.blockwise.scheduler import Answer, call
from custom.blockwise.workers import THREADS, BlockWorker, worker_paths
from custom.errors import InputError

logger = logging.getLogger(__name__)

SLICE_S = 0.1  # a wish to stop is noticed so soon
PATIENCE = 4  # times that a scheduler that cannot be reached is asked again
TIMES_GONE = 3  # answers in a row without a job, until it counts as ended


def job_command(task_file: Path) -> list[str]:
    """Command of a job.

    Args:
        task_file: what ``Tracked.worker_func`` wrote.
    """
    return [sys.executable, "-m", "custom.blockwise.job", str(task_file)]


class StopRequest:
    """Whether this process shall end: SIGTERM, Ctrl-C, or the one that started it is no more."""

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._told = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to both signals."""
        before = {n: signal.signal(n, self._notice) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self._told = True

    def within(self, seconds: float) -> bool:
        """Wait; True as soon as this process shall end."""
        end = time.monotonic() + seconds
        while not (self._told or os.getppid() != self._parent):
            if (left := end - time.monotonic()) <= 0:
                return False
            time.sleep(min(left, SLICE_S))
        return True


class ClusterWorker(BlockWorker):
    """A worker process that is a job of a batch scheduler.

    Args:
        queue: of the scheduler; Slurm's partition.
        num_gpus: of the job.
        num_cpus: of the job, all of one machine; also the threads that libraries start.
        memory_gb: of the job; None for what the queue gives.
        walltime: "hours:minutes" after which the job ends, and another one takes its place; None
            for what the queue gives.
        project: that pays for the job; Slurm's account.
        extra_flags: further arguments of the scheduler's command, each as one string.
        job_name: begins the name of the jobs.
        server_host: name or address of this machine as the cluster's nodes see it; None for the
            address of the interface that leads to the outside.
        log_dir: a job's output is ``<log_dir>/<task>/logs/worker_<n>_<job>.out`` and ``.err``;
            None for the folder of the run's state.
        poll_s: seconds between two questions to the scheduler, which are about all jobs of the run.
    """

    commands: ClassVar[Sequence[str]]
    """Of the scheduler: submits, asks, ends."""

    queue: str
    memory_gb: float | None = None
    walltime: str | None = None
    project: str | None = None
    extra_flags: list[str] = Field(default_factory=list)
    job_name: str = "emseg"
    server_host: str | None = None
    log_dir: Path | None = None
    poll_s: float = 10.0

    @abstractmethod
    def submission(self, line: str, name: str, logs: Path) -> list[str]:
        """The command that submits a job.

        Args:
            line: for the shell of the job.
            name: of the job.
            logs: folder and beginning of the names of the job's output.
        """

    @abstractmethod
    def job_of(self, answer: Answer) -> str | None:
        """Number of the job that the scheduler took; None where it took none."""

    @abstractmethod
    def states(self, jobs: Sequence[str]) -> Mapping[str, JobState] | None:
        """States of jobs that the scheduler knows; None where it could not be reached."""

    def run(self, task_file: Path) -> None:
        """Submit the job and wait for its end; it ends with this process, too.

        Args:
            task_file: what ``Tracked.worker_func`` wrote.

        Raises:
            SystemExit: the job failed; daisy starts another then.
            InputError: the scheduler refused the job.
        """
        task_file, stop = task_file.absolute(), StopRequest()
        logs = self._logs(task_file)
        board = JobBoard(logs.parents[2] / f"{self.commands[0]}_jobs", self.states, self.poll_s)
        with stop.listening():
            for job in board.left_behind():
                self._end(job)
            job = self._submit(task_file, logs, stop)
            state = None
            try:
                board.add(job)
                state = self._wait(job, board, stop)
            finally:
                if state is None:
                    self._end(job)
                board.remove(job)
        if state in (JobState.FAILED, JobState.GONE):
            told = Path(f"{logs}_{job}.err")
            raise SystemExit(f"job {job} failed ({_last_line(told)}); all it said is in '{told}'")

    def _logs(self, task_file: Path) -> Path:
        """Folder and beginning of the names of a worker's output."""
        folder = self.log_dir.absolute() if self.log_dir else task_file.parent.parent
        folder = folder / task_file.parent.name / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"worker_{daisy.Context.from_env()['worker_id']}"

    def _submit(self, task_file: Path, logs: Path, stop: StopRequest) -> str:
        """Number of a new job."""
        name = f"{self.job_name}_{task_file.parent.name}"
        command = self.submission(self.line(task_file), name, logs)
        for tries in range(PATIENCE + 1):
            answer = call(command)
            if job := self.job_of(answer):
                return job
            if not answer.passing:
                break
            if stop.within(self.poll_s * 2**tries):
                raise SystemExit("stopped before there was a job")
        raise InputError(
            f"{command[0]} refused a job of '{task_file.parent.name}' ({answer.words}); mend "
            f"cluster_settings; the command was: {shlex.join(command[:-1])}"
        )

    def line(self, task_file: Path) -> str:
        """What the job's shell runs.

        Schedulers may be set up to pass no environment on, so that what a worker needs is said.
        """
        context = daisy.Context.from_env()
        context["hostname"] = self._host(context["hostname"])
        variables = {
            context.ENV_VARIABLE: context.to_env(),
            "PYTHONPATH": worker_paths(),
            **dict.fromkeys(THREADS, self.num_cpus),
        }
        said = [f"{name}={value}" for name, value in variables.items()]
        return shlex.join(["env", *said, *job_command(task_file)])

    def _host(self, found: str) -> str:
        """Where the cluster's nodes reach the server."""
        if self.server_host:
            return self.server_host
        return socket.gethostname() if found.startswith("127.") else found

    def _wait(self, job: str, board: JobBoard, stop: StopRequest) -> JobState | None:
        """How a job ended; None where this process shall end before it."""
        gone = 0
        while not stop.within(self.poll_s):
            state = board.state(job)
            gone = gone + 1 if state == JobState.GONE else 0
            if state in (JobState.DONE, JobState.FAILED) or gone == TIMES_GONE:
                return state
        return None

    def _end(self, job: str) -> None:
        """End a job, which may have ended itself."""
        command = [self.commands[2], job]
        for tries in range(PATIENCE):
            answer = call(command)
            if not answer.passing:
                return
            time.sleep(self.poll_s * tries / PATIENCE)
        logger.error("job %s may still be there (%s): %s", job, answer.words, shlex.join(command))


def _last_line(path: Path) -> str:
    """The last thing that a job said."""
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "no word")[-500:]
