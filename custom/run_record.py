"""What was run, with what, on what: one JSON file per run, for whoever asks later."""

import atexit
import json
import logging
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from monai.bundle import ReferenceResolver

import custom
from custom.array_report import ArrayReport
from custom.config_values import parser_of
from custom.files import write_atomically
from custom.running import BundleRun

logger = logging.getLogger(__name__)

FOLDER = "runs"
FOLDER_OF = {  # the configuration's key of the folder that a run's results are in
    "preprocessing": "cache_dir",
    "training": "eval_dir",
    "inference": "output_dir",
    "evaluating": "eval_dir",
}
PACKAGES = (
    "monai",
    "torch",
    "pytorch-ignite",
    "transformers",
    "numpy",
    "scipy",
    "tensorstore",
    "zarr",
    "mwatershed",
    "funlib.geometry",
)


class RunRecord:
    """The record of a run: written when it begins, completed when it ends.

    A process that is killed leaves a record without an end. Nothing in it names the user: the home
    folder is written as ``~``.

    Args:
        path: of the JSON file.
        content: what is known when the run begins.
    """

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        self.path = path
        self.content = dict(content)
        self._began = datetime.now(UTC)
        self.content["started"] = _stamp(self._began)
        self._write()
        atexit.register(self.end, "stopped")

    def end(self, outcome: str) -> None:
        """Complete the record; only the first call counts.

        Args:
            outcome: "completed", "stopped", or "failed: " and why.
        """
        if "ended" in self.content:
            return
        atexit.unregister(self.end)
        now = datetime.now(UTC)
        seconds = round((now - self._began).total_seconds(), 3)
        self.content |= {"ended": _stamp(now), "seconds": seconds, "outcome": outcome}
        if self.path.parent.is_dir():  # else its results are gone, too
            try:
                self._write()
            except OSError as error:  # of a full disk, which is said by who met it
                logger.warning("%s cannot be completed: %s", self.path, error)

    def _write(self) -> None:
        text = json.dumps(_without_home(self.content), indent=2) + "\n"
        write_atomically(self.path, text.encode())


def begin_record(run: BundleRun, report: ArrayReport) -> RunRecord | None:
    """Write the record of a run that is sure to start; None for a run without a folder of ours.

    Args:
        run: as it was started.
        report: what it reads and what it will take.
    """
    kind = run.kind
    if kind is None:
        return None
    config = {key: value for key, value in run.config.items() if key != "_meta_"}  # MONAI's
    values = plain_values(config)
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    path = Path(str(values[FOLDER_OF[kind]])).expanduser() / FOLDER / f"{kind}_{now}.json"
    record = RunRecord(
        path,
        {
            "run": kind,
            "config_files": list(run.config_files),
            "overrides": run.overrides,
            "config": plain(config),
            "values": values,
            "seed": values.get("seed"),
            "device": str(values.get("device")),
            **report.to_json(),
            "versions": versions(),
            "git": git_state(Path(custom.__file__).parent),
            "machine": {"system": platform.platform(), "cores": os.cpu_count()},
        },
    )
    logger.info("what is run is written down in %s", path)
    return record


def plain(value: object) -> Any:
    """JSON values; what JSON does not have, as text."""
    return json.loads(json.dumps(value, default=str))


def plain_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The top-level keys of a configuration whose values are plain, expressions evaluated.

    What refers to a component (a ``_target_``) is left out: nothing is built.

    Args:
        config: merged.
    """
    parser = parser_of(config)
    given = dict(parser.get(""))
    keys = [key for key in given if key not in ("imports", "bootstrap") and _is_plain(given, key)]
    return {key: plain(parser.get_parsed_content(key)) for key in keys}


def _is_plain(config: Mapping[str, Any], key: str) -> bool:
    """Whether a value and all that it refers to can be had without building a component."""
    waiting, seen = [key], set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        if name not in config or _holds_component(config[name]):
            return False
        found = (
            reference.replace("::", "#").split("#")[0]
            for text in _texts(config[name])
            for reference in ReferenceResolver.match_refs_pattern(text)
        )
        waiting += [reference for reference in found if reference not in seen]
    return True


def _holds_component(value: Any) -> bool:
    """Whether a value holds a component, or steps: a list of expressions."""
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(_holds_component, value.values()))
    if isinstance(value, list):
        return any(str(item).startswith("$") or _holds_component(item) for item in value)
    return False


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value."""
    if isinstance(value, str):
        yield value
    items = value.values() if isinstance(value, Mapping) else value
    for item in items if isinstance(value, Mapping | list) else ():
        yield from _texts(item)


def versions() -> dict[str, str]:
    """Versions of this project, of Python, and of the packages that are installed."""
    found = {"custom": custom.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the project's code, and whether files differ from it; None outside of git.

    Args:
        folder: of the code; a repository that does not track it is another's.
    """
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return None if commit is None else {"commit": commit, "dirty": bool(changed)}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says; None if it is absent or has nothing to say. It writes nothing."""
    command = ["git", "-C", str(folder), *arguments]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _stamp(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")


def _without_home(value: Any) -> Any:
    """The same with ``~`` for the user's home folder, whose name is often that of the user."""
    home = str(Path.home())
    if isinstance(value, Mapping):
        return {_without_home(key): _without_home(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_home(item) for item in value]
    return value.replace(home, "~") if isinstance(value, str) and len(home) > 1 else value
