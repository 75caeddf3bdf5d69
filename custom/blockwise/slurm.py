"""Workers that are jobs of Slurm."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from custom.blockwise.job_board import JobState
from custom.blockwise.jobs import ClusterWorker
from custom.blockwise.scheduler import Answer, call

FAILURES = (
    "BOOT_FAIL",
    "CANCELLED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
)
ENDED = {"COMPLETED": JobState.DONE, **dict.fromkeys(FAILURES, JobState.FAILED)}
"""All other states are of jobs that wait, run, begin, end or are held."""


class SlurmWorker(ClusterWorker):
    """A job of Slurm.

    The job is not queued again by Slurm where its machine fails or another job takes its place
    (``--no-requeue``): another one is submitted.

    Source:
        Manual pages of Slurm (https://slurm.schedmd.com/): sbatch.html, squeue.html, scancel.html;
        what squeue says of jobs that it has forgotten: https://github.com/riga/law/pull/125 and
        https://github.com/OSC/ood_core/issues/220.
    """

    commands: ClassVar[Sequence[str]] = ("sbatch", "squeue", "scancel")

    def submission(self, line: str, name: str, logs: Path) -> list[str]:
        """As of ``ClusterWorker``; sbatch makes a script of the line."""
        options = [f"--job-name={name}", f"--partition={self.queue}", "--nodes=1", "--ntasks=1"]
        options += [f"--cpus-per-task={self.num_cpus}", "--no-requeue"]
        if self.memory_gb is not None:
            options.append(f"--mem={round(self.memory_gb * 1024)}M")
        if self.num_gpus:
            options.append(f"--gres=gpu:{self.num_gpus}")
        if self.walltime is not None:
            options.append(f"--time={self.walltime}:00")
        if self.project is not None:
            options.append(f"--account={self.project}")
        place = str(logs).replace("%", "%%")
        output = [f"--output={place}_%j.out", f"--error={place}_%j.err"]
        return ["sbatch", "--parsable", *options, *output, *self.extra_flags, f"--wrap={line}"]

    def job_of(self, answer: Answer) -> str | None:
        """From such as "123", or "123;cluster"."""
        number = answer.said.strip().partition(";")[0]
        return number if answer.status == 0 and number.isdecimal() else None

    def states(self, jobs: Sequence[str]) -> Mapping[str, JobState] | None:
        """As of ``ClusterWorker``; by default, finished jobs are known for five minutes."""
        options = ["--noheader", "--states=all", "--format=%i %T"]
        answer = call(["squeue", *options, f"--jobs={','.join(jobs)}"])
        if answer.status == 0:
            lines = [line.split() for line in answer.said.splitlines()]
            known = [words for words in lines if len(words) == 2]
            return {job: ENDED.get(state, JobState.ALIVE) for job, state in known}
        if "Invalid job id" not in answer.complaint:
            return None
        return {} if len(jobs) == 1 else self._one_by_one(jobs)

    def _one_by_one(self, jobs: Sequence[str]) -> Mapping[str, JobState] | None:
        """States of jobs one of which Slurm has forgotten, for which some versions refuse all."""
        found: dict[str, JobState] = {}
        for job in jobs:
            state = self.states([job])
            if state is None:
                return None
            found |= state
        return found
