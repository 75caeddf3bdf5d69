"""Stand-ins for sbatch, squeue and scancel: python slurm.py <spool folder> <command> <arguments>.

They take options of Slurm's manual pages and no others, and say what Slurm says.
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # run as a program, in any folder

from spool import Spool

FLAGS = {"--parsable", "--no-requeue", "--requeue", "--exclusive"}
VALUES = {
    "--account": r"\S+",
    "--constraint": r"\S+",
    "--cpus-per-task": r"\d+",
    "--error": r".+",
    "--gpus": r"(\w+:)?\d+",
    "--gres": r"gpu(:\w+)?:\d+",
    "--job-name": r".+",
    "--mem": r"\d+[KMGT]?",
    "--nodes": r"\d+(-\d+)?",
    "--ntasks": r"\d+",
    "--output": r".+",
    "--partition": r"\S+",
    "--qos": r"\S+",
    "--time": r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}",
    "--wrap": r"(.|\n)+",
}
STATES = {"PEND": "PENDING", "RUN": "RUNNING", "DONE": "COMPLETED", "EXIT": "FAILED"}
LOST = "Unable to contact slurm controller (connect failure)"


def sbatch(spool: Spool, words: list[str]) -> int:
    """Submit a job."""
    options: dict[str, str] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in VALUES and word not in FLAGS:
            return fail(f"sbatch: unrecognized option '{name}'")
        if name in VALUES and not re.fullmatch(VALUES[name], value):
            return fail(f"sbatch: error: Invalid {name} specification {value}")
        options[name] = value
    if spool.lost():
        return fail(f"sbatch: error: Batch job submission failed: {LOST}")
    partition = options.get("--partition", "normal")
    if partition not in spool.control()["queues"]:
        return fail(
            f"sbatch: error: invalid partition specified: {partition}\n"
            "sbatch: error: Batch job submission failed: Invalid partition name specified"
        )
    if "refuse" in spool.control():
        return fail(spool.control()["refuse"])
    out, err = (options[word].replace("%%", "%") for word in ("--output", "--error"))
    number = spool.submit(options["--wrap"], out, err, "%j")
    print(number if "--parsable" in options else f"Submitted batch job {number}")
    return 0


def squeue(spool: Spool, words: list[str]) -> int:
    """Show jobs; without all states only those that have not ended."""
    *options, jobs = words
    if options != ["--noheader", "--states=all", "--format=%i %T"] or "--jobs=" not in jobs:
        return fail(f"squeue: unrecognized option {words}")
    if spool.lost():
        return fail(f"slurm_load_jobs error: {LOST}")
    known = spool.known()
    wanted = [int(word) for word in jobs.removeprefix("--jobs=").split(",")]
    if any(number not in known for number in wanted):
        return fail("slurm_load_jobs error: Invalid job id specified")
    for number in wanted:
        job = known[number]
        print(number, "CANCELLED" if job.get("cancelled") else STATES[job["state"]])
    return 0


def scancel(spool: Spool, words: list[str]) -> int:
    """End a job."""
    (number,) = (int(word) for word in words)
    if spool.lost():
        return fail(f"scancel: error: {LOST}")
    if number not in spool.known():
        return fail(f"scancel: error: Kill job error on job id {number}: Invalid job id specified")
    spool.cancel(number)
    return 0


def fail(words: str) -> int:
    print(words, file=sys.stderr)
    return 1


if __name__ == "__main__":
    place, name, *arguments = sys.argv[1:]
    Spool(Path(place)).note(name, arguments)
    known = {"sbatch": sbatch, "squeue": squeue, "scancel": scancel}
    sys.exit(known[name](Spool(Path(place)), arguments))
