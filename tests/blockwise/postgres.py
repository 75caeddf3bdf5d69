"""A real PostgreSQL server on 127.0.0.1 for tests."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = Path("/usr/lib/postgresql/15/bin")
USER = "postgres"  # initdb refuses to run as root


def missing() -> str | None:
    """Why there can be no server; None where there can."""
    if not (PROGRAMS / "initdb").exists():
        return f"PostgreSQL 15 is not installed in {PROGRAMS}"
    if os.geteuid() == 0 and not shutil.which("runuser"):
        return "no runuser to become the user postgres"
    return None


@contextmanager
def server(password: str) -> Iterator[int]:
    """Port of a server whose only user is postgres."""
    with tempfile.TemporaryDirectory(dir="/tmp") as made:  # short: a socket's path is, too
        folder = Path(made)
        (folder / "password").write_text(password)
        if os.geteuid() == 0:
            for path in (folder, folder / "password"):
                shutil.chown(path, USER)
        data, port = folder / "data", free_port()
        login = ["--auth=scram-sha-256", f"--pwfile={folder / 'password'}", f"--username={USER}"]
        run("initdb", "-D", data, "--no-sync", "--no-locale", "-E", "UTF8", *login)
        options = f"-c listen_addresses=127.0.0.1 -c port={port} -c fsync=off -k {folder}"
        log = folder / "log"
        run("pg_ctl", "-D", data, "-w", "-l", log, "-o", options, "start")
        try:
            yield port
        finally:
            run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")


def run(program: str, *arguments: object) -> None:
    """Run one of PostgreSQL's programs, as its user where this is root."""
    command = [str(PROGRAMS / program), *map(str, arguments)]
    if os.geteuid() == 0:
        command = ["runuser", "-u", USER, "--", *command]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
