"""The bundle run that is calling. MONAI hands it to nobody, so it is found on the call stack."""

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from monai.bundle import ConfigWorkflow, create_workflow

RUNS = ("preprocessing", "training", "inference", "evaluating")
NO_OVERRIDES = frozenset(
    {"args_file", "workflow_name", *inspect.signature(ConfigWorkflow).parameters} - {"override"}
)
"""Arguments of MONAI's ``run`` and of its workflow that are no keys of the configuration."""


@dataclass(frozen=True)
class BundleRun:
    """A bundle run as it was started.

    Args:
        run_id: that MONAI was given, such as "training" or "run".
        config: merged, overrides included; references and expressions are not resolved.
        config_files: in the order they were given.
        overrides: what came on the command line after them, by key.
    """

    run_id: str
    config: Mapping[str, Any]
    config_files: Sequence[str] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str | None:
        """The one of ``RUNS`` that it is: ``run`` is a synonym; None for a run of another sort."""
        return kind_of(self.config, self.run_id)


def kind_of(config: Mapping[str, Any], run_id: str) -> str | None:
    """The one of ``RUNS`` that a run id starts; None where it starts something else.

    Args:
        config: merged.
        run_id: one of ``RUNS``, or a synonym: the same steps under another name.
    """
    if run_id in RUNS:
        return run_id
    wanted = config.get(run_id)
    return next((name for name in RUNS if name in config and config[name] == wanted), None)


def running() -> BundleRun | None:
    """The bundle run that is calling; None outside of one.

    A workflow that is built by hand, without ``monai.bundle.run`` or ``create_workflow``, does not
    know its files and overrides any more.
    """
    workflow = calling_workflow()
    if workflow is None:
        return None
    call = creation_of(workflow) or Creation()
    return BundleRun(
        str(workflow.run_id),
        dict(workflow.parser.get("")),
        call.config_files,
        json.loads(json.dumps(call.overrides, default=str)),
    )


def running_config() -> dict[str, Any]:
    """The merged configuration of the bundle run that is calling; empty outside of one."""
    run = running()
    return {} if run is None else dict(run.config)


@dataclass(frozen=True)
class Creation:
    """A call of MONAI's ``create_workflow``, which ``run`` and ``load`` make, too.

    Args:
        config_files: in the order they were given.
        overrides: by key, as the user wrote it: also with a plus.
        tracking: what ``--tracking`` was.
    """

    config_files: Sequence[str] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    tracking: Any = None


def calling_workflow() -> ConfigWorkflow | None:
    """The workflow that is calling; None outside of one."""
    found = (frame.f_locals.get("self") for frame in _frames())
    return next((workflow for workflow in found if isinstance(workflow, ConfigWorkflow)), None)


def creation_of(workflow: ConfigWorkflow) -> Creation | None:
    """What a workflow that is initializing was made from; None where no call is making it."""
    for frame in _frames():
        made = frame.f_code is create_workflow.__code__
        if made and frame.f_locals.get("workflow_") is workflow:
            return _creation(frame.f_locals)
    return None


def _creation(local: Mapping[str, Any]) -> Creation:
    """The call whose local variables these are. MONAI strips a plus, and has both spellings."""
    files = local["config_file"] or ()
    given = {**local["kwargs"], **local["_args"]}
    added = {key.removeprefix("+") for key in given if key.startswith("+")}
    return Creation(
        [str(name) for name in ([files] if isinstance(files, str | Path) else files)],
        {key: v for key, v in given.items() if key not in NO_OVERRIDES and key not in added},
        given.get("tracking"),
    )


def _frames() -> Iterator[FrameType]:
    frame = inspect.currentframe()
    while frame is not None:
        yield frame
        frame = frame.f_back
