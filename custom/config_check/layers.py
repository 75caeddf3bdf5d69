"""Files and overrides laid over each other as MONAI does it, with a memory of who said what."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from custom.config_check.findings import Finding, Rank, did_you_mean
from custom.config_check.key_tree import (
    MISSING,
    Path,
    child,
    is_section,
    key_of,
    path_of,
    similar_key,
    value_at,
)
from custom.config_check.sources import Source


@dataclass(frozen=True)
class Change:
    """A value that a later source gives to a key.

    Args:
        source: who gives it.
        path: of the key.
        value: the new one.
        before: the one that it replaces, or ``MISSING``.
        first: the one of the first file, or ``MISSING``.
    """

    source: Source
    path: Path
    value: Any
    before: Any
    first: Any


@dataclass
class Layers:
    """A merged configuration.

    Args:
        name: of the first source.
        config: all sources merged.
        first: the first source alone.
        changes: what the later ones gave, in order.
        findings: keys that MONAI would fail on while merging.
        origins: name of the source that gave a key last.
    """

    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    first: dict[str, Any] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    origins: dict[Path, str] = field(default_factory=dict)

    def origin(self, path: Path) -> str:
        """Name of the source that a value comes from."""
        for depth in range(len(path), 0, -1):
            if path[:depth] in self.origins:
                return self.origins[path[:depth]]
        return "the configuration"

    def replaced(self, path: Path) -> str | None:
        """Sentence on the section around a key that a later source replaced whole, if one did."""
        for change in self.changes:
            inside = len(path) > len(change.path) and path[: len(change.path)] == change.path
            if inside and isinstance(change.before, Mapping) and isinstance(change.value, Mapping):
                key = key_of(change.path)
                return f"{change.source.name} replaces all of '{key}'; change '{key}#...' alone"
        return None


def merged(sources: Sequence[Source]) -> Layers:
    """The sources laid over each other, each key as MONAI's parser sets it."""
    layers = Layers(sources[0].name)
    for number, source in enumerate(sources):
        for key, value in source.content.items():
            _set(layers, source, key, deepcopy(value), is_first=number == 0)
        if number == 0:
            layers.first = deepcopy(layers.config)
    return layers


def parts_changed(change: Change) -> Iterator[Change]:
    """A change, or where a section replaces a section the changes of its keys, at any depth.

    A section that keeps its keys but for one is a change of that key.
    """
    reference = change.before if is_section(change.before) else change.first
    if not (is_section(reference) and isinstance(change.value, Mapping)):
        yield change
        return
    if "_target_" in change.value:
        return
    for part, value in change.value.items():
        before, first = child(change.before, part), child(change.first, part)
        yield from parts_changed(Change(change.source, (*change.path, part), value, before, first))


def _set(layers: Layers, source: Source, key: str, value: Any, is_first: bool) -> None:
    path = path_of(key.removeprefix("+"))
    holder = value_at(layers.config, path[:-1])
    slot = _slot(holder, path[-1])
    before = value_at(layers.config, path)
    if slot is None or (isinstance(holder, list) and before is MISSING):
        what = _no_place(layers.config, path)
        layers.findings.append(Finding(Rank.KEY, source.name, key, what))
        return
    if key.startswith("+"):
        _add(layers, source, key, value, before)
        return
    if not is_first:
        first = value_at(layers.first, path)
        layers.changes.append(Change(source, path, value, before, first))
    holder[slot] = value
    layers.origins = {p: o for p, o in layers.origins.items() if p[: len(path)] != path}
    layers.origins[path] = source.name


def _add(layers: Layers, source: Source, key: str, value: Any, before: Any) -> None:
    """What a key with a plus does: a mapping takes keys, a list grows."""
    path = path_of(key.removeprefix("+"))
    if before is MISSING:
        hint = did_you_mean(similar_key(layers.config, path))
        what = f"adds to what is not there{hint}"
        layers.findings.append(Finding(Rank.KEY, source.name, key, what))
    elif isinstance(before, dict) and isinstance(value, dict):
        for part, inner in value.items():
            _set(layers, source, key_of((*path, part)), inner, is_first=False)
    elif isinstance(before, list) and isinstance(value, list):
        for index in range(len(value)):
            layers.origins[(*path, str(len(before) + index))] = source.name
        before.extend(value)
    else:
        kinds = f"a {type(value).__name__} to a {type(before).__name__}"
        what = f"adds {kinds}; + joins two mappings or two lists"
        layers.findings.append(Finding(Rank.KEY, source.name, key, what))


def _slot(holder: Any, part: str) -> Any:
    """What to index a holder with, None where it cannot be."""
    if isinstance(holder, dict):
        return part
    if isinstance(holder, list) and part.lstrip("-").isdigit():
        return int(part)
    return None


def _no_place(config: Any, path: Path) -> str:
    """Why a nested key cannot be set."""
    for depth in range(1, len(path)):
        found = value_at(config, path[:depth])
        if found is MISSING:
            hint = did_you_mean(similar_key(config, path))
            return f"has no place: there is no '{key_of(path[:depth])}'{hint}"
        if isinstance(found, str) and found.startswith("@") and len(found) > 1:
            target = key_of((*path_of(found[1:]), *path[depth:]))
            return f"has no place: '{key_of(path[:depth])}' refers to {found}; change '{target}'"
        if not isinstance(found, dict | list):
            return f"has no place: '{key_of(path[:depth])}' is {found!r}, which holds no keys"
    return f"has no place: '{key_of(path[:-1])}' is a list without an item {path[-1]}"
