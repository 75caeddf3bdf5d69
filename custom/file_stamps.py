"""Whether files have changed since, without reading them."""

import hashlib
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from custom.affine_arrays import nrrd_data_file
from custom.locations import Location
from custom.volumes import NRRD_SUFFIXES

MOST_FILES = 50_000  # that are looked at of one volume


def file_stamp(location: str) -> str:
    """A digest that changes when a file, or a file in a folder, is written again.

    It holds name, size, time of change and number (inode) of the files, of a folder with more than
    ``MOST_FILES`` of the first of them in the order of their names; of a detached NRRD also those
    of the file of its data. Of a URL it is the URL.

    Args:
        location: of a volume, also of one inside a file, such as ``x.h5/volumes/raw``.
    """
    digest = hashlib.sha256(location.encode())
    if not Location(location).remote:
        path = next(p for p in (Path(location), *Path(location).parents) if p.exists())
        for file in islice(_files(path), MOST_FILES):
            found = file.stat()
            stamp = (str(file), found.st_size, found.st_mtime_ns, found.st_ino)
            digest.update(repr(stamp).encode())
    return digest.hexdigest()[:16]


def _files(path: Path) -> Iterator[Path]:
    """A file and the one of its data, or all files in a folder, in the order of their names."""
    if path.is_file():
        yield path
        data = nrrd_data_file(path) if path.name.lower().endswith(NRRD_SUFFIXES) else None
        if data is not None and data.is_file():
            yield data
        return
    for folder, folders, names in os.walk(path):
        folders.sort()
        yield from (Path(folder) / name for name in sorted(names))
