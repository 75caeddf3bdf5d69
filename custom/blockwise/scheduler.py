"""Calls of a batch scheduler's commands."""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

TIMEOUT_S = 120.0

PASSING = re.compile(
    "unable to contact|socket timed out|communication time ?out"
    "|connection (refused|timed out|reset)"
    "|not responding|lsf is down|please wait|failed in (sending|receiving|an lsf library call)"
    "|zero bytes were transmitted|resource temporarily unavailable|temporarily unable",
    re.IGNORECASE,
)
"""Complaints about the scheduler itself, which says something else a little later."""


@dataclass(frozen=True)
class Answer:
    """What a command said.

    Args:
        status: that it exited with; None where it gave no answer in time.
        said: on its standard output.
        complaint: on its standard error.
    """

    status: int | None
    said: str
    complaint: str

    @property
    def passing(self) -> bool:
        """Whether the scheduler could not be reached, which is no answer to what was asked."""
        if self.status == 0:
            return False
        return self.status is None or PASSING.search(self.complaint) is not None

    @property
    def words(self) -> str:
        """What it said, in one line."""
        return " ".join((self.complaint.strip() or self.said).split())[:500] or "no reason given"


def call(command: Sequence[str]) -> Answer:
    """Run a scheduler's command.

    In a session of its own: a Ctrl-C may not end it between a job's submission and its number.

    Args:
        command: with its arguments.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
            timeout=TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Answer(None, "", str(error))
    return Answer(done.returncode, done.stdout, done.stderr)
