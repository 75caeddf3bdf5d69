"""A shared zip's way to the Hugging Face hub, through MONAI."""

import re
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import huggingface_hub
from monai.bundle import push_to_hf_hub

from custom.errors import InputError
from custom.inspection.bundle import inspect_bundle
from custom.inspection.own_project import OwnProject

IGNORED = ("**/__pycache__/**", "*.pyc", "eval/**", "output/**", "cache/**", "models/last.pt")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def push_bundle(path: Path, repository: str, own: OwnProject, private: bool = True) -> str:
    """Upload the files of a shared zip, and nothing else, to a hub.

    Args:
        path: of a zip that ``share_bundle`` wrote.
        repository: owner/name; it is made where there is none.
        own: the project, to inspect the zip before.
        private: whether a repository that is made is.

    Returns:
        Where they are now.

    Raises:
        InputError: there is no such zip, or it is not as it was shared; ``repository`` is no such
            name; nobody is logged in; the hub refuses or cannot be reached.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise InputError(f"{repository!r} is no repository: write <owner>/<name>")
    if not path.is_file():
        raise InputError(f"there is no '{path}': run share first, or give its --out")
    if not inspect_bundle(path, own).safe:
        raise InputError(f"'{path}' is not as share would write it now: look with inspect")
    if huggingface_hub.get_token() is None:
        raise InputError("nobody is logged in to the hub: run `hf auth login`, or set HF_TOKEN")
    with TemporaryDirectory() as folder:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
        return _pushed(folder, path.stem, repository, private)


def _pushed(folder: str, name: str, repository: str, private: bool) -> str:
    try:
        place = push_to_hf_hub(
            repo=repository,
            name=name,
            bundle_dir=folder,
            private=private,
            ignore_patterns=list(IGNORED),
        )
    except Exception as error:  # the hub's client raises whatever its HTTP library does
        reason = str(error).strip().splitlines()
        raise InputError(
            f"{repository} was not uploaded ({type(error).__name__}: "
            f"{reason[0] if reason else 'no reason given'}): check the network, the repository's "
            f"name and that your token may write, and push again"
        ) from error
    return str(place)
