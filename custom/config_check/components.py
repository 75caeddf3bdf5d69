"""Components: whether their ``_target_`` can be found and takes the arguments that stand there."""

import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pydoc import ErrorDuringImport, locate
from typing import Any

from monai.bundle import ComponentLocator

from custom.config_check.findings import Finding, Rank, close_to, did_you_mean
from custom.config_check.key_tree import SPECIAL, Path, is_component, key_of, misspelt_word, walk
from custom.config_check.references import METADATA, Resolved

MODES = ("default", "callable", "debug")


@dataclass(frozen=True)
class Target:
    """What a ``_target_`` leads to.

    Args:
        problem: why it leads nowhere; empty where it does.
        parameters: of its signature; None where it tells none.
    """

    problem: str = ""
    parameters: Mapping[str, inspect.Parameter] | None = None


class Targets:
    """Finds components by name, each once. Their modules are imported, nothing is called."""

    def __init__(self) -> None:
        self.locator = ComponentLocator()
        self.find = cache(self._find)

    def _find(self, name: str) -> Target:
        full = self._full_name(name)
        try:
            found = locate(full)
        except ErrorDuringImport as error:
            return Target(f"cannot be imported: {error.value!r}")
        if found is None:
            return Target(f"cannot be found{self._hint(name)}")
        return Target(parameters=_parameters(found))

    def _full_name(self, name: str) -> str:
        modules = self.locator.get_component_module_name(name)
        module = modules[0] if isinstance(modules, list) else modules
        return f"{module}.{name}" if module else name

    def _hint(self, name: str) -> str:
        """What may have been meant: another name of the same module, or another module."""
        holder, _, last = name.rpartition(".")
        if not holder:
            return did_you_mean(close_to(name, self.locator._components_table or ()))
        module = locate(holder)
        if inspect.ismodule(module):
            close = close_to(last, (key for key in dir(module) if not key.startswith("_")))
            return did_you_mean(close and f"{holder}.{close}")
        close = _module_like(holder)
        return f": there is no module '{holder}'{did_you_mean(close and f'{close}.{last}')}"


def wrong_components(resolved: Resolved, targets: Targets) -> Iterator[Finding]:
    """Targets that cannot be found, arguments that they do not take or that are missing."""
    for path, value in walk(resolved.config):
        if path[0] == METADATA or not isinstance(value, Mapping):
            continue
        problems = _of_component(value, targets) if is_component(value) else _of_mapping(value)
        for key, what in problems:
            inner = (*path, key) if key else path
            yield _finding(resolved, inner, (*path, "_target_"), what)


def _finding(resolved: Resolved, path: Path, target: Path, what: str) -> Finding:
    """A mistake, of the source that made it: an argument may be right until a target is changed."""
    where, changer = resolved.origin(path), resolved.origin(target)
    if where == resolved.layers.name and changer != where:
        what = f"{what} (it stands in {where}; give the whole object)"
        where = changer
    return Finding(Rank.COMPONENT, where, key_of(path), what)


def _of_mapping(value: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Misspelt words of MONAI, which would be plain keys."""
    for key in value:
        if close := misspelt_word(key):
            yield key, f"is a plain key{did_you_mean(close)}"


def _of_component(value: Mapping[str, Any], targets: Targets) -> Iterator[tuple[str, str]]:
    name = value["_target_"]
    if not isinstance(name, str) or name.startswith(("$", "@")):
        return
    target = targets.find(name)
    if target.problem:
        yield "_target_", f"{name} {target.problem}"
        return
    yield from _special_keys(value)
    if not _is_off(value) and target.parameters is not None:
        yield from _wrong_arguments(name, value, target.parameters)


def _special_keys(value: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    mode = value.get("_mode_", "default")
    if mode not in MODES:
        yield "_mode_", f"is {mode!r}, not one of {', '.join(MODES)}"
    needed = value.get("_requires_")
    for word in needed if isinstance(needed, list) else [needed]:
        if isinstance(word, str) and word[:1] not in ("@", "$"):
            yield (
                "_requires_",
                f"is the word {word!r}, which requires nothing{did_you_mean(f'@{word}')}",
            )


def _wrong_arguments(
    name: str, value: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> Iterator[tuple[str, str]]:
    kinds = {p.kind for p in parameters.values()}
    by_name = [
        p for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    names = [p.name for p in by_name]
    given = [key for key in value if key not in SPECIAL]
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        for key in given:
            if key not in names:
                hint = did_you_mean(close_to(key, [*names, *SPECIAL]))
                yield key, f"is an argument that {name} does not take{hint or _takes(names)}"
    missing = [p.name for p in by_name if p.default is p.empty and p.name not in given]
    if missing and value.get("_mode_") != "callable":
        wants = " and ".join(f"'{key}'" for key in missing)
        yield "", f"lacks {wants}, which {name} needs"


def _takes(names: list[str]) -> str:
    return f"; it takes {', '.join(names)}" if names else "; it takes none"


def _is_off(value: Mapping[str, Any]) -> bool:
    """Whether MONAI leaves a component out whatever happens."""
    return str(value.get("_disabled_", False)).lower() == "true"


def _parameters(found: Any) -> Mapping[str, inspect.Parameter] | None:
    try:
        return inspect.signature(found).parameters
    except (TypeError, ValueError):
        return None


def _module_like(name: str) -> str | None:
    """A module that is loaded, of the same package and with a name like this."""
    package = name.partition(".")[0]
    loaded = [m for m in sys.modules if m.partition(".")[0] == package]
    return close_to(name, loaded, least=0.7)
