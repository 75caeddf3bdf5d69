"""Files and folders on this machine or at a URL: their names, and the small files in them."""

import os
import posixpath
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import tensorstore

from custom.errors import InputError

FORMATS = ("zarr", "n5", "precomputed")  # prefixes, as in Neuroglancer: precomputed://gs://...
REMOTE = ("s3", "gs", "http", "https")
TIMEOUT_S = 20.0  # for the small files of one folder
FEW_RETRIES = 3  # a wrong host should be told soon
MANY_RETRIES = 10  # a busy server should not end a run
# Of every request, so that a large read over a slow line takes what it takes, and one that stands
# still ends (after the retries). The user's own values win. TensorStore has no other way in.
PATIENCE = {
    "TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS": "20",
    "TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS": "20",
    "TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES": "100",  # per second, that long
}
CREDENTIAL_FILES = ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_PROFILE")


@dataclass(frozen=True)
class Location:
    """A file or folder: an absolute path, or the URL of one that TensorStore can read.

    S3 is asked with the credentials that the usual variables (``AWS_ACCESS_KEY_ID``,
    ``AWS_PROFILE``, ...) or ``~/.aws`` give, else anonymously; ``AWS_ENDPOINT_URL_S3`` or
    ``AWS_ENDPOINT_URL`` names another server than Amazon's, ``AWS_REGION`` the region.

    Args:
        url: without a slash at its end.
    """

    url: str

    @property
    def remote(self) -> bool:
        """Whether it is a URL, not a path."""
        return "://" in self.url

    @property
    def path(self) -> Path:
        """The path of what is not remote."""
        return Path(self.url)

    @property
    def parents(self) -> tuple["Location", ...]:
        """The folders around it, nearest first, up to the root, the bucket or the host."""
        if not self.remote:
            return tuple(Location(str(parent)) for parent in self.path.parents)
        root, key = self._split()
        parts = key.split("/") if key else []
        return tuple(Location("/".join([root, *parts[:n]])) for n in reversed(range(len(parts))))

    def __truediv__(self, name: str) -> "Location":
        if not self.remote:
            return Location(str(self.path / name))
        root, key = self._split()
        key = posixpath.normpath(posixpath.join("/", key, name)).strip("/")
        return Location(f"{root}/{key}".rstrip("/"))

    def identity(self) -> str:
        """The same text for the same place, however it was named."""
        return self.url if self.remote else str(self.path.resolve())

    def kvstore(self, retries: int = MANY_RETRIES) -> dict[str, Any]:
        """TensorStore's name of the folder; before the first remote one it is told ``PATIENCE``."""
        if not self.remote:
            return {"driver": "file", "path": f"{os.path.realpath(self.url)}/"}
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        scheme, host = self.url.split("/")[0].rstrip(":"), self.url.split("/")[2]
        key = self._split()[1]
        key = f"{key}/" if key else ""
        patience = {"max_retries": retries, "initial_delay": "200ms", "max_delay": "2s"}
        if scheme == "gs":
            context: dict[str, Any] = {"gcs_request_retries": patience}
            return {"driver": "gcs", "bucket": host, "path": key, "context": context}
        if scheme == "s3":
            context = {"s3_request_retries": patience, "aws_credentials": _aws_credentials()}
            return {"driver": "s3", "bucket": host, "path": key, "context": context} | _aws_server()
        context = {"http_request_retries": patience}
        base = f"{scheme}://{host}"
        return {"driver": "http", "base_url": base, "path": f"/{unquote(key)}", "context": context}

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        """The small files of the folder that are there.

        Servers that do not let everyone list a bucket answer "denied" for what is missing, so a
        denied file counts as missing where another one is there.

        Raises:
            PermissionError: none is there, and access to one is denied.
            OSError: the server does not answer, or the disk fails.
        """
        if not self.remote:
            files = {name: self.path / name for name in names}
            return {name: file.read_bytes() for name, file in files.items() if file.is_file()}
        found: dict[str, bytes] = {}
        denied: PermissionError | None = None
        deadline = time.time() + TIMEOUT_S
        for name, future in self._start_reads(names).items():
            try:
                result = future.result(deadline=deadline)
            except TimeoutError as error:
                raise TimeoutError(f"no answer within {TIMEOUT_S:g} seconds") from error
            except ValueError as error:
                denied = _denied_or_raise(error)
            else:
                if result.state == "value":
                    found[name] = result.value
        if denied is not None and not found:
            raise denied
        return found

    def is_file(self) -> bool:
        """Whether there is such a file, now.

        Raises:
            OSError: access is denied, the server does not answer, or the disk fails.
        """
        if not self.remote:
            return self.path.is_file()
        name = posixpath.basename(self.url)
        return name in self.parents[0].read([name])

    def _start_reads(self, names: Sequence[str]) -> dict[str, Any]:
        """A future for every file, all under way."""
        try:
            store = tensorstore.KvStore.open(self.kvstore(FEW_RETRIES)).result(timeout=TIMEOUT_S)
        except ValueError as error:
            raise OSError(short_reason(error)) from error
        return {name: store.read(name) for name in names}

    def _split(self) -> tuple[str, str]:
        """Scheme with bucket or host, and the rest."""
        scheme, _, rest = self.url.partition("://")
        host, _, key = rest.partition("/")
        return f"{scheme}://{host}", key


