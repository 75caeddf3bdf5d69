"""The bundle run that is calling. MONAI hands it to nobody, so it is found on the call stack."""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from monai.bundle import ConfigWorkflow

RUNS = ("preprocessing", "training", "inference", "evaluating")


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
    frames = [found.frame for found in inspect.stack()]
    workflow = next((w for w in map(_workflow, frames) if w is not None), None)
    if workflow is None:
        return None
    given = next((f.f_locals for f in frames if f.f_code.co_name == "create_workflow"), {})
    files = given.get("config_file") or ()
    overrides = {k: v for k, v in given.get("_args", {}).items() if k not in _OF_MONAI}
    return BundleRun(
        str(workflow.run_id),
        dict(workflow.parser.get("")),
        [files] if isinstance(files, str) else list(files),
        json.loads(json.dumps(overrides, default=str)),
    )


def running_config() -> dict[str, Any]:
    """The merged configuration of the bundle run that is calling; empty outside of one."""
    run = running()
    return {} if run is None else dict(run.config)


_OF_MONAI = ("run_id", "init_id", "final_id", "meta_file", "logging_file", "tracking")


def _workflow(frame: FrameType) -> ConfigWorkflow | None:
    """The workflow whose method runs in a frame."""
    found = frame.f_locals.get("self")
    return found if isinstance(found, ConfigWorkflow) else None
