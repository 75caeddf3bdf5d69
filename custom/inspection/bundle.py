"""Inspection of a whole bundle, as a zip or a folder."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from custom.inspection.configs import Leaf, inspect_configs, leaves, read_config
from custom.inspection.contents import UNREADABLE, Entry, opened_contents
from custom.inspection.downloads_list import download_faults
from custom.inspection.file_kinds import HEAD, kind_faults, picture_faults
from custom.inspection.findings import Findings, Report
from custom.inspection.hub_files import without_hub_files
from custom.inspection.logging_config import logging_faults
from custom.inspection.manifest import MANIFEST, manifest_faults
from custom.inspection.own_project import OwnProject
from custom.inspection.pickles import array_faults, pickle_faults, torch_faults
from custom.inspection.python_files import python_faults
from custom.inspection.requirements import requirement_faults

LARGEST_TEXT = 16 * 2**20  # bytes
LARGEST_HEADER = 100 * 2**20  # of safetensors, their own limit
BLOCK = 2**20
_VERSION = re.compile(rb'^__version__ = "([\w.+-]+)"', re.MULTILINE)


def inspect_bundle(path: str | Path, own: OwnProject) -> Report:
    """Look through a bundle without importing, loading, extracting or running anything of it.

    Args:
        path: of a zip, or of a folder.
        own: the project whose code and packages are trusted.

    Raises:
        InputError: it cannot be read.
    """
    path, findings = Path(path), Findings()
    with opened_contents(path, findings) as entries:
        ours = without_hub_files(entries)
        digests = _digests(ours, findings)
        readable = [entry for entry in ours if entry.path in digests]
        configs = [leaf for entry in readable for leaf in _inspected(entry, digests, own, findings)]
        inspect_configs(configs, own, findings)
        _check_manifest(readable, digests, findings)
        _compare_code(readable, digests, own, findings)
        return Report(path.name, len(entries), sum(e.size for e in entries), findings)


def _digests(entries: Sequence[Entry], findings: Findings) -> dict[str, tuple[int, str]]:
    """Size and sha256 of every file that can be read."""
    found = {}
    for entry in entries:
        try:
            found[entry.path] = _digest(entry)
        except UNREADABLE as error:
            findings.danger(entry.path, f"cannot be read ({type(error).__name__}: {error})")
    return found


def _digest(entry: Entry) -> tuple[int, str]:
    size, sha = 0, hashlib.sha256()
    with entry.opened() as file:
        while block := file.read(BLOCK):
            size += len(block)
            sha.update(block)
    return size, sha.hexdigest()


def _inspected(
    entry: Entry, digests: dict[str, tuple[int, str]], own: OwnProject, findings: Findings
) -> list[Leaf]:
    """Note down what is dangerous about one file; the values of it if it is a configuration."""
    head = entry.head(HEAD)
    for fault in kind_faults(entry.path, entry.executable, head):
        findings.danger(entry.path, fault)
    _inspect_binary(entry, head, findings)
    suffix = PurePosixPath(entry.path).suffix.lower()
    if suffix not in (".json", ".py", ".conf", ".yml", ".txt", ".svg"):
        return []
    if entry.size > LARGEST_TEXT:
        findings.danger(entry.path, f"is too large to be judged ({entry.size} bytes)")
        return []
    content = entry.content()
    if suffix == ".json":
        return _config_leaves(entry.path, content, findings)
    if suffix == ".py":
        findings.executes("python", entry.path, "Python")
        faults = python_faults(entry.path, content, digests[entry.path][1], own)
    else:
        faults = _text_faults(entry.path, content, own)
    for fault in faults:
        findings.danger(entry.path, fault)
    return []


def _text_faults(path: str, content: bytes, own: OwnProject) -> Any:
    """Faults of a text file, by what it is for."""
    text, name = content.decode("utf-8", "replace"), PurePosixPath(path).name
    if name.endswith(".conf"):
        return logging_faults(text)
    if name == "large_files.yml":
        return download_faults(text)
    if name.endswith(".yml"):
        return ["is YAML; only JSON is judged"]
    if name == "requirements.txt":
        return requirement_faults(text, own.packages)
    return picture_faults(content) if name.lower().endswith(".svg") else []


def _config_leaves(path: str, content: bytes, findings: Findings) -> list[Leaf]:
    try:
        return list(leaves(path, read_config(content)))
    except (ValueError, RecursionError) as error:
        findings.danger(path, f"is no JSON that can be judged: {error}")
        return []


def _inspect_binary(entry: Entry, head: bytes, findings: Findings) -> None:
    """Weights, arrays, and whatever looks like a pickle or an archive."""
    suffix = PurePosixPath(entry.path).suffix.lower()
    with entry.opened() as file:
        if suffix in (".pt", ".pth", ".ckpt", ".bin") or head.startswith(b"PK"):
            findings.executes("pickle", entry.path, "weights, as torch saves them")
            faults = list(torch_faults(file))
        elif suffix in (".pkl", ".pickle", ".joblib") or _like_a_pickle(head):
            findings.executes("pickle", entry.path, "a pickle")
            faults = ["is a pickle", *pickle_faults(file)]
        elif suffix == ".npy" or head.startswith(b"\x93NUMPY"):
            faults = list(array_faults(file))
        elif suffix == ".safetensors":
            faults = _safetensors_faults(file.read(8), entry.size, file)
        else:
            return
    for fault in faults:
        findings.danger(entry.path, fault)


def _like_a_pickle(head: bytes) -> bool:
    return head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")


def _safetensors_faults(length: bytes, size: int, file: Any) -> list[str]:
    """A header of JSON, then plain numbers."""
    header = int.from_bytes(length, "little")
    if len(length) < 8 or not 0 < header <= min(size - 8, LARGEST_HEADER):
        return ["is no safetensors file"]
    try:
        json.loads(file.read(header))
    except (ValueError, RecursionError):
        return ["is no safetensors file"]
    return []


def _check_manifest(
    entries: Sequence[Entry], digests: dict[str, tuple[int, str]], findings: Findings
) -> None:
    found = next((entry for entry in entries if entry.path == MANIFEST), None)
    if found is None:
        findings.danger("", f"there is no {MANIFEST}: what was added or changed cannot be told")
        return
    try:
        manifest = read_config(found.content())
    except ValueError:
        return  # noted down with the other JSON
    for path, fault in manifest_faults(manifest, digests):
        findings.danger(path, fault)


def _compare_code(
    entries: Sequence[Entry],
    digests: dict[str, tuple[int, str]],
    own: OwnProject,
    findings: Findings,
) -> None:
    """Say how much of the code is the project's own, and of which version it is."""
    same = sum(digests.get(path, (0, ""))[1] == sha for path, sha in own.digests.items())
    all_of_them = f"{same} of {len(own.digests)} files of custom/ and scripts/"
    findings.note("", f"{all_of_them} are this project's own")
    first = next((entry for entry in entries if entry.path == "custom/__init__.py"), None)
    version = _VERSION.search(first.content()) if first and first.size < LARGEST_TEXT else None
    if version and version[1].decode() != own.version:
        findings.note(
            "",
            f"its code is version {version[1].decode()}, this project's {own.version}: inspect it "
            f"with a checkout of its version",
        )