def parse_location(text: str, where: str) -> tuple[str | None, Location]:
    """The format that a user's path or URL names by a prefix, if any; and where it leads.

    Args:
        text: a path, ``file://``, ``s3://``, ``gs://``, ``http://`` or ``https://``; before it
            ``zarr://``, ``n5://`` or ``precomputed://``, where it should be no other format.
        where: the field and the path, for messages.

    Raises:
        InputError: an unknown kind of URL, or one with a query.
    """
    prefix, text = _prefix(text)
    scheme, separator, rest = text.partition("://")
    if not separator or scheme == "file":
        path = Path(rest if separator else text).expanduser().absolute()
        return prefix, Location(str(path))
    if scheme not in REMOTE:
        raise InputError(
            f"{where} has the unknown scheme '{scheme}://'; known are "
            f"{', '.join(REMOTE)} and file, and before them {', '.join(FORMATS)}"
        )
    parts = urlsplit(text) if scheme.startswith("http") else None
    if parts is not None and (parts.query or parts.fragment):
        raise InputError(f"{where} has a query or a fragment; give the folder's plain URL")
    if not rest.strip("/"):
        raise InputError(f"{where} names no bucket or host after '{scheme}://'")
    return prefix, Location(text.rstrip("/"))


def resolve(text: str, folder: Path) -> str:
    """A path relative to a folder made absolute; a URL stays as it is, as does its prefix."""
    prefix, rest = _prefix(text)
    if "://" in rest:
        return text
    path = str(folder / Path(rest).expanduser())
    return path if prefix is None else f"{prefix}://{path}"


def moved(text: str, folder: str | os.PathLike[str]) -> str:
    """An absolute path made relative to a folder; a URL stays as it is, as does its prefix."""
    prefix, rest = _prefix(text)
    if "://" in rest:
        return text
    path = os.path.relpath(rest, folder)
    return path if prefix is None else f"{prefix}://{path}"


def short_reason(error: Exception) -> str:
    """TensorStore's message without the details that it appends in brackets."""
    return re.sub(r"\s*\[[\w-]+='.*", "", str(error), flags=re.DOTALL) or "no reason given"


def _prefix(text: str) -> tuple[str | None, str]:
    """The prefix that names a format, and the rest."""
    first, separator, rest = text.partition("://")
    return (first, rest) if separator and first in FORMATS else (None, text)


def _denied_or_raise(error: ValueError) -> PermissionError:
    """What a failed read means, where it is only that access is denied."""
    if "PERMISSION_DENIED" in str(error) or "UNAUTHENTICATED" in str(error):
        return PermissionError(
            "access is denied (HTTP 403); is the path right, and are credentials needed?"
        )
    raise OSError(short_reason(error)) from error


def _aws_credentials() -> dict[str, str]:
    """Where TensorStore finds credentials; it does not look for them on the network."""
    if "AWS_ACCESS_KEY_ID" in os.environ:
        return {"type": "environment"}
    home = Path("~/.aws/credentials").expanduser()
    if any(name in os.environ for name in CREDENTIAL_FILES) or home.is_file():
        return {"type": "default", "profile": os.environ.get("AWS_PROFILE", "default")}
    return {"type": "anonymous"}


def _aws_server() -> dict[str, str]:
    """Server and region by the variables that all AWS tools read."""
    server = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if server:
        return {"endpoint": server, "aws_region": region or "us-east-1"}
    return {"aws_region": region} if region else {}
