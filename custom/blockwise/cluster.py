"""Workers on a cluster, from the configuration's ``cluster`` and ``cluster_settings``."""

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from custom.blockwise.jobs import ClusterWorker
from custom.blockwise.lsf import LsfWorker
from custom.blockwise.slurm import SlurmWorker
from custom.blockwise.workers import BlockWorker
from custom.errors import InputError
from custom.json_fields import hint, mapping, not_negative, sequence, whole_number

CLUSTERS: Mapping[str, type[ClusterWorker]] = {"lsf": LsfWorker, "slurm": SlurmWorker}

OTHER_WORDS = {
    "partition": "queue",
    "account": "project",
    "time": "walltime",
    "mem": "memory_gb",
    "memory": "memory_gb",
    "num_gpus": "gpus",
    "num_cpus": "cpus",
    "flags": "extra_flags",
    "name": "job_name",
    "host": "server_host",
}
"""What the settings are called elsewhere."""


def cluster_worker(
    cluster: str | None, settings: Mapping[str, Any] | None, log_dir: str | Path | None = None
) -> BlockWorker | None:
    """What starts workers on a cluster.

    Args:
        cluster: "lsf", "slurm", or None for no cluster.
        settings: "queue" (Slurm's partition), and on request "gpus", "cpus", "memory_gb",
            "walltime" ("hours:minutes"), "project" (Slurm's account), "extra_flags" (a list),
            "job_name", "server_host"; None for what is not said. Only read with a cluster.
        log_dir: the jobs' output lies in ``<log_dir>/<task>``; None for the run's state.

    Returns:
        None without a cluster.

    Raises:
        InputError: there is no such cluster, a mistake in the settings, or a command of the
            scheduler that is not on the PATH.
    """
    if cluster is None:
        return None
    if cluster not in CLUSTERS:
        raise InputError(f"cluster must be null, 'lsf' or 'slurm', got {cluster!r}")
    kind = CLUSTERS[cluster]
    fields = _fields({} if settings is None else settings)
    for command in kind.commands:
        if shutil.which(command) is None:
            raise InputError(
                f"cluster is '{cluster}', but there is no command '{command}' here: start the run "
                f"on a machine that may submit jobs, load the scheduler's module, or leave cluster "
                f"away"
            )
    return kind(**fields, log_dir=None if log_dir is None else Path(log_dir).absolute())


def _fields(settings: object) -> dict[str, Any]:
    """Checked settings, by the names of the worker's fields."""
    found = mapping(settings, "cluster_settings")
    for key in found:
        if key in OTHER_WORDS:
            raise InputError(
                f"cluster_settings has the unknown key '{key}'; did you mean '{OTHER_WORDS[key]}'?"
            )
        if key not in CHECKS:
            raise InputError(
                f"cluster_settings has the unknown key '{key}'{hint(key, list(CHECKS))}"
            )
    said = {key: value for key, value in found.items() if value is not None}
    if "queue" not in said:
        raise InputError(
            "cluster_settings lacks 'queue': the name of a queue of LSF (bqueues lists them) or "
            "a partition of Slurm (sinfo lists them)"
        )
    names = {"gpus": "num_gpus", "cpus": "num_cpus"}
    return {
        names.get(key, key): CHECKS[key](value, f"cluster_settings#{key}")
        for key, value in said.items()
    }


def _word(value: object, what: str) -> str:
    """A name of the scheduler's, which has no blanks."""
    if not isinstance(value, str) or not re.fullmatch(r"\S+", value):
        raise InputError(f"{what} must be a name without blanks, got {value!r}")
    return value


def _plain(value: object, what: str) -> str:
    """A name that means nothing else to a scheduler, a shell, or daisy."""
    if not isinstance(value, str) or not re.fullmatch(r"[\w.-]+", value):
        raise InputError(f"{what} must be of letters, digits, '.', '-' and '_', got {value!r}")
    return value


def _memory(value: object, what: str) -> float:
    memory = not_negative(value, what)
    if memory < 0.1:
        raise InputError(f"{what} must be a number of GiB from 0.1 on, got {value!r}")
    return memory


def _walltime(value: object, what: str) -> str:
    good = isinstance(value, str) and re.fullmatch(r"\d{1,4}:[0-5]\d", value)
    if not good or not str(value).strip("0:"):
        raise InputError(f'{what} must be "hours:minutes" such as "24:00", got {value!r}')
    return str(value)


def _flags(value: object, what: str) -> list[str]:
    flags = list(sequence(value, what))
    for flag in flags:
        if not isinstance(flag, str):
            raise InputError(f"{what} must be a list of strings, got {flag!r} in it")
    return flags


def _gpus(value: object, what: str) -> int:
    return whole_number(value, 0, what)


def _cpus(value: object, what: str) -> int:
    return whole_number(value, 1, what)


CHECKS: Mapping[str, Callable[[object, str], object]] = {
    "queue": _word,
    "gpus": _gpus,
    "cpus": _cpus,
    "memory_gb": _memory,
    "walltime": _walltime,
    "project": _word,
    "extra_flags": _flags,
    "job_name": _plain,
    "server_host": _plain,
}
"""By the settings' keys."""
