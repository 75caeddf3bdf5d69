"""One process at a time may write a cache."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from custom.errors import InputError
from custom.features.cache_files import writing


@contextmanager
def exclusive(cache_dir: Path) -> Iterator[None]:
    """Hold a cache for writing; the lock goes with the process, however it ends.

    Raises:
        InputError: another process holds it, or the folder may not be written.
    """
    with writing(cache_dir):
        cache_dir.mkdir(parents=True, exist_ok=True)
        opened = (cache_dir / ".lock").open("a+")
    with opened as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            raise InputError(
                f"cache_dir '{cache_dir}' is being written by process {lock.read().strip()}; wait "
                f"for it to end"
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield
