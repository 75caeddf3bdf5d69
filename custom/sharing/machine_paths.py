"""Paths of the machine that a model was trained on, which nobody else has any use for."""

import re
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath
from typing import Any

from custom.errors import InputError

_WHOLE = re.compile(r"(?:[/~\\]|[A-Za-z]:[\\/]|file:|\.\.?[\\/])")
_HOME = re.compile(r"(?:file://)?(?:[A-Za-z]:)?[\\/](?:home|Users)[\\/][^\\/]+")
_INSIDE = re.compile(
    r"(?<![\w.@:/])(?:~|[A-Za-z]:)?[\\/](?:[^\s'\"\\/,;()\[\]{}]+[\\/])+[^\s'\"\\/,;()\[\]{}]*"
)


def without_machine_paths(value: Any) -> Any:
    """The same JSON value, in which every path of this machine is only its last name.

    A string that starts as a path does is taken for one as a whole; in expressions and longer
    texts absolute paths of two or more names are found.

    Args:
        value: of JSON; dictionaries keep their keys.
    """
    if isinstance(value, dict):
        return {key: without_machine_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_machine_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    if _WHOLE.match(value):
        return last_name(value)
    return _INSIDE.sub(lambda found: last_name(found[0]), value)


def last_name(path: str) -> str:
    """What comes after the last "/" or backslash; "path" where that is a user's name."""
    if _HOME.fullmatch(path.rstrip("/\\")):
        return "path"
    return PureWindowsPath(path.rstrip("/\\")).name or "path"


def refuse_machine_paths(files: Iterable[tuple[str, bytes]], places: Iterable[Path]) -> None:
    """Be sure that no file names a folder of this machine.

    Args:
        files: names and contents.
        places: folders of this machine.

    Raises:
        InputError: one does.
    """
    found = {str(place.resolve()).encode() for place in places} - {b"/"}
    patterns = [re.compile(re.escape(place) + rb"(?![\w.-])") for place in sorted(found)]
    for name, content in files:
        for pattern in patterns:
            if match := pattern.search(content):
                raise InputError(
                    f"'{name}' would tell others of the folder '{match[0].decode()}': take it out "
                    f"of that file and share again"
                )
