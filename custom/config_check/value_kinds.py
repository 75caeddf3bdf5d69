"""Values of another kind than was there: a word where a number was, and the like."""

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

from custom.config_check.findings import Finding, Rank
from custom.config_check.key_tree import (
    MISSING,
    Path,
    is_component,
    key_of,
    misspelt_word,
    path_of,
    value_at,
    walk,
)
from custom.config_check.layers import Change, parts_changed
from custom.config_check.references import Resolved


class Kind(Enum):
    """What a value is, in a user's words."""

    FLAG = "true or false"
    NUMBER = "a number"
    WORD = "a word"
    LIST = "a list"
    MAPPING = "a mapping"
    COMPONENT = "an object with _target_"


FITS = {
    Kind.FLAG: {Kind.FLAG, Kind.COMPONENT},
    Kind.NUMBER: {Kind.NUMBER, Kind.LIST, Kind.COMPONENT},
    Kind.WORD: set(Kind) - {Kind.FLAG},
    Kind.LIST: {Kind.LIST, Kind.COMPONENT},
    Kind.MAPPING: {Kind.MAPPING, Kind.COMPONENT},
    Kind.COMPONENT: {Kind.COMPONENT},
}
"""Kinds that may take the place of one: a number per axis is a list, a word may have options."""
SPELLED = {"true": "True", "false": "False", "null": "null", "none": "null"}
"""Values that are no values in quotes, and how they are written on a command line."""


def kind_of(value: Any, config: Any, depth: int = 0) -> Kind | None:
    """Kind of a value, of a reference that of its target; None where only running it can tell."""
    if isinstance(value, bool):
        return Kind.FLAG
    if isinstance(value, int | float):
        return Kind.NUMBER
    if isinstance(value, list | tuple):
        return Kind.LIST
    if isinstance(value, Mapping):
        return Kind.COMPONENT if is_component(value) else Kind.MAPPING
    if not isinstance(value, str) or value[:1] in ("$", "%"):
        return None
    if not value.startswith("@"):
        return Kind.WORD
    target = value_at(config, path_of(value[1:]))
    return None if depth > 9 else kind_of(target, config, depth + 1)


def other_kinds(resolved: Resolved, others: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """Changed values that are of another kind than what they replace.

    Args:
        resolved: the merged configuration.
        others: configurations of other runs, which say what a key is that this one does not have.
    """
    for change in resolved.layers.changes:
        for part in parts_changed(change):
            if what := _wrong(part, resolved, others):
                yield Finding(Rank.VALUE, part.source.name, key_of(part.path), what)


def _wrong(
    change: Change, resolved: Resolved, others: Mapping[str, Mapping[str, Any]]
) -> str | None:
    """What is wrong with a change, if it fits neither the first value nor the one before."""
    if change.path[-1].startswith("_"):
        return None
    elsewhere = (value_at(content, change.path) for content in others.values())
    known = [value for value in (change.first, change.before) if value is not MISSING]
    known = known or [value for value in elsewhere if value is not MISSING][:1]
    found = [_misfit(change, value, resolved) for value in known]
    return found[0] if found and all(found) else None


def _misfit(change: Change, before: Any, resolved: Resolved) -> str | None:
    given = kind_of(change.value, resolved.config)
    expected = kind_of(before, resolved.layers.first)
    word = change.value if given is Kind.WORD else None
    if expected is not Kind.WORD and word is not None and word.lower() in SPELLED:
        return _quoted(change, word, expected)
    if expected is None or given is None:
        return None
    if given is Kind.MAPPING and any(misspelt_word(key) for key in change.value):
        return None  # said of the component that it should have been
    if given not in FITS[expected] and not _one_of_list(change.path, given, expected):
        return _other(change, before, given, expected, resolved)
    if expected is Kind.LIST and given is Kind.LIST and _numeric(before):
        return _words_among(change.value)
    return None


def _quoted(change: Change, word: str, expected: Kind | None) -> str:
    plain = SPELLED[word.lower()]
    if change.source.shared:
        way = f"write {plain.lower()} without quotes"
    elif plain == "null":
        way = "the command line has no null; write it in an overlay"
    else:
        way = f"say {plain} on the command line"
    counts = ", and any word counts as true" if expected in (Kind.FLAG, None) else ""
    return (
        f"is the word {word!r}{f', where {expected.value} was' if expected else ''}{counts}; {way}"
    )


def _other(change: Change, before: Any, given: Kind, expected: Kind, resolved: Resolved) -> str:
    value = repr(change.value).replace("::", "#")
    shown = value if len(value) < 60 else given.value
    was = (
        f", such as {before!r}"
        if expected in (Kind.NUMBER, Kind.LIST) and len(repr(before)) < 60
        else ""
    )
    way_out = _way_out(change, before, given, resolved)
    return f"is {shown}, but {expected.value} was there{was}{way_out}"


def _way_out(change: Change, before: Any, given: Kind, resolved: Resolved) -> str:
    if given is Kind.FLAG and change.value is True and not change.source.shared:
        return "; is its value left out?"
    if given is not Kind.WORD:
        return ""
    if isinstance(before, str) and before.startswith("@"):
        library = path_of(before[1:])[:-1]
        if library and value_at(resolved.config, (*library, change.value)) is not MISSING:
            return f"; did you mean '@{key_of((*library, change.value))}'?"
    if change.path == ("loss",):
        return f"; a loss of the library is '%configs/losses.json#{change.value}'"
    return ""


def _one_of_list(path: Path, given: Kind, expected: Kind) -> bool:
    """Whether a number takes the place of one number per axis inside a list."""
    return path[-1].isdigit() and given is Kind.NUMBER and expected is Kind.LIST


def _numeric(value: Any) -> bool:
    leaves = [leaf for _, leaf in walk(value) if not isinstance(leaf, list)]
    return bool(leaves) and all(kind_of(leaf, {}) is Kind.NUMBER for leaf in leaves)


def _words_among(value: Any) -> str | None:
    for _, leaf in walk(list(value)):
        if kind_of(leaf, {}) is Kind.WORD:
            return f"holds the word {leaf!r}, but only numbers were there"
    return None
