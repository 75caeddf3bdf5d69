"""What refers to what in a configuration: macros, ``@`` references, circles, and keys in use."""

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any

from monai.bundle import ConfigParser, ReferenceResolver
from monai.bundle.properties import InferProperties, TrainProperties

from custom.config_check.findings import Finding, Rank, did_you_mean
from custom.config_check.key_tree import (
    MISSING,
    Path,
    children,
    key_of,
    path_of,
    similar_key,
    value_at,
    walk,
)
from custom.config_check.layers import Layers
from custom.config_check.sources import read_source

METADATA = "_meta_"
LIFE = ("imports", "initialize", "run", "finalize", METADATA)
"""Top-level keys that MONAI itself looks up, besides the properties of its workflows."""


class Resolved:
    """A configuration with its macros and relative references replaced, as MONAI does first.

    What cannot be replaced becomes None.

    Args:
        layers: the merged configuration; not changed.
    """

    def __init__(self, layers: Layers) -> None:
        self.layers = layers
        self.findings: list[Finding] = []
        self.config: dict[str, Any] = deepcopy(layers.config)
        self._replace(self.config, ())

    def origin(self, path: Path) -> str:
        """Name of the source that a value comes from."""
        return self.layers.origin(path)

    def remove(self, path: Path) -> None:
        """Take a key out."""
        holder = value_at(self.config, path[:-1])
        if isinstance(holder, dict):
            holder.pop(path[-1], None)

    def find(self, rank: Rank, path: Path, what: str) -> None:
        """Note a mistake at a key."""
        self.findings.append(Finding(rank, self.origin(path), key_of(path), what))

    def _replace(self, part: Any, path: Path) -> None:
        for name, value in list(children(part)):
            key: Any = name if isinstance(part, Mapping) else int(name)
            here = (*path, name)
            if isinstance(value, str):
                part[key] = self._resolved(value, here)
            else:
                self._replace(value, here)

    def _resolved(self, value: str, path: Path) -> Any:
        if value[:1] not in ("@", "%", "$"):
            return value
        try:
            absolute: str = ConfigParser.resolve_relative_ids("::".join(path), value)
        except ValueError:
            self.find(Rank.REFERENCE, path, f"goes up further than there are levels: {value}")
            return None
        return self._macro(absolute, path) if absolute.startswith("%") else absolute

    def _macro(self, value: str, path: Path) -> Any:
        """What a ``%`` stands for: a part of this or of another file, copied."""
        name, key = ConfigParser.split_path_id(value[1:])
        tree: Any = self.config
        if name:
            source, found = read_source(name)
            if source is None:
                self._no_file(found[0], path)
                return None
            self.findings += found
            tree = source.content
        target = value_at(tree, path_of(key)) if key else tree
        if target is MISSING:
            hint = did_you_mean(similar_key(tree, path_of(key)))
            holder = name or "the configuration"
            self.find(Rank.REFERENCE, path, f"takes '{key}' of {holder}, which has none{hint}")
            return None
        if any(isinstance(v, str) and v.startswith("%") for _, v in walk({"": target})):
            what = f"takes {value.replace('::', '#')}, which holds another %, and MONAI follows one"
            self.find(Rank.REFERENCE, path, what)
        return deepcopy(target)

    def _no_file(self, found: Finding, path: Path) -> None:
        where = found.where.removeprefix("config ")
        what = f"takes a part of {where}, which {found.what}"
        self.find(Rank.REFERENCE, path, what)


def references(value: str) -> list[Path]:
    """Keys that a string refers to, if it is a reference or an expression."""
    if "@" not in value:
        return []
    return [path_of(found) for found in ReferenceResolver.match_refs_pattern(value)]


def undefined(resolved: Resolved) -> Iterator[Finding]:
    """References that lead nowhere, one finding for each target; and what only looks like one."""
    users: dict[Path, list[Path]] = {}
    for path, value in walk(resolved.config):
        if not isinstance(value, str) or path[0] == METADATA:
            continue
        targets = references(value)
        for target in targets:
            if target[0] != METADATA and value_at(resolved.config, target) is MISSING:
                users.setdefault(target, []).append(path)
        if value.startswith("@") and not targets:
            yield _no_reference(resolved, path, value)
    for target, paths in users.items():
        yield _undefined(resolved, target, paths)


