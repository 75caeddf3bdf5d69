"""Room on a disk for what a run will write, said before it begins."""

import logging
import shutil
from pathlib import Path

from custom.errors import InputError

logger = logging.getLogger(__name__)

UNITS = ("bytes", "kB", "MB", "GB", "TB")


def refuse_full_disk(key: str, folder: str | Path, needed: int, way_out: str) -> None:
    """What a run is going to write must fit before anything is computed for it.

    Args:
        key: of the configuration that names the folder.
        folder: that will be written to; it need not exist yet.
        needed: bytes that it will take at most, beside what is there.
        way_out: what can be done, as the end of a sentence.

    Raises:
        InputError: the disk has less room.
    """
    folder = Path(folder).expanduser().absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    logger.info("%s '%s' takes up to %s, %s are free", key, folder, size(needed), size(free))
    if needed > free:
        raise InputError(
            f"{key} '{folder}' needs {size(needed)}, its disk has {size(free)} left; {way_out}"
        )


def size(number: float) -> str:
    """Bytes for people, such as "3.2 GB"."""
    power = next((p for p in range(len(UNITS) - 1) if number < 1000 ** (p + 1)), len(UNITS) - 1)
    return f"{number / 1000**power:.{min(power, 1)}f} {UNITS[power]}"
