"""Nested keys of a configuration, as paths."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from monai.bundle import ConfigComponent

from custom.config_check.findings import close_to

SPECIAL = sorted(ConfigComponent.non_arg_keys)
"""Words of MONAI in components."""
Path = tuple[str, ...]
MISSING = object()
"""Value of a key that is not there."""


def path_of(key: str) -> Path:
    """``a#b`` or ``a::b`` in parts."""
    return tuple(key.replace("#", "::").split("::"))


def key_of(path: Path) -> str:
    """The nested key as a user writes it."""
    return "#".join(path)


def value_at(tree: Any, path: Path) -> Any:
    """Value of a nested key, or ``MISSING``."""
    for part in path:
        tree = child(tree, part)
        if tree is MISSING:
            break
    return tree


def child(tree: Any, part: str) -> Any:
    """Value of one part of a key; ``MISSING`` also below what is neither mapping nor list."""
    if isinstance(tree, Mapping):
        return tree.get(part, MISSING)
    if isinstance(tree, list) and part.lstrip("-").isdigit():
        index = int(part)
        return tree[index] if -len(tree) <= index < len(tree) else MISSING
    return MISSING


def children(tree: Any) -> Iterator[tuple[str, Any]]:
    """Parts and values one level down."""
    if isinstance(tree, Mapping):
        yield from ((str(key), value) for key, value in tree.items())
    elif isinstance(tree, list):
        yield from ((str(index), value) for index, value in enumerate(tree))


def walk(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every nested key with its value, containers before what they hold."""
    if path:
        yield path, tree
    for part, value in children(tree):
        yield from walk(value, (*path, part))


def is_component(value: Any) -> bool:
    """Whether MONAI would make an object of it."""
    return isinstance(value, Mapping) and "_target_" in value


def is_section(value: Any) -> bool:
    """A mapping with keys of its own that is no component."""
    return isinstance(value, Mapping) and bool(value) and "_target_" not in value


def misspelt_word(key: str) -> str | None:
    """The word of MONAI that a plain key may have meant."""
    return close_to(key, SPECIAL, least=0.75) if key.startswith("_") else None


def inside_component(tree: Any, path: Path) -> bool:
    """Whether a key, there or not, is an argument of a component or lies inside one."""
    return any(is_component(value_at(tree, path[:depth])) for depth in range(1, len(path)))


def inside_list(tree: Any, path: Path) -> bool:
    """Whether a key lies inside a list."""
    return any(isinstance(value_at(tree, path[:depth]), list) for depth in range(1, len(path)))


def similar_key(tree: Any, path: Path, others: Sequence[Path] = ()) -> str | None:
    """The key that a misspelt one may have meant.

    The same word elsewhere, for a key at the top; else one that is nearly the same where the path
    first fails. Parts may have been separated by ``.``.

    Args:
        tree: configuration.
        path: of which ``tree`` has no value.
        others: more keys that may be meant.
    """
    joined = key_of(path).replace(".", "#")
    if value_at(tree, path_of(joined)) is not MISSING and path_of(joined) != path:
        return joined
    if len(path) == 1 and (elsewhere := _elsewhere(tree, path)):
        return elsewhere
    for depth, part in enumerate(path):
        here = value_at(tree, path[:depth])
        if child(here, part) is MISSING:
            mended = close_to(part, (name for name, _ in children(here)))
            if mended:
                return _mended(tree, (*path[:depth], mended, *path[depth + 1 :]))
            break
    return _elsewhere(tree, path) or close_to(key_of(path), map(key_of, others))


def _mended(tree: Any, path: Path) -> str:
    """A path mended in one part, and after it where that helps."""
    if value_at(tree, path) is not MISSING:
        return key_of(path)
    return similar_key(tree, path) or key_of(path)


def _elsewhere(tree: Any, path: Path) -> str | None:
    """The shallowest key whose last part is the same word; not inside lists."""
    found = [
        p for p, _ in walk(tree) if p[-1] == path[-1] and p != path and not inside_list(tree, p)
    ]
    return key_of(min(found, key=len)) if found else None
