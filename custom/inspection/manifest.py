"""``manifest.json``: size and sha256 of every file of a shared bundle."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

MANIFEST = "manifest.json"


def manifest_text(name: str, version: str, files: Mapping[str, tuple[int, str]]) -> str:
    """Content of a manifest.

    Args:
        name: of the bundle.
        version: of the bundle.
        files: size in bytes and sha256 of every other file, by path.
    """
    listed = {path: {"size": size, "sha256": sha} for path, (size, sha) in sorted(files.items())}
    return json.dumps({"name": name, "version": version, "files": listed}, indent=1) + "\n"


def manifest_faults(
    manifest: Any, files: Mapping[str, tuple[int, str]]
) -> Iterator[tuple[str, str]]:
    """Files that are not as their manifest says, each as path and end of a sentence.

    Args:
        manifest: its value as read from JSON.
        files: size in bytes and sha256 of every file that is there, by path.
    """
    listed = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(listed, dict) or not all(isinstance(v, dict) for v in listed.values()):
        yield MANIFEST, "is no list of files"
        return
    for path in sorted(listed.keys() | files.keys() - {MANIFEST}):
        if path not in files:
            yield path, "is in the manifest, but missing"
        elif path not in listed:
            yield path, "is not in the manifest"
        elif files[path] != (listed[path].get("size"), listed[path].get("sha256")):
            yield path, "was changed since the manifest was written"
