"""Files by name and first bytes: what has no business in a bundle."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from custom.inspection.allow_lists import NAMES, SUFFIXES

RUN_BY_THEMSELVES = {
    "sitecustomize.py": "Python runs it at every start",
    "usercustomize.py": "Python runs it at every start",
    "conftest.py": "pytest runs it",
    "setup.py": "pip runs it",
    "hubconf.py": "torch.hub runs it",
}
DANGEROUS = {
    ".pth": "Python runs the lines of such files in site-packages",
    ".pyc": "compiled Python runs instead of what one reads",
    ".ipynb": "notebooks run code",
    ".so": "is a compiled program",
    ".pyd": "is a compiled program",
    ".dll": "is a compiled program",
    ".dylib": "is a compiled program",
    ".exe": "is a program",
    ".sh": "is a program",
    ".bat": "is a program",
    ".ps1": "is a program",
    ".pkl": "is a pickle",
    ".pickle": "is a pickle",
    ".joblib": "is a pickle",
    ".ts": "is TorchScript, a program that cannot be judged",
    ".yaml": "is YAML; only JSON is judged",
    ".html": "may run scripts in a browser",
}
MAGIC = {
    b"\x7fELF": "is a compiled program",
    b"MZ": "is a Windows program",
    b"#!": "is a script",
    b"\xcf\xfa\xed\xfe": "is a compiled program",
    b"\xca\xfe\xba\xbe": "is a compiled program",
    b"\x1f\x8b": "is an archive, which hides its files",
    b"BZh": "is an archive, which hides its files",
    b"\xfd7zXZ": "is an archive, which hides its files",
    b"7z\xbc\xaf": "is an archive, which hides its files",
}
HEAD = 512  # bytes that are looked at
_SCRIPT_IN_PICTURE = re.compile(rb"<script|script:|<foreignobject|<iframe|\bon\w+\s*=|<!entity")


def kind_faults(path: str, executable: bool, head: bytes) -> Iterator[str]:
    """What is dangerous about a file by its name, its mode and its first bytes.

    Args:
        path: inside the bundle.
        executable: whether the file system would run it.
        head: its first ``HEAD`` bytes.
    """
    name = PurePosixPath(path)
    suffix = name.suffix.lower()
    known = suffix in SUFFIXES or name.name in NAMES
    if executable:
        yield "has the permission to be run"
    if name.name.lower() in RUN_BY_THEMSELVES:
        yield f"must not be here: {RUN_BY_THEMSELVES[name.name.lower()]}"
    if any(part.startswith(".") for part in name.parts):
        yield "is hidden"
    if suffix in DANGEROUS and not (suffix == ".pth" and head[:2] in (b"PK", b"\x80\x02")):
        yield DANGEROUS[suffix]
    elif not known:
        yield f"is of a kind that no bundle needs ({suffix or 'no suffix'})"
    for magic, what in MAGIC.items():
        if head.startswith(magic) and not (magic == b"MZ" and suffix in (".md", ".txt")):
            yield what


def picture_faults(content: bytes) -> Iterator[str]:
    """Scripts in an SVG, which a browser would run."""
    if _SCRIPT_IN_PICTURE.search(content.lower()):
        yield "is a picture with a script in it"
