"""Workers that are jobs of IBM Spectrum LSF."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from custom.blockwise.job_board import JobState
from custom.blockwise.jobs import ClusterWorker
from custom.blockwise.scheduler import Answer, call

ENDED = {"DONE": JobState.DONE, "EXIT": JobState.FAILED, "ZOMBI": JobState.FAILED}
"""All other states are of jobs that wait, run, are held, or on a machine that is not heard of."""


class LsfWorker(ClusterWorker):
    """A job of LSF from 10.1.0.3 on, where ``-gpu`` and units of memory came in.

    The job is not run again by LSF where its machine fails (``-rn``): another one takes its place.

    Source:
        IBM's command reference of LSF 10.1 (https://www.ibm.com/docs/en/SSWRJV_10.1.0/
        lsf_command_ref/): bsub.man_top.1, bsub.__r.1 (-R), bsub.gpu.1, bsub.rn.1, bjobs.o.1; what
        bjobs says of unknown jobs: lsf_config_ref/lsf.conf.lsb_bjobs_consistent_exit_code.5.
    """

    commands: ClassVar[Sequence[str]] = ("bsub", "bjobs", "bkill")

    def submission(self, line: str, name: str, logs: Path) -> list[str]:
        """As of ``ClusterWorker``; the words after the options are for the job's shell."""
        needs = "span[hosts=1]"  # all processors on one machine
        if self.memory_gb is not None:
            needs += f" rusage[mem={round(self.memory_gb * 1024)}MB]"
        options = ["-J", name, "-q", self.queue, "-n", str(self.num_cpus), "-R", needs, "-rn"]
        if self.num_gpus:
            options += ["-gpu", f"num={self.num_gpus}"]
        if self.walltime is not None:
            options += ["-W", self.walltime]
        if self.project is not None:
            options += ["-P", self.project]
        output = ["-o", f"{logs}_%J.out", "-e", f"{logs}_%J.err"]
        return ["bsub", *options, *output, *self.extra_flags, line]

    def job_of(self, answer: Answer) -> str | None:
        """From such as "Job <123> is submitted to queue <normal>."."""
        found = re.search(r"Job <(\d+)> is submitted", answer.said)
        return found[1] if found else None

    def states(self, jobs: Sequence[str]) -> Mapping[str, JobState] | None:
        """As of ``ClusterWorker``; by default, finished jobs are known for an hour."""
        answer = call(["bjobs", "-noheader", "-o", "jobid stat", *jobs])
        if answer.status != 0 and "is not found" not in answer.complaint:
            return None
        lines = [line.split() for line in answer.said.splitlines()]
        known = [words for words in lines if len(words) == 2]
        return {job: ENDED.get(state, JobState.ALIVE) for job, state in known}
