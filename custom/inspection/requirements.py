"""``requirements.txt``: what pip would install, and run, for a bundle."""

import re
from collections.abc import Collection, Iterator

from custom.inspection.findings import quoted

_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:(?:==|>=|<=|~=|<|>|!=)[\w.*,<>=!~ ]+)?$")


def canonical(name: str) -> str:
    """``funlib.geometry`` as ``funlib-geometry``: pip's own idea of one name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_faults(text: str, known: Collection[str]) -> Iterator[str]:
    """What is wrong with a list of packages, as ends of sentences.

    Args:
        text: of the file.
        known: names of the packages that the project needs.
    """
    names = {canonical(name) for name in known}
    for line in text.splitlines():
        plain = line.partition(" #")[0].strip()
        if not plain or plain.startswith("#"):
            continue
        match = _LINE.fullmatch(plain)
        if match is None:
            yield f"has a line that is no plain requirement: {quoted(plain)}"
        elif canonical(match[1]) not in names:
            yield f"would install {quoted(match[1])}, which this project does not need"
