"""The jobs of a run: one question to the scheduler serves all processes that wait for one."""

import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

from custom.files import write_atomically

STATES_FILE = "states.json"
SUFFIX = ".job"


class JobState(StrEnum):
    """What a scheduler says of a job."""

    ALIVE = "alive"  # waits, runs or is held
    DONE = "done"
    FAILED = "failed"
    GONE = "gone"  # the scheduler does not know it any more


Ask = Callable[[Sequence[str]], Mapping[str, JobState] | None]
"""States of jobs by number, those that the scheduler knows; None where it could not be reached."""


class JobBoard:
    """Files that say which jobs a run has, and in what state the scheduler saw them last.

    Whoever needs a state that is too old asks for all jobs. Two may do so at the same moment, which
    does no harm, and so no lock is needed, which many clusters' file systems do not have.

    Args:
        folder: of the run's jobs, all of one scheduler.
        ask: the scheduler.
        every_s: seconds from one question to the next.
    """

    def __init__(self, folder: Path, ask: Ask, every_s: float) -> None:
        self.folder = folder
        self._ask = ask
        self._every_s = every_s

    def add(self, job: str) -> None:
        """Note a job that was submitted for the server that started this process."""
        server = {"host": socket.gethostname(), "pid": os.getppid()}
        write_atomically(self.folder / f"{job}{SUFFIX}", json.dumps(server).encode())

    def remove(self, job: str) -> None:
        """Forget a job that has ended."""
        (self.folder / f"{job}{SUFFIX}").unlink(missing_ok=True)

    def jobs(self) -> list[str]:
        """Numbers of the jobs that have not ended, as far as this run knows."""
        return sorted(path.stem for path in self.folder.glob(f"*{SUFFIX}"))

    def left_behind(self) -> list[str]:
        """Jobs of servers of this machine that are no more; each is returned to one caller."""
        claimed = []
        for job in self.jobs():
            path = self.folder / f"{job}{SUFFIX}"
            with suppress(FileNotFoundError):  # another process was faster
                server = json.loads(path.read_text())
                if server["host"] == socket.gethostname() and not _is_alive(server["pid"]):
                    path.unlink()
                    claimed.append(job)
        return claimed

    def state(self, job: str) -> JobState | None:
        """State of a job, not much older than ``every_s``; None where nobody has told it yet."""
        told = self._told()
        if time.time() - told["asked"] >= self._every_s:
            self._tell(told["states"])  # the others need not ask now
            jobs = self.jobs()
            answer = self._ask(jobs)
            if answer is not None:
                told["states"] = {job: answer.get(job, JobState.GONE) for job in jobs}
                self._tell(told["states"])
        found = told["states"].get(job)
        return None if found is None else JobState(found)

    def _told(self) -> dict[str, Any]:
        try:
            told: dict[str, Any] = json.loads((self.folder / STATES_FILE).read_text())
        except FileNotFoundError:
            return {"asked": 0.0, "states": {}}
        return told

    def _tell(self, states: Mapping[str, str]) -> None:
        content = json.dumps({"asked": time.time(), "states": states})
        write_atomically(self.folder / STATES_FILE, content.encode())


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
