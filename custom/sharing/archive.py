"""Zips that are equal to the byte whenever their files are."""

import hashlib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from custom.files import replacing
from custom.inspection.manifest import MANIFEST, manifest_text

BEGINNING_OF_TIME = (1980, 1, 1, 0, 0, 0)  # of a zip
PLAIN_FILE = 0o100644


def write_archive(
    path: Path,
    name: str,
    version: str,
    files: Mapping[str, bytes],
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write files and their manifest into a zip, below one folder.

    Nothing is compressed, so that the bytes depend on no version of a compressor; weights would
    hardly become smaller.

    Args:
        path: of the zip; an older one is replaced.
        name: of the folder.
        version: of the bundle, for the manifest.
        files: contents by path inside the folder.
        check: called with the finished zip, before it gets its name; what it raises prevents that.
    """
    digests = {key: (len(c), hashlib.sha256(c).hexdigest()) for key, c in files.items()}
    manifest = manifest_text(name, version, digests).encode()
    with replacing(path) as part:
        _write(part, name, {**files, MANIFEST: manifest})
        if check is not None:
            check(part)


def _write(path: Path, name: str, files: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for key, content in sorted(files.items()):
            info = zipfile.ZipInfo(f"{name}/{key}", BEGINNING_OF_TIME)
            info.external_attr = PLAIN_FILE << 16
            info.create_system = 3  # Unix, wherever this runs
            archive.writestr(info, content)
