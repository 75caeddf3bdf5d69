import errno
import os
from pathlib import Path

import pytest

from custom.files import disk_fault, file_of, replacing, write_atomically


def test_a_file_is_written_with_its_folder_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.txt"
    write_atomically(path, b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_a_large_file_is_replaced_by_way_of_the_same_name_or_left_alone(
    tmp_path: Path,
) -> None:
    path = tmp_path / "new" / "last.pt"
    parts = []
    for content in (b"one", b"two"):
        with replacing(path) as part:
            part.write_bytes(content)
            part.chmod(0o600)
        parts.append(part)
        assert (path.read_bytes(), oct(path.stat().st_mode & 0o777)) == (content, "0o644")
    assert parts[0] == parts[1]
    with pytest.raises(KeyboardInterrupt), replacing(path) as part:
        part.write_bytes(b"three")
        raise KeyboardInterrupt
    assert [p.name for p in path.parent.iterdir()] == ["last.pt"]
    assert path.read_bytes() == b"two"


@pytest.mark.parametrize(
    ("error", "said", "file"),
    [
        (OSError(errno.ENOSPC, "x", "a/b"), "(No space left on device): make room", "file 'a/b'"),
        (OSError(errno.EFBIG, "x"), "(File too large): make room", "a file"),
        (PermissionError(errno.EACCES, "x"), "(Permission denied): allow writing", "a file"),
        (
            ValueError("PERMISSION_DENIED: Error opening local file \"/c/0\" [os_error_code='30']"),
            "(Read-only file system): allow writing there",
            "file '/c/0'",
        ),
        (OSError(errno.ENOENT, "x", "a/b"), None, "file 'a/b'"),
        (ValueError("os_error_code='2'"), None, "a file"),
        (RuntimeError("os_error_code='28'"), None, "a file"),
    ],
)
def test_what_the_disk_refuses_is_told_from_other_errors(
    error: Exception, said: str | None, file: str
) -> None:
    found = disk_fault(error)
    assert found is None if said is None else said in str(found)
    assert file_of(error) == file
