"""Files that are there whole or not at all, and why the disk would not take them."""

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The outside of the machine, not of the code: what keeps a file from being written.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_WRITING = (errno.EROFS, errno.EACCES, errno.EPERM)
_TENSORSTORE_CODE = re.compile(r"os_error_code='(\d+)'")
_TENSORSTORE_FILE = re.compile(r'local file "([^"]*)"')


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file under a temporary name beside it, then rename it into place.

    Args:
        path: of the file; its folder is created if missing, an older file is replaced.
        content: of the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with _renamed(Path(part), path), os.fdopen(handle, "wb") as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to; renamed to ``path`` if all went well.

    The name is always the same, so that kills leave no more than one large file behind: for files
    that a single process writes. The content is on the disk before it gets its name, so that it is
    whole after a power cut, too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _renamed(path.with_name(f".{path.name}.part"), path) as part:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())


@contextmanager
def _renamed(part: Path, path: Path) -> Iterator[Path]:
    """Rename ``part`` if all went well, else remove it."""
    try:
        yield part
        part.chmod(0o644)  # mkstemp and safetensors make files that only their owner may read
        os.replace(part, path)
    except OSError as error:
        name_file(error, path)
        raise
    finally:
        part.unlink(missing_ok=True)


def name_file(error: OSError, path: Path) -> None:
    """Let an error know its file, where the system's has only a number for it."""
    if error.errno is not None and error.filename is None:
        error.filename = str(path)


def disk_fault(error: BaseException) -> str | None:
    """Why the disk did not take a file, and what to do, as the middle of a sentence.

    Args:
        error: of Python or of TensorStore, whose errors are ``ValueError``.

    Returns:
        Such as "cannot be written (No space left on device): make room"; None for other errors.
    """
    code = _code_of(error)
    if code is None or code not in (*NO_ROOM, *NO_WRITING):
        return None
    way_out = "make room" if code in NO_ROOM else "allow writing there"
    return f"cannot be written ({os.strerror(code)}): {way_out}"


def no_room(error: BaseException) -> bool:
    """Whether an error says that a disk is full.

    Args:
        error: of Python, of TensorStore, or of SQLite.
    """
    return _code_of(error) in NO_ROOM or getattr(error, "sqlite_errorname", "") == "SQLITE_FULL"


def _code_of(error: BaseException) -> int | None:
    """The system's number for an error."""
    if isinstance(error, OSError):
        return error.errno
    found = _TENSORSTORE_CODE.search(str(error)) if isinstance(error, ValueError) else None
    return int(found[1]) if found else None


def file_of(error: BaseException) -> str:
    """Name of the file that an error of ``disk_fault`` is about."""
    found = _TENSORSTORE_FILE.search(str(error))
    name = found[1] if found else getattr(error, "filename", None)
    return f"file '{name}'" if name else "a file"
