"""Stand-ins for bsub, bjobs and bkill: python lsf.py <spool folder> <command> <arguments>.

They take the options of IBM's command reference of LSF 10.1 and no others, and say what LSF says.
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # run as a program, in any folder

from spool import Spool

FLAGS = {"-B", "-H", "-K", "-N", "-ar", "-r", "-rn", "-ul", "-x"}
VALUES = {
    "-G": r"\S+",
    "-J": r"[\w.-]+",
    "-M": r"\d+([KMGT]B?)?!?",
    "-P": r"\S+",
    "-R": r"((span|rusage|select|order|affinity|same|cu)\[[^\]]+\]( |$))+",
    "-W": r"(\d+:)?\d+",
    "-app": r"\S+",
    "-cwd": r".+",
    "-e": r".+",
    "-gpu": r"-|num=\d+(/task|/host)?(:\w+=[\w,-]+)*",
    "-m": r".+",
    "-n": r"\d+(,\d+)?",
    "-o": r".+",
    "-q": r"\S+",
    "-sla": r"\S+",
    "-sp": r"\d+",
}
MEMORY = re.compile(r"mem=\d+([KMGT]B?)?(:|,|\]|$)")


def bsub(spool: Spool, words: list[str]) -> int:
    """Submit a job."""
    options: dict[str, str] = {}
    while words and words[0].startswith("-"):
        word = words.pop(0)
        if word in FLAGS:
            continue
        if word not in VALUES:
            return fail(f"bsub: illegal option -- {word[1:]}")
        if not words or not re.fullmatch(VALUES[word], words[0]):
            return fail(f"{words[:1]}: Bad value of {word}. Job not submitted.")
        options[word] = words.pop(0)
    if "mem=" in options.get("-R", "") and not MEMORY.search(options["-R"]):
        return fail("Bad resource requirement syntax. Job not submitted.")
    if spool.lost():
        return fail("LSF is down. Please wait ...")
    queue = options.get("-q", "normal")
    if queue not in spool.control()["queues"]:
        return fail(f"{queue}: No such queue. Job not submitted.")
    if "refuse" in spool.control():
        return fail(spool.control()["refuse"])
    number = spool.submit(" ".join(words), options["-o"], options["-e"], "%J")
    print(f"Job <{number}> is submitted to queue <{queue}>.")
    return 0


def bjobs(spool: Spool, words: list[str]) -> int:
    """Show jobs."""
    if words[:3] != ["-noheader", "-o", "jobid stat"]:
        return fail(f"bjobs: illegal option -- {words}")
    if spool.lost():
        return fail("batch daemon not responding ... still trying")
    known, found = spool.known(), 0
    for word in words[3:]:
        if int(word) in known:
            found += 1
            print(word, known[int(word)]["state"])
        else:
            print(f"Job <{word}> is not found", file=sys.stderr)
    return 0 if found else 255


def bkill(spool: Spool, words: list[str]) -> int:
    """End a job."""
    (number,) = (int(word) for word in words)
    if spool.lost():
        return fail("LSF is down. Please wait ...")
    if number not in spool.known():
        return fail(f"Job <{number}>: No matching job found")
    if number not in spool.alive():
        return fail(f"Job <{number}>: Job has already finished")
    spool.cancel(number)
    print(f"Job <{number}> is being terminated")
    return 0


def fail(words: str) -> int:
    print(words, file=sys.stderr)
    return 255


if __name__ == "__main__":
    place, name, *arguments = sys.argv[1:]
    Spool(Path(place)).note(name, arguments)
    sys.exit({"bsub": bsub, "bjobs": bjobs, "bkill": bkill}[name](Spool(Path(place)), arguments))
