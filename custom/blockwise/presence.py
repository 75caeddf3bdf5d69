"""Who works on the state of a run: the lock of a new run waits for the processes of an old one."""

import fcntl
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EACCES, EAGAIN
from pathlib import Path

from custom.errors import InputError

logger = logging.getLogger(__name__)

PRESENCE = ".present"
PATIENCE_S = 60.0
POLL_S = 0.1


@contextmanager
def present(state_dir: Path) -> Iterator[None]:
    """As a run, its server or a worker: be known to work on a state, until this process ends.

    Args:
        state_dir: folder of the run's state.
    """
    with (state_dir / PRESENCE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
        except OSError as error:  # a file system without locks
            logger.warning("'%s' cannot be locked (%s)", state_dir, error.strerror)
        yield


def wait_until_alone(state_dir: Path, patience_s: float = PATIENCE_S) -> None:
    """Wait for the servers and workers of an earlier run, which end soon after it was killed.

    Args:
        state_dir: folder of the run's state.
        patience_s: how long.

    Raises:
        InputError: they still work.
    """
    end = time.monotonic() + patience_s
    while _is_held(state_dir / PRESENCE):
        if time.monotonic() > end:
            raise InputError(
                f"workers of an earlier run still work on '{state_dir}'; wait for them to end, or "
                f"end them (python -m custom.blockwise.worker)"
            )
        time.sleep(POLL_S)


def is_running(state_dir: Path) -> bool:
    """Whether processes of a run work on a state."""
    return _is_held(state_dir / PRESENCE)


def _is_held(path: Path) -> bool:
    """Whether a process holds the lock of a file; without locks, none does."""
    if not path.exists():
        return False
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in (EACCES, EAGAIN)
    return False
