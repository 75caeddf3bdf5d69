"""The check of the run that is calling."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS

from custom.config_check.check import Request, config_findings
from custom.config_check.findings import Finding, message, mistakes, notes
from custom.config_check.references import METADATA
from custom.config_check.sources import Source, neighbours, read_sources
from custom.errors import InputError
from custom.running import calling_workflow, creation_of

LEAST_SHARED = 0.8
"""Share of a file's top-level keys that a configuration made from it still has."""

logger = logging.getLogger(__name__)


def check_running_config() -> None:
    """Refuse the calling run if its configuration is wrong; say in the log what only looks odd.

    Nothing happens outside of a bundle run.

    Raises:
        InputError: with every mistake, one per line if there are several.
    """
    workflow = calling_workflow()
    if workflow is None:
        return
    request, unreadable = running_request(workflow)
    found = [*unreadable, *(config_findings(request) if request.files else [])]
    for note in notes(found):
        logger.warning("%s", note)
    if wrong := mistakes(found):
        raise InputError(message(wrong))


def running_request(workflow: ConfigWorkflow) -> tuple[Request, list[Finding]]:
    """What a run was asked for, and what is wrong with its files.

    MONAI's ``create_workflow``, which ``run`` and ``load`` call, knows files and overrides. Of a
    workflow that Python made there is but the merged configuration: it is compared with that file
    of its folder which has the same keys.
    """
    call = creation_of(workflow)
    if call is None:
        files = _like(workflow)
        others = _others(workflow, [source.name for source in files])
        return Request(files, others=others, run_id=workflow.run_id), []
    files, found = read_sources(call.config_files)
    known = _tracking_keys(call.tracking)
    others = _others(workflow, call.config_files)
    return Request(files, call.overrides, others, workflow.run_id, known), found


def _others(workflow: ConfigWorkflow, names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Configurations of the other runs beside the first file."""
    beside = neighbours(str(workflow.config_root_path / "any.json"))
    first = Path(names[0]).name if names else ""
    return {name: content for name, content in beside.items() if name != first}


def _like(workflow: ConfigWorkflow) -> list[Source]:
    """The file that a merged configuration was made from, and what differs from it."""
    config = {key: value for key, value in workflow.parser.get("").items() if key != METADATA}
    folder = workflow.config_root_path
    shared = {
        name: len(content.keys() & config.keys()) / len(content)
        for name, content in neighbours(str(folder / "any.json")).items()
        if workflow.run_id in content
    }
    best = max(shared, key=lambda name: shared[name], default=None)
    if best is None or shared[best] < LEAST_SHARED:
        return [Source(str(folder), config)]
    files, _ = read_sources([str(folder / best)])
    return [*files, Source("the workflow", _difference(files[0].content, config))]


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be laid over one configuration to have the other, as nested keys."""
    found: dict[str, Any] = {}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping) and old.keys() <= value.keys():
            inner = _difference(old, value)
            found |= {f"{key}#{part}": change for part, change in inner.items()}
        elif key not in before or _normal(old) != value:
            found[key] = value
    return found


def _normal(value: Any) -> Any:
    """A value as MONAI keeps it, with :: for #."""
    if isinstance(value, str):
        return value.replace("#", "::")
    if isinstance(value, Mapping):
        return {key: _normal(inner) for key, inner in value.items()}
    return [_normal(inner) for inner in value] if isinstance(value, list) else value


def _tracking_keys(tracking: Any) -> frozenset[str]:
    """Keys that MONAI adds to a configuration whose run is tracked."""
    if tracking is None:
        return frozenset()
    by_name: Any = DEFAULT_EXP_MGMT_SETTINGS
    known = isinstance(tracking, str) and tracking in by_name
    settings = by_name[tracking] if known else ConfigParser.load_config_files(tracking)
    return frozenset(settings.get("configs", {}))