def _no_reference(resolved: Resolved, path: Path, value: str) -> Finding:
    mended = value.replace("::", "#").replace(".", "#")
    known = value_at(resolved.config, path_of(mended[1:])) is not MISSING
    what = f"is the word {value!r}, not a reference: a key is written with # alone"
    hint = did_you_mean(mended if known else None)
    return Finding(Rank.REFERENCE, resolved.origin(path), key_of(path), what + hint)


def _undefined(resolved: Resolved, target: Path, paths: list[Path]) -> Finding:
    others = f" (so do {len(paths) - 1} others)" if len(paths) > 1 else ""
    hint = did_you_mean(_at(similar_key(resolved.config, target)))
    whole = resolved.layers.replaced(target)
    above = _string_above(resolved.config, target)
    reason = f"; {whole}" if whole else f"; {above}" if above else hint
    what = f"refers to '@{key_of(target)}'{others}, which the configuration does not have{reason}"
    return Finding(Rank.REFERENCE, resolved.origin(paths[0]), key_of(paths[0]), what)


def _at(key: str | None) -> str | None:
    return f"@{key}" if key else None


def _string_above(config: Any, target: Path) -> str | None:
    """Sentence on a reference into what itself is a reference or an expression, if it is that."""
    for depth in range(1, len(target)):
        found = value_at(config, target[:depth])
        if isinstance(found, str) and found[:1] in ("@", "$"):
            said = found.replace("::", "#")
            return f"'{key_of(target[:depth])}' is '{said}', into which @ does not reach"
    return None


def circles(resolved: Resolved) -> Iterator[Finding]:
    """References that lead back to where they stand, one finding per circle."""
    done: set[Path] = set()
    for path, value in walk(resolved.config):
        if isinstance(value, str) and path not in done:
            yield from _circles_from(resolved, path, done)


def _circles_from(resolved: Resolved, start: Path, done: set[Path]) -> Iterator[Finding]:
    """Depth first, without recursion; ``done`` keeps what was left behind."""
    trail: dict[Path, Iterator[Path]] = {start: _needs(resolved.config, start)}
    while trail:
        here, needs = next(reversed(trail.items()))
        following = next(needs, None)
        if following is None:
            done.add(here)
            del trail[here]
        elif following in trail:
            yield _circle(resolved, [*trail], following)
            done.add(here)
            del trail[here]
        elif following not in done:
            trail[following] = _needs(resolved.config, following)


def _circle(resolved: Resolved, trail: list[Path], back: Path) -> Finding:
    circle = [p for p in trail[trail.index(back) :] if _is_string(resolved.config, p)]
    shown = " -> ".join(key_of(path) for path in (*circle, circle[0]))
    what = f"refers back to itself: {shown}; let one of them be a value"
    return Finding(Rank.REFERENCE, resolved.origin(circle[0]), key_of(circle[0]), what)


def _is_string(config: Any, path: Path) -> bool:
    return isinstance(value_at(config, path), str)


def _needs(config: Any, path: Path) -> Iterator[Path]:
    """What MONAI makes before it makes a key: what it holds, and what it refers to."""
    value = value_at(config, path)
    if isinstance(value, str):
        yield from (p for p in references(value) if value_at(config, p) is not MISSING)
    else:
        yield from ((*path, part) for part, _ in children(value))


def roots(config: Mapping[str, Any]) -> set[Path]:
    """Keys that are in use without being referred to.

    Those that MONAI looks up, and lists of expressions, each of which may be run by its name.
    """
    properties: list[Any] = [*TrainProperties.values(), *InferProperties.values()]
    fixed = {path_of(found["id"]) for found in properties}
    runs = {(key,) for key, value in config.items() if is_run(value)}
    return fixed | runs | {(key,) for key in LIFE}


def is_run(value: Any) -> bool:
    """Whether a value is a list of expressions or references, as a run is."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, str) and item[:1] in ("$", "@") for item in value)
    )


def reached(config: Any, starts: Iterable[Path]) -> set[Path]:
    """Every key that is used from some others on, as it was referred to; nothing inside them."""
    found: set[Path] = set()
    waiting = [path for path in starts if value_at(config, path) is not MISSING]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for value in _strings(value_at(config, path)):
            waiting += [p for p in references(value) if value_at(config, p) is not MISSING]
    return found


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for _, inner in children(value):
        yield from _strings(inner)


def in_use(reached_keys: set[Path], path: Path) -> bool:
    """Whether a key, what holds it, or a part of it is used."""
    return any(path[: len(p)] == p or p[: len(path)] == path for p in reached_keys)
