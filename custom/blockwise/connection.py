"""What a worker on another machine may not reach: its task's file, the run's server."""

import socket
from pathlib import Path

import daisy

from custom.errors import InputError

TIMEOUT_S = 30.0


def refuse_unreachable(task_file: Path) -> None:
    """Refuse to work on a machine that lacks what a worker needs.

    Args:
        task_file: what ``Tracked.worker_func`` wrote.

    Raises:
        InputError: this machine does not see the file, or does not reach the server.
    """
    here, context = socket.gethostname(), daisy.Context.from_env()
    if not task_file.is_file():
        raise InputError(
            f"machine '{here}' does not see '{task_file}': output_dir must lie on a file system "
            f"that all machines of the cluster have at the same path"
        )
    host, port = context["hostname"], int(context["port"])
    try:
        socket.create_connection((host, port), timeout=TIMEOUT_S).close()
    except OSError as error:
        raise InputError(
            f"machine '{here}' does not reach the run's server at {host}:{port} ({error}): the run "
            f"has ended, or cluster_settings.server_host must name the machine of the run as the "
            f"cluster's machines see it, or a firewall is between them"
        ) from error
