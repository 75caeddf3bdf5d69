"""Files of a zip or a folder that nobody trusts: nothing is extracted, no link is followed."""

import lzma
import os
import stat
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from custom.errors import InputError
from custom.inspection.findings import Findings, quoted

MOST_FILES = 10_000
MOST_BYTES = 20 * 2**30
MOST_TIMES = 100  # a file larger than it is packed
UNPACKED_FREELY = 16 * 2**20  # bytes: smaller files may be packed as well as they can
EXECUTABLE = 0o111
UNREADABLE = (
    OSError,
    ValueError,
    RuntimeError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
"""What reading a file of a damaged zip may raise."""


@dataclass(frozen=True)
class Entry:
    """One file.

    Args:
        path: relative to the bundle, with "/".
        size: bytes.
        executable: whether the file system would run it.
        opened: opens it for reading.
    """

    path: str
    size: int
    executable: bool
    opened: Callable[[], IO[bytes]]

    def content(self) -> bytes:
        """All of it; for small files."""
        with self.opened() as file:
            return file.read()

    def head(self, count: int) -> bytes:
        """The first bytes."""
        with self.opened() as file:
            return file.read(count)


@contextmanager
def opened_contents(path: Path, findings: Findings) -> Iterator[list[Entry]]:
    """Files of a bundle that may be looked at; what is wrong with the others is noted down.

    Args:
        path: of a zip, or of a folder.
        findings: gets what is dangerous about names, links and sizes.

    Raises:
        InputError: there is neither, or the zip is damaged.
    """
    if path.is_dir():
        yield list(_folder(path, findings))
        return
    if not path.is_file():
        raise InputError(f"'{path}' is neither a zip nor a folder")
    try:
        archive = zipfile.ZipFile(path)
    except UNREADABLE as error:
        raise InputError(f"'{path}' is no zip that can be read ({error})") from error
    with archive:
        yield list(_members(archive, findings))


def _folder(root: Path, findings: Findings) -> Iterator[Entry]:
    """Regular files below a folder."""
    for folder, names, files in os.walk(root):
        for name in sorted([*names, *files]):
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                findings.danger(relative, "is a link, which may lead anywhere")
            elif stat.S_ISREG(mode):
                runs = bool(mode & EXECUTABLE)
                yield Entry(relative, path.lstat().st_size, runs, partial(_opened, path))
            elif not stat.S_ISDIR(mode):
                findings.danger(relative, "is neither a file nor a folder")


def _opened(path: Path) -> IO[bytes]:
    return path.open("rb")


def _members(archive: zipfile.ZipFile, findings: Findings) -> Iterator[Entry]:
    """Regular files of a zip, without its one top folder."""
    infos = archive.infolist()
    if len(infos) > MOST_FILES or sum(info.file_size for info in infos) > MOST_BYTES:
        findings.danger("", f"the zip unpacks to more than {MOST_FILES} files or 20 GiB")
        return
    _check_names([info.filename for info in infos], findings)
    tops = {info.filename.split("/")[0] for info in infos}
    if len(tops) > 1:
        shown = quoted(", ".join(sorted(tops)[:3]))
        findings.danger("", f"the zip has more than one top folder: {shown}")
    for info in infos:
        if info.is_dir() or not _may_be_read(info, findings):
            continue
        path = info.filename.partition("/")[2] if len(tops) == 1 else info.filename
        runs = bool(info.external_attr >> 16 & EXECUTABLE)
        yield Entry(path or info.filename, info.file_size, runs, partial(archive.open, info))


def _check_names(names: list[str], findings: Findings) -> None:
    """Names that leave the folder, or that are one file on some systems."""
    for name in sorted(set(names)):
        if fault := name_fault(name.rstrip("/")):
            findings.danger(name, fault)
    for name, count in Counter(names).items():
        if count > 1:
            findings.danger(name, f"is in the zip {count} times")
    folded: dict[str, str] = {}
    for name in sorted(set(names)):
        key = unicodedata.normalize("NFKC", name.rstrip("/")).casefold()
        if folded.setdefault(key, name) != name:
            findings.danger(name, f"is one file with {quoted(folded[key])} on some systems")


def name_fault(name: str) -> str | None:
    """Why a file's name is dangerous, as the rest of a sentence on it."""
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or PurePosixPath(name).is_absolute() or ":" in name or "\\" in name:
        return "would be written outside the bundle's folder"
    if not name.isprintable() or "" in parts or "." in parts:
        return "is no plain name of a file"
    return None


def _may_be_read(info: zipfile.ZipInfo, findings: Findings) -> bool:
    """Whether a member is a plain file of a sensible size."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if stat.S_ISLNK(kind):
        findings.danger(info.filename, "is a link, which may lead anywhere")
    elif kind and not stat.S_ISREG(kind):
        findings.danger(info.filename, "is neither a file nor a folder")
    elif info.flag_bits & 1:
        findings.danger(info.filename, "is encrypted, so nobody can look into it")
    elif info.file_size > max(UNPACKED_FREELY, MOST_TIMES * info.compress_size):
        findings.danger(
            info.filename, f"unpacks {info.compress_size} bytes to {info.file_size}, as bombs do"
        )
    else:
        return True
    return False
