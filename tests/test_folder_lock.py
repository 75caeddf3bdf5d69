"""One run at a time may write a folder; the lock dies with its process."""

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from custom.errors import InputError
from custom.folder_lock import sole_writer, sole_writer_of_all

HOLDER = """
import sys, time
from pathlib import Path
from custom.folder_lock import sole_writer
with sole_writer(Path(sys.argv[1]), "model_dir"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_another_process_is_named_and_when_it_is_killed_the_folder_is_free(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        holder = re.escape(f"'{tmp_path}' is being written by process {process.pid} on ")
        named = holder + re.escape(socket.gethostname())
        with pytest.raises(InputError, match=named), sole_writer(tmp_path, "model_dir"):
            pass
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / ".lock").read_text().startswith(f"{process.pid} on ")
    with sole_writer(tmp_path, "model_dir"):
        assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} on ")


def test_two_keys_may_name_one_folder_and_each_of_several_is_held(tmp_path: Path) -> None:
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    with sole_writer_of_all({"model_dir": one, "eval_dir": f"{one}/../one", "third": other}):
        for folder in (one, other):
            with pytest.raises(InputError, match=folder), sole_writer(Path(folder), "x"):
                pass
    with sole_writer_of_all({"model_dir": one, "third": other}):
        pass


def test_a_file_system_without_locks_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with sole_writer(tmp_path, "model_dir"):
        assert f"model_dir '{tmp_path}' cannot be locked (No locks available)" in caplog.text
