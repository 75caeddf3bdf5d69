"""Values of a user's JSON, checked field by field; each mistake is one sentence."""

import json
import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from custom.errors import InputError
from custom.voxel_grid import Triple


def read_object(path: Path, what: str) -> Mapping[str, Any]:
    """The JSON object in a file; ``what`` names it in messages, here and below.

    Raises:
        InputError: no such file, or something else in it. So in all functions here.
    """
    if not path.is_file():
        raise InputError(f"{what} does not exist")
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{what} is not valid JSON: {error}") from error
    return mapping(found, what)


def mapping(value: object, what: str) -> Mapping[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise InputError(f"{what} must be a JSON object, got {value!r}")
    return value


def sequence(value: object, what: str) -> Sequence[Any]:
    """A JSON list."""
    if not isinstance(value, list):
        raise InputError(f"{what} must be a list, got {value!r}")
    return value


def with_json_words(value: Any) -> Any:
    """A value in which ``null``, ``true`` and ``false`` are what JSON means by them.

    Of what stands in brackets on a command line, Fire makes the words themselves.

    Args:
        value: plain.
    """
    if isinstance(value, dict):
        return {key: with_json_words(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [with_json_words(item) for item in value]
    words = {"null": None, "true": True, "false": False}
    return words.get(value, value) if isinstance(value, str) else value


def check_keys(found: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    """Refuse keys that are not known."""
    for key in found:
        if key not in known:
            raise InputError(f"{what} has the unknown key '{key}'{hint(key, known)}")


def hint(word: str, known: Sequence[str]) -> str:
    """Ending of a sentence on an unknown word: the close one, else all that are known."""
    close = get_close_matches(word, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(known)}"


def picked(known: Sequence[str], wanted: object, what: str) -> list[str]:
    """Those of ``known`` that a list names, by word or by position from 0 on, in ``known``'s order.

    Each may be named once.
    """
    positions = []
    for item in sequence(wanted, what):
        if isinstance(item, str) and item in known:
            positions.append(known.index(item))
        elif type(item) is int and 0 <= item < len(known):
            positions.append(item)
        else:
            raise InputError(
                f"{what} names {item!r}, which is neither one of {', '.join(known)} nor a position "
                f"from 0 to {len(known) - 1}"
            )
    if not positions or len(set(positions)) < len(positions):
        raise InputError(f"{what} must name at least one, and none twice, got {wanted!r}")
    return [known[position] for position in sorted(positions)]


def whole_number(value: object, least: int, what: str) -> int:
    """An integer, not below ``least``."""
    if type(value) is not int or value < least:
        raise InputError(f"{what} must be a whole number from {least} on, got {value!r}")
    return value


def not_negative(value: object, what: str) -> float:
    """A finite number from 0 on."""
    if isinstance(value, (int, float)) and type(value) is not bool and 0 <= value < math.inf:
        return float(value)
    raise InputError(f"{what} must be a number from 0 on, got {value!r}")


def numbers(value: object, count: int, what: str) -> list[float]:
    """A list of so many finite numbers."""
    if isinstance(value, list) and len(value) == count:
        found: list[float] = [v for v in value if type(v) in (int, float) and math.isfinite(v)]
        if len(found) == count:
            return found
    raise InputError(f"{what} must be a list of {count} numbers, got {value!r}")


def whole_numbers(value: object, count: int, least: int | None, what: str) -> list[int]:
    """A list of so many integers, none below ``least``."""
    found = numbers(value, count, what)
    if any(type(v) is not int or (least is not None and v < least) for v in found):
        limit = "" if least is None else f" from {least} on"
        raise InputError(f"{what} must be {count} whole numbers{limit}, got {value!r}")
    return [int(v) for v in found]


def per_axis(value: object, what: str) -> list[int]:
    """One whole number from 1 on, or three (z, y, x), as three."""
    if isinstance(value, (list, tuple)):
        return whole_numbers(list(value), 3, 1, what)
    if type(value) is not int or value < 1:
        raise InputError(f"{what} must be one or three whole numbers from 1 on, got {value!r}")
    return [value] * 3


def voxel_size(value: object, what: str) -> Triple:
    """Three positive numbers."""
    z, y, x = numbers(value, 3, what)
    if min(z, y, x) <= 0:
        raise InputError(f"{what} must be positive (z, y, x in nm), got {value!r}")
    return float(z), float(y), float(x)


def interval(value: object, what: str) -> tuple[float, float]:
    """Two numbers, the lower one first."""
    low, high = numbers(value, 2, what)
    if low >= high:
        raise InputError(f"{what} must be [low, high] with low < high, got {value!r}")
    return float(low), float(high)


def flag(value: object, what: str) -> bool:
    """True or False; refuses the string "false", which would count as true."""
    if not isinstance(value, bool):
        raise InputError(
            f"{what} must be true or false, got {value!r}; on the command line say False"
        )
    return value
