"""Jobs of the stand-ins for batch schedulers: files in a spool folder, processes of this machine.

``control.json`` in the folder says what shall happen:
    queues: names of those that there are.
    delay_s: how long a job waits before it begins.
    refuse: words in which jobs are refused.
    unreachable: so many of the next calls find no scheduler.
    kill: by job number, a pattern of files; the job is killed as soon as there is one.
    forget: numbers of jobs that are not known any more.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from glob import glob
from itertools import count
from pathlib import Path
from typing import Any

ALIVE = ("PEND", "RUN")


class Spool:
    """What a scheduler knows.

    Args:
        folder: where its files are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def control(self, **changes: Any) -> dict[str, Any]:
        """What shall happen, with changes that stay."""
        path = self.folder / "control.json"
        found = json.loads(path.read_text()) if path.exists() else {"queues": ["normal", "gpu"]}
        if changes:
            _write(path, found | changes)
        return {**found, **changes}

    def lost(self) -> bool:
        """Whether this call finds no scheduler."""
        calls = self.control().get("unreachable", 0)
        if calls:
            self.control(unreachable=calls - 1)
        return bool(calls)

    def note(self, command: str, words: list[str]) -> None:
        """Remember a call."""
        with (self.folder / "calls.jsonl").open("a") as file:
            file.write(json.dumps([command, *words]) + "\n")

    def calls(self, command: str) -> list[list[str]]:
        """All calls of a command."""
        path = self.folder / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call for line in lines if (call := json.loads(line))[0] == command]

    def submit(self, line: str, out: str, err: str, mark: str) -> int:
        """Take a job: a process in a session of its own looks after it from now on.

        Args:
            line: for a shell.
            out: file of its output, with ``mark`` for its number; likewise ``err``.
            err: file of its errors.
            mark: such as "%J".
        """
        number = self._next_number()
        out, err = (name.replace(mark, str(number)) for name in (out, err))
        job = {"out": out, "err": err, "line": line, "state": "PEND"}
        _write(self.folder / f"{number}.json", job)
        subprocess.Popen(
            [sys.executable, __file__, str(self.folder), str(number)],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return number

    def _next_number(self) -> int:
        """Two may submit at the same moment."""
        for number in count(1):
            with suppress(FileExistsError):
                (self.folder / f"{number}.taken").touch(exist_ok=False)
                return number
        raise AssertionError

    def cancel(self, number: int) -> None:
        """End a job."""
        (self.folder / f"{number}.cancel").touch()

    def jobs(self) -> dict[int, dict[str, Any]]:
        """All jobs ever."""
        found = [path for path in self.folder.glob("*.json") if path.stem.isdecimal()]
        return {int(path.stem): json.loads(path.read_text()) for path in found}

    def known(self) -> dict[int, dict[str, Any]]:
        """Jobs that are not forgotten."""
        forgotten = self.control().get("forget", [])
        return {n: job for n, job in sorted(self.jobs().items()) if n not in forgotten}

    def alive(self) -> list[int]:
        """Numbers of jobs that wait or run."""
        return [number for number, job in self.jobs().items() if job["state"] in ALIVE]

    def wait_for(self, jobs: int, timeout_s: float = 60) -> None:
        """Wait until so many jobs are alive."""
        end = time.monotonic() + timeout_s
        while len(self.alive()) != jobs:
            if time.monotonic() > end:
                raise TimeoutError(f"{len(self.alive())} jobs are alive, not {jobs}")
            time.sleep(0.05)

    def look_after(self, number: int) -> None:
        """Run a job from its beginning to its end."""
        begin = time.monotonic() + self.control().get("delay_s", 0)
        while time.monotonic() < begin:
            if self._cancelled(number):
                return self._become(number, "EXIT")
            time.sleep(0.02)
        job = self.jobs()[number]
        # nothing of the submitting process's environment: schedulers may be set up like that
        bare = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/")}
        with open(job["out"], "w") as out, open(job["err"], "w") as err:
            process = subprocess.Popen(
                ["/bin/sh", "-c", job["line"]],
                env=bare,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self._become(number, "RUN", pid=process.pid)
        while process.poll() is None:
            if self._cancelled(number):
                os.killpg(process.pid, signal.SIGTERM)
                self._wait_or_kill(process)
            elif self._shall_die(number):
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.02)
        self._become(number, "EXIT" if process.returncode else "DONE")

    def _wait_or_kill(self, process: subprocess.Popen[bytes]) -> None:
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)

    def _cancelled(self, number: int) -> bool:
        return (self.folder / f"{number}.cancel").exists()

    def _shall_die(self, number: int) -> bool:
        pattern = self.control().get("kill", {}).get(str(number))
        return bool(pattern and glob(pattern))

    def _become(self, number: int, state: str, **more: Any) -> None:
        job = self.jobs()[number]
        cancelled = self._cancelled(number)
        _write(
            self.folder / f"{number}.json", job | {"state": state, "cancelled": cancelled} | more
        )


def _write(path: Path, content: Any) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(content))
    part.replace(path)


if __name__ == "__main__":
    Spool(Path(sys.argv[1])).look_after(int(sys.argv[2]))
