"""Configuration files as MONAI reads them; what it would not read is said in one sentence."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from custom.config_check.findings import Finding, Rank, close_to, did_you_mean
from custom.config_check.key_tree import key_of, walk

COMMAND_LINE = "command line"
YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Source:
    """Keys and values that were given together.

    Args:
        name: path of the file as the user gave it, or "command line".
        content: values by key; keys may be nested.
        shared: whether it may be meant for other runs, too, as a file may and a command line not.
    """

    name: str
    content: Mapping[str, Any]
    shared: bool = True


class _Object(dict[str, Any]):
    """A JSON object that remembers which of its keys came twice."""

    twice: tuple[str, ...] = ()


def read_source(name: str) -> tuple[Source | None, list[Finding]]:
    """One configuration file.

    Returns:
        the source, None where nothing can be read; and what is wrong with the file: it is missing,
        no valid JSON (with line and column), no object, or has a key twice at any depth.
    """
    path = Path(name)
    if not path.is_file():
        return None, [Finding(Rank.FILE, f"config file {name}", "", _missing(path))]
    if path.suffix.lower() not in (".json", *YAML):
        what = "is neither .json nor .yaml, and MONAI reads nothing else"
        return None, [Finding(Rank.FILE, f"config file {name}", "", what)]
    try:
        content, twice = _content(path)
    except json.JSONDecodeError as error:
        what = f"is not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}"
        return None, [Finding(Rank.FILE, f"config file {name}", "", what)]
    except (OSError, ValueError) as error:
        return None, [Finding(Rank.FILE, f"config file {name}", "", f"cannot be read: {error}")]
    if not isinstance(content, Mapping):
        what = f"must hold a JSON object with keys, not a {type(content).__name__}"
        return None, [Finding(Rank.FILE, f"config file {name}", "", what)]
    what = "stands twice in the same object, and the last one wins; remove one of them"
    return Source(name, content), [Finding(Rank.FILE, name, key, what) for key in twice]


def read_sources(names: Sequence[str]) -> tuple[list[Source], list[Finding]]:
    """All of the files that can be read, in order, and what is wrong with each."""
    sources, findings = [], []
    for name in names:
        source, found = read_source(name)
        sources += [] if source is None else [source]
        findings += found
    return sources, findings


def neighbours(first: str) -> dict[str, Mapping[str, Any]]:
    """Configurations of runs that lie beside a file, by name; the others of its bundle.

    A run's configuration has lists named ``run`` and ``initialize``. What cannot be read is left
    out: it is not this run's.
    """
    found = {}
    for path in sorted(Path(first).parent.glob("*.json")):
        source, _ = read_source(str(path))
        if source is not None and {"run", "initialize"} <= source.content.keys():
            found[path.name] = source.content
    return found


def _content(path: Path) -> tuple[Any, list[str]]:
    """What a file holds, and the nested keys that it has twice."""
    if path.suffix.lower() in YAML:
        return _yaml(path), []
    text = path.read_text()
    remembered = json.loads(text, object_pairs_hook=_remembering)
    return json.loads(text), list(_duplicates(remembered))


def _yaml(path: Path) -> Any:
    try:
        return ConfigParser.load_config_file(str(path))
    except Exception as error:  # PyYAML's own errors, whose package is MONAI's business
        raise ValueError(" ".join(str(error).split())) from error


def _remembering(pairs: list[tuple[str, Any]]) -> _Object:
    found = _Object(pairs)
    names = [name for name, _ in pairs]
    found.twice = tuple(name for name in found if names.count(name) > 1)
    return found


def _duplicates(content: Any) -> Iterator[str]:
    for path, value in [((), content), *walk(content)]:
        for key in getattr(value, "twice", ()):
            yield key_of((*path, key))


def _missing(path: Path) -> str:
    if "," in str(path):
        return (
            "does not exist; several files are one quoted list, such as "
            "\"['configs/train.json','configs/experiments/mine.json']\""
        )
    beside = path.parent.glob("*") if path.parent.is_dir() else ()
    close = close_to(path.name, (other.name for other in beside if other.is_file()))
    here = "" if path.is_absolute() else f" in {Path.cwd()}"
    return f"does not exist{here}{did_you_mean(close and str(path.parent / close))}"
