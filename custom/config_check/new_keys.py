"""Keys that nothing had before, and keys that nothing uses."""

from collections.abc import Iterator, Mapping
from typing import Any

from custom.config_check.findings import Finding, Rank, close_to, did_you_mean
from custom.config_check.key_tree import (
    MISSING,
    Path,
    inside_component,
    inside_list,
    is_section,
    key_of,
    similar_key,
    value_at,
    walk,
)
from custom.config_check.layers import Change, Layers, parts_changed
from custom.config_check.references import (
    LIFE,
    METADATA,
    Resolved,
    in_use,
    is_run,
    reached,
    references,
    roots,
)

NAMESPACES = ("train", "validate")
"""MONAI's sections: of them only what is referred to, or what MONAI knows, is used."""
SAME = 0.9
"""So alike are two keys of different runs that the one may have been meant as the other."""

Others = Mapping[str, Mapping[str, Any]]


def unknown_keys(resolved: Resolved, others: Others, known: frozenset[str]) -> Iterator[Finding]:
    """Keys of later sources that the ones before do not have, and that nothing refers to.

    A file may be meant for several runs: what the configuration of another run has is left alone,
    and taken out of the resolved one, because its references may lead nowhere in this run.

    Args:
        resolved: the merged configuration.
        others: configurations of other runs of the bundle, by name.
        known: keys that are known all the same.
    """
    unknown = list(_unknown_changes(resolved, known))
    for change in unknown:
        yield from _unknown(resolved, change, others)
        if change.source.shared and _owners(change, others):
            resolved.remove(change.path)


def _unknown_changes(resolved: Resolved, known: frozenset[str]) -> Iterator[Change]:
    named = {
        target for _, v in walk(resolved.config) if isinstance(v, str) for target in references(v)
    }
    for change in resolved.layers.changes:
        for part in parts_changed(change):
            if part.path[0] not in known and _is_unknown(resolved.layers, part, named):
                yield part


def unused_keys(resolved: Resolved, run_id: str | None) -> Iterator[Finding]:
    """Keys of the first file that nothing uses; and, as notes, changed keys that lost their use."""
    first = resolved.layers.first
    before = reached(first, roots(first))
    for path in _parts(first):
        if not in_use(before, path) and value_at(resolved.config, path) is not MISSING:
            named = reached(resolved.config, roots(resolved.config))
            if not in_use(named, path):
                yield _unused(resolved, path)
    start = (run_id,) if run_id else ("run",)
    after = reached(resolved.config, {start, ("initialize",), ("finalize",)})
    at_first = reached(first, {start, ("initialize",), ("finalize",)})
    for change in resolved.layers.changes:
        if in_use(at_first, change.path) and not in_use(after, change.path):
            what = "has no effect: what used it was replaced"
            yield Finding(Rank.NOTE, change.source.name, key_of(change.path), what)


def _is_unknown(layers: Layers, change: Change, named: set[Path]) -> bool:
    path = change.path
    if change.before is not MISSING or change.first is not MISSING:
        return False
    if inside_component(layers.config, path) or inside_list(layers.config, path):
        return False  # an argument, which the component's signature knows
    if len(path) > 1 and not is_section(value_at(layers.first, path[:-1])):
        return False  # a mapping that was not there before has no keys to compare with
    if any(target[: len(path)] == path for target in named) or path[0] in LIFE:
        return False
    return not (len(path) == 1 and is_run(change.value) and not _misspelt_run(layers, path[0]))


def _misspelt_run(layers: Layers, key: str) -> bool:
    runs = [name for name, value in layers.first.items() if is_run(value)]
    return close_to(key, runs, least=0.8) is not None


def _owners(change: Change, others: Others) -> list[str]:
    """Other runs whose configuration has a key."""
    return [name for name, c in others.items() if value_at(c, change.path) is not MISSING]


def _unknown(resolved: Resolved, change: Change, others: Others) -> Iterator[Finding]:
    config = {k: v for k, v in resolved.layers.first.items() if k != METADATA}
    owners = _owners(change, others)
    key = key_of(change.path)
    if owners and change.source.shared:
        twin = close_to(key, config, least=SAME)
        if twin and twin not in change.source.content:
            what = f"is a key of {owners[0]}, not of this run{did_you_mean(twin)}"
            yield Finding(Rank.NOTE, change.source.name, key, what)
    elif owners:
        what = f"means nothing to this run: it is a key of {' and '.join(owners)}; leave it out"
        yield Finding(Rank.KEY, change.source.name, key, what)
    else:
        elsewhere = [
            path for content in others.values() for path, _ in walk(content) if len(path) == 1
        ]
        hint = did_you_mean(similar_key(config, change.path, elsewhere))
        what = f"is a key that nothing had before and nothing refers to{hint}"
        yield Finding(Rank.KEY, change.source.name, key, what)


def _parts(first: Mapping[str, Any]) -> Iterator[Path]:
    """Keys whose use is looked at: those at the top, and those of MONAI's sections."""
    for key, value in first.items():
        if key in NAMESPACES and is_section(value):
            yield from ((key, part) for part in value)
        else:
            yield (key,)


def _unused(resolved: Resolved, path: Path) -> Finding:
    others = [p for p in _parts(resolved.layers.first) if p != path]
    close = close_to(key_of(path), map(key_of, others), least=0.75)
    what = f"is a key that nothing refers to{did_you_mean(close)}"
    return Finding(Rank.KEY, resolved.origin(path), key_of(path), what)
