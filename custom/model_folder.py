"""The files of one model, exchanged for the next so that a kill leaves no mixture."""

import hashlib
import json
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from custom.checkpoints import load_checkpoint, state_bytes
from custom.errors import InputError
from custom.files import replacing, write_atomically
from custom.json_fields import read_object

logger = logging.getLogger(__name__)

WEIGHTS, SAFE_WEIGHTS, DESCRIPTION = "model.pt", "model.safetensors", "model.json"
DIGESTS = "sha256"  # of the files that a description is of
PREVIOUS = "previous"  # the description of the model before, while files are exchanged


def write_model(
    folder: Path,
    weights: Mapping[str, Tensor],
    description: Mapping[str, Any],
    others: Mapping[str, bytes],
) -> None:
    """Exchange a folder's model for another.

    All is written before the first file takes its place, so a disk that fills leaves the model
    before. ``model.json`` is the first to do so and describes both models until all files have
    taken theirs: whenever a kill comes, it describes the ``model.pt`` beside it.

    Args:
        folder: of the model; created if missing.
        weights: contiguous, on the CPU, no two of the same memory.
        description: what ``model.json`` says; the files' digests are added.
        others: by name, what else belongs to the model.
    """
    files = {SAFE_WEIGHTS: save(dict(weights)), WEIGHTS: state_bytes(weights), **others}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    new = {**description, DIGESTS: digests}
    files[DESCRIPTION] = _as_json({**new, PREVIOUS: find_model(folder)})
    with ExitStack() as exchange:  # what was entered last takes its place first
        for name, content in files.items():
            exchange.enter_context(replacing(folder / name)).write_bytes(content)
    write_atomically(folder / DESCRIPTION, _as_json(new))


def read_model(folder: Path) -> dict[str, Any]:
    """The description of the ``model.pt`` in a folder.

    Raises:
        InputError: there is no model; its description is damaged, or of another ``model.pt``.
    """
    if not (folder / DESCRIPTION).exists() or not (folder / WEIGHTS).exists():
        raise InputError(
            f"model_dir '{folder}' holds no trained model ({WEIGHTS} and {DESCRIPTION}): run "
            f"training first, or name the folder that has them."
        )
    path = folder / DESCRIPTION
    found = read_object(path, f"model description '{path}'")
    digest = file_digest(folder / WEIGHTS)
    for described in (found, found.get(PREVIOUS)):
        # models of 0.1.0 have no digests
        if described is not None and described.get(DIGESTS, {}).get(WEIGHTS, digest) == digest:
            return {key: value for key, value in described.items() if key != PREVIOUS}
    raise InputError(
        f"model '{folder / WEIGHTS}' is not the one that {DESCRIPTION} beside it describes: put "
        f"back the one that belongs to it, or take up the training that made them."
    )


def complete_model(folder: Path) -> dict[str, Any] | None:
    """End an exchange of files that a kill has cut short, so that all files are of ``model.pt``.

    Returns:
        The model's description; None if there is no model, or none whose files belong together.
    """
    described = find_model(folder)
    if described is None:
        return None
    expected = described.get(DIGESTS, {}).get(SAFE_WEIGHTS)
    safe = folder / SAFE_WEIGHTS
    if expected and not (safe.exists() and file_digest(safe) == expected):
        with replacing(safe) as part:
            part.write_bytes(save(load_checkpoint(folder / WEIGHTS)))
    if PREVIOUS in read_object(folder / DESCRIPTION, DESCRIPTION):
        write_atomically(folder / DESCRIPTION, _as_json(described))
    return described


def change_description(folder: Path, changes: Mapping[str, Any]) -> None:
    """Change what is said of a model, all at once; its weights stay, and their digests.

    Args:
        folder: of the model.
        changes: keys of ``model.json`` and their new values.

    Raises:
        InputError: as ``read_model``.
    """
    complete_model(folder)
    write_atomically(folder / DESCRIPTION, _as_json({**read_model(folder), **changes}))


def find_model(folder: Path) -> dict[str, Any] | None:
    """As ``read_model``; None where that raises."""
    try:
        return read_model(folder)
    except InputError:
        return None


def weights_mark(description: Mapping[str, Any]) -> dict[str, str]:
    """Attribute of what a model has predicted: its weights; none for models without digests."""
    digest = description.get(DIGESTS, {}).get(WEIGHTS)
    return {} if digest is None else {"model_sha256": digest}


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _as_json(description: Mapping[str, Any]) -> bytes:
    return json.dumps(description, indent=2).encode()
