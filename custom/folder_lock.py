"""One run at a time may write a folder."""

import fcntl
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from errno import EACCES, EAGAIN
from pathlib import Path

from custom.errors import InputError

logger = logging.getLogger(__name__)


@contextmanager
def sole_writer(folder: Path, key: str) -> Iterator[None]:
    """Hold a folder for writing; the lock goes with the process, however it ends.

    On file systems without locks there is a warning instead.

    Args:
        folder: created if missing.
        key: the configuration's, that names the folder.

    Raises:
        InputError: another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (EACCES, EAGAIN):
                logger.warning("%s '%s' cannot be locked (%s)", key, folder, error.strerror)
                yield
                return
            lock.seek(0)
            raise InputError(
                f"{key} '{folder}' is being written by process {lock.read().strip()}; wait for it "
                f"to end, or choose another {key}"
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        yield


@contextmanager
def sole_writer_of_all(folders: Mapping[str, str]) -> Iterator[None]:
    """Hold several folders, as ``sole_writer``.

    Args:
        folders: by the configuration's key; two keys may name the same folder.
    """
    with ExitStack() as held:
        for folder, key in {Path(path).resolve(): key for key, path in folders.items()}.items():
            held.enter_context(sole_writer(folder, key))
        yield
