"""Files fetched over HTTP: there whole and as expected, or not there."""

import hashlib
import re
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from custom.errors import InputError
from custom.files import write_atomically

TIMEOUT_S = 60.0  # of silence
MAKES_SENSE_LATER = {408, 425, 429}  # besides the server's own faults, 500 and above


def fetch(url: str, path: Path, sha256: str, timeout_s: float = TIMEOUT_S) -> bool:
    """Download a file, unless it is there already.

    Nothing lies at ``path`` before all of the file has come and was found to be the expected one;
    what lay there with another content is replaced.

    Args:
        url: address, http or https.
        path: where the file goes; its folder is created if missing. It has to fit into memory.
        sha256: of the expected content, hexadecimal.
        timeout_s: seconds without an answer after which the server counts as unreachable.

    Returns:
        Whether it had to be downloaded.

    Raises:
        InputError: not reachable, refused, broken off, or another content than expected.
    """
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
        return False
    content = _content(url, timeout_s)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise InputError(
            f"{url} holds another file than expected: its sha256 is {found}, not {sha256}; "
            "check the address, or try again in case it was damaged on the way"
        )
    write_atomically(path, content)
    return True


def read_checksums(path: Path) -> dict[str, str]:
    """Relative paths and their sha256, from a list as ``sha256sum`` writes it.

    Raises:
        InputError: there is no such list, or a line of it is something else.
    """
    if not path.is_file():
        raise InputError(f"there is no list of checksums {path}")
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](\S.*)", line)
        name = PurePosixPath(match[2]) if match else PurePosixPath("/")
        if match is None or name.is_absolute() or ".." in name.parts:
            raise InputError(
                f"line {number} of {path} is not a sha256, two spaces and a relative path: {line!r}"
            )
        found[str(name)] = match[1]
    return found


def _content(url: str, timeout_s: float) -> bytes:
    """All that the server answers."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise InputError(f"{url} is not an address that starts with http:// or https://")
    request = Request(url, headers={"User-Agent": "emseg"})
    try:
        with urlopen(request, timeout=timeout_s) as answer:
            content: bytes = answer.read()
            return content
    except HTTPError as error:
        error.close()
        later = error.code in MAKES_SENSE_LATER or error.code >= 500
        what = "the same command later goes on from here" if later else "check the address"
        raise InputError(f"{url} answered {error.code} {error.reason}; {what}") from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(
            f"{url} could not be downloaded ({reason!s:.200}); check the network, and the "
            "same command goes on from here"
        ) from error
