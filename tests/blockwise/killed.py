"""Runs with workers whose processes are killed at random moments: the same command goes on.

As a command, a run to be killed: python -m tests.blockwise.killed <folder> <seconds per block>
"""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path

import psutil

from custom.blockwise.runs import run_tasks
from custom.errors import InputError
from tests.blockwise.counting import TWICE, Counting

PROJECT = Path(__file__).resolve().parents[2]
KINDS = ("worker", "server", "run", "waiting")
ENDING = ("server", "run")  # whose death ends a run
SHAPE, BLOCK = (40, 60, 80), (10, 20, 20)  # 48 blocks
SECONDS_PER_BLOCK = 0.1
END_S = 20.0  # all processes of a run that was killed end within
LONGEST_S = 300.0  # of a run that nobody kills

Command = Callable[[Path], Sequence[str]]
Check = Callable[[Path], None]


def counting_command(folder: Path) -> list[str]:
    """A run of two tasks that count how often a block was processed."""
    return [sys.executable, "-m", "tests.blockwise.killed", str(folder), str(SECONDS_PER_BLOCK)]


def assert_counted(folder: Path) -> None:
    """Every block was processed, none that was done; nothing runs or failed."""
    blocks = 1
    for length, size in zip(SHAPE, BLOCK, strict=True):
        blocks *= length // size
    for name in ("first", "second"):
        assert not (folder / name / TWICE).exists()
        assert len(list((folder / name).iterdir())) == blocks
        assert not list((folder / "state" / name).glob("running/*"))
        assert not list((folder / "state" / name).glob("failed/*"))


def killed_runs(
    folder: Path,
    kills: int,
    seed: int,
    command: Command = counting_command,
    check: Check = assert_counted,
    state: str = "state",
    kinds: Sequence[str] = (),
    longest_s: float = 2.0,
) -> int:
    """Kill processes of runs, each command again until it has come to its end.

    Args:
        folder: gets a folder for every run.
        kills: how many.
        seed: of the moments.
        command: runs blocks with workers in a folder.
        check: what must hold in the folder at the end.
        state: folder of the run's state, in the run's folder.
        kinds: of the processes that are killed, one after the other; random ones if empty.
        longest_s: from when blocks run to a kill.

    Returns:
        Number of runs that came to their end.
    """
    moments, left, runs = random.Random(seed), kills, 0
    order = cycle(kinds) if kinds else iter(lambda: moments.choice(KINDS), "")
    kind = next(order)
    while left:
        runs += 1
        place, log, status = folder / f"run_{runs}", folder / f"run_{runs}.log", 1
        while status:
            before, killed, run = left, "", _started(command(place), log)
            while left and _reaches_work(run, place / state, moments.uniform(0, longest_s)):
                if not _kill(run, kind, moments):
                    continue
                sys.stdout.write(f"kill {kills - left + 1} of {kills}, seed {seed}: {kind}\n")
                left, killed, kind = left - 1, kind, next(order)
                if killed in ENDING:
                    break
            status = run.wait(LONGEST_S)
            said = log.read_text()[-3000:]
            assert not status or left < before, said
            assert killed != "server" or "was ended by signal SIGKILL" in said, said
        check(place)
    return runs


def _started(command: Sequence[str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as file:
        return subprocess.Popen(command, cwd=PROJECT, stdout=file, stderr=file)


def _reaches_work(run: "subprocess.Popen[bytes]", state: Path, seconds: float) -> bool:
    """Whether a run is still at work so many seconds after it has begun its blocks."""
    end = time.monotonic() + LONGEST_S
    while not list(state.glob("*/running/[0-9]*.json")):
        if run.poll() is not None:
            return False
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(seconds)
    return run.poll() is None


def _kill(run: "subprocess.Popen[bytes]", kind: str, moments: random.Random) -> bool:
    """Kill one process of a kind; whether there was one."""
    everyone = processes_of(run.pid)
    if not everyone.get(kind):
        return False
    victim = moments.choice(everyone[kind])
    orphans = _children(victim) if kind == "waiting" else []
    try:
        victim.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return False
    if kind in ENDING:
        orphans = [p for kind in ("server", "waiting", "worker") for p in everyone[kind]]
    _, alive = psutil.wait_procs(orphans, timeout=END_S)
    assert not alive, f"after the end of the {kind} there are {alive}"
    return True


def processes_of(pid: int) -> dict[str, list[psutil.Process]]:
    """Processes of a run by kind; the server has forked those that wait for workers."""
    run = psutil.Process(pid)
    servers = run.children()
    waiting = [process for server in servers for process in _children(server)]
    workers = [process for one in waiting for process in _children(one)]
    return {"run": [run], "server": servers, "waiting": waiting, "worker": workers}


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children()
    except psutil.NoSuchProcess:
        return []


def counted_tasks(folder: Path, seconds: float) -> list[Counting]:
    """Two tasks that count how often a block was processed.

    Args:
        folder: of the run.
        seconds: that a block takes.
    """
    return [
        Counting(
            state_dir=folder / "state",
            name=name,
            folder=folder / name,
            shape=SHAPE,
            block=BLOCK,
            seconds=seconds,
            threads=2,
        )
        for name in ("first", "second")
    ]


def main(folder: str, seconds: str) -> None:
    """Run them with two workers; a mistake ends it as a bundle run ends."""
    try:
        run_tasks(counted_tasks(Path(folder), float(seconds)), Path(folder) / "state", 2)
    except InputError as mistake:
        raise SystemExit(str(mistake)) from None


if __name__ == "__main__":
    main(*sys.argv[1:])
