"""Configurations: every ``_target_``, expression, import and macro in a bundle's JSON files."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from custom.inspection.expressions import (
    expression_faults,
    import_faults,
    imported,
    is_import,
    macro_fault,
    path_fault,
    reference_fault,
)
from custom.inspection.findings import Findings, quoted
from custom.inspection.own_project import OwnProject
from custom.inspection.targets import target_fault

MODES = ("default", "callable")
UPSAMPLERS = (None, "anyup")  # a folder's code would be run
FORBIDDEN = {  # values that do no harm, by the names of arguments that may
    "_debug_": (False, None),
    "trust_remote_code": (False, None),
    "weights_only": (True, None),
}
DEEPEST = 100  # levels of nesting


@dataclass(frozen=True)
class Leaf:
    """One plain value of a configuration.

    Args:
        file: that it is in.
        key: nested, with "#" between its parts.
        value: a string, number, bool or None.
    """

    file: str
    key: str
    value: Any

    @property
    def name(self) -> str:
        """Last part of the key that is no position in a list."""
        parts = [p for p in re.split("::|#", self.key) if not p.isdigit()]
        return parts[-1].removeprefix("+") if parts else ""


class DuplicateKeyError(ValueError):
    """A key is there twice; MONAI would take the last one, a reader the first."""


def read_config(content: bytes) -> Any:
    """A JSON file's value.

    Raises:
        ValueError: it is no JSON, is nested too deeply, or has a key twice.
    """
    try:
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def leaves(file: str, config: Any, key: str = "", depth: int = 0) -> Iterator[Leaf]:
    """Every plain value of a configuration; keys of dictionaries count as values, too.

    Raises:
        ValueError: it is nested too deeply.
    """
    if depth > DEEPEST:
        raise ValueError("it is nested too deeply")
    if isinstance(config, dict):
        for name, value in config.items():
            yield from leaves(file, value, f"{key}#{name}" if key else name, depth + 1)
    elif isinstance(config, list):
        for position, value in enumerate(config):
            yield from leaves(file, value, f"{key}#{position}", depth + 1)
    else:
        yield Leaf(file, key, config)


def inspect_configs(found: Sequence[Leaf], own: OwnProject, findings: Findings) -> None:
    """Note down everything that MONAI would execute, and what of it is dangerous.

    Args:
        found: leaves of all configurations of a bundle: any may be laid over any other.
        own: the project that inspects.
        findings: to note down in.
    """
    aliases = _aliases(found, findings)
    for leaf in found:
        for fault in _faults(leaf, aliases, own, findings):
            findings.danger(leaf.file, f"{leaf.key}: {fault}")


def _aliases(found: Sequence[Leaf], findings: Findings) -> Mapping[str, str]:
    """What the names that imports bind stand for."""
    aliases: dict[str, str] = {}
    for leaf in found:
        if isinstance(leaf.value, str) and leaf.value.startswith("$") and is_import(leaf.value[1:]):
            for alias, name in imported(leaf.value[1:]).items():
                if aliases.setdefault(alias, name) != name:
                    findings.danger(leaf.file, f"{leaf.key}: {quoted(alias)} has two meanings")
    return aliases


def _faults(
    leaf: Leaf, aliases: Mapping[str, str], own: OwnProject, findings: Findings
) -> Iterator[str]:
    value = leaf.value
    if leaf.name == "_target_":
        findings.executes("target", leaf.file, str(value))
        if fault := target_fault(value, own):
            yield f"_target_ {quoted(str(value))} {fault}"
        return
    if leaf.name == "_mode_" and value not in MODES:
        yield f"_mode_ {quoted(str(value))} opens a debugger or is unknown"
    if leaf.name == "upsampler" and value not in UPSAMPLERS:
        yield f"the code of an upsampler would be run from {quoted(str(value))}"
    if leaf.name in FORBIDDEN and value not in FORBIDDEN[leaf.name]:
        yield f"{leaf.name} {value!r} would load code, or open a debugger"
    if isinstance(value, str):
        yield from _text_faults(leaf, value, aliases, own, findings)


def _text_faults(
    leaf: Leaf, value: str, aliases: Mapping[str, str], own: OwnProject, findings: Findings
) -> Iterator[str]:
    if value.startswith("$") and is_import(value[1:]):
        findings.executes("import", leaf.file, value)
        yield from (f"{quoted(value)} {fault}" for fault in import_faults(value[1:], own))
        if leaf.key.split("#")[0].removeprefix("+") != "imports" and not _in_model(leaf):
            yield f"{quoted(value)} is an import outside of imports"
    elif value.startswith("$"):
        findings.executes("expression", leaf.file, value)
        faults = expression_faults(value[1:], aliases, own)
        yield from (f"{quoted(value)} {fault}" for fault in faults)
    elif value.startswith("%"):
        if fault := macro_fault(value):
            yield f"macro {quoted(value)} {fault}"
    elif value.startswith("@"):
        if fault := reference_fault(value):
            yield fault
    elif fault := path_fault(value):
        yield f"path {quoted(value)} {fault}"


def _in_model(leaf: Leaf) -> bool:
    """Whether this is in the configuration that a model's description keeps."""
    return leaf.file == "models/model.json" and leaf.key.startswith("config#imports#")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DuplicateKeyError(f"it has the key {quoted(twice)} twice")
    return found
