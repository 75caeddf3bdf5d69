"""Backbones from the Hugging Face hub: a local copy, or one sentence that says what to do."""

import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from custom.errors import InputError

CONFIGURATION = ["config.json", "preprocessor_config.json"]
SAFE_WEIGHTS = ["*.json", "*.safetensors"]
OLD_WEIGHTS = ["*.json", "pytorch_model*.bin"]

_GATED = re.compile(
    r"facebook/dinov3-(?P<kind>vit|convnext-)(?P<size>\w+?)(?:16(?P<plus>plus)?)?"
    r"-pretrain-(?P<data>lvd1689m|sat493m)$"
)
_SIZES = {"s": "small", "b": "base", "l": "large", "h": "huge", "7b": "7b"}


def download(repo_id: str, check: Callable[[Path], object]) -> Path:
    """Local copy of a hub repository: its configuration, then its weights.

    Args:
        repo_id: owner/name.
        check: called with the folder before the weights are downloaded; raises ``InputError`` where
            they would be of no use.

    Raises:
        InputError: gated, not there, or out of reach and not in the hub's cache.
    """
    stalled = _stalls(repo_id)
    folder = _snapshot(repo_id, CONFIGURATION, stalled)
    check(folder)
    _snapshot(repo_id, SAFE_WEIGHTS, stalled)
    if not any(folder.glob("model*.safetensors")):
        _snapshot(repo_id, OLD_WEIGHTS, stalled)
    return folder


def ungated_mirror(repo_id: str) -> str | None:
    """The copy that timm publishes of one of facebook's gated DINOv3 repositories."""
    match = _GATED.match(repo_id)
    if match is None:
        return None
    size, data = match["size"], match["data"]
    if match["kind"] == "convnext-":
        return f"timm/convnext_{size}.dinov3_{data}"
    if size not in _SIZES:
        return None
    plus = "_plus" if match["plus"] else ""
    return f"timm/vit_{_SIZES[size]}{plus}_patch16_dinov3.{data}"


def _snapshot(repo_id: str, patterns: list[str], stalled: bool) -> Path:
    """Download of the files that match, or the cached copy when the hub is out of reach."""
    try:
        # Unlike hf_hub_download, which retries for 20 s, this fails at once without a network.
        copy = huggingface_hub.snapshot_download(
            repo_id, allow_patterns=patterns, local_files_only=stalled
        )
        return Path(copy)
    except GatedRepoError as error:
        raise InputError(
            f"backbone {repo_id} is gated: accept its licence at https://huggingface.co/{repo_id} "
            f"and run `hf auth login`, or {_way_round(repo_id)}."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputError(
            f"backbone {repo_id} is neither a folder here nor on the Hugging Face hub, or it is "
            "private: check the spelling, or run `hf auth login` if it is private."
        ) from error
    except OSError as error:  # every way of being offline: no network, no answer, HF_HUB_OFFLINE
        obstacle = "does not answer" if stalled else _obstacle(error)
        raise InputError(
            f"backbone {repo_id} is not a folder here and cannot be downloaded, the Hugging Face "
            f"hub {obstacle}: connect this machine, or give a local folder with config.json and "
            "weights."
        ) from error


def _stalls(repo_id: str) -> bool:
    """Whether the hub takes a connection and says nothing, which a download would wait on for ever.

    Any other trouble is left to the download, which ends by itself.
    """
    constants = huggingface_hub.constants
    if constants.HF_HUB_OFFLINE:
        return False
    url = f"{constants.ENDPOINT}/api/models/{repo_id}"
    try:
        with urllib.request.urlopen(url, timeout=constants.HF_HUB_ETAG_TIMEOUT):
            return False
    except urllib.error.HTTPError as error:
        error.close()
        return False
    except urllib.error.URLError as error:
        return isinstance(error.reason, TimeoutError)
    except TimeoutError:
        return True
    except (OSError, ValueError, http.client.HTTPException):
        return False


def _way_round(repo_id: str) -> str:
    """What to do without a licence."""
    mirror = ungated_mirror(repo_id)
    folder = "give a local folder with config.json and weights"
    if mirror is None:
        return folder
    return f'take the same weights without gating, "backbone": "{mirror}", or {folder}'


def _obstacle(error: BaseException) -> str:
    """Why the hub did not deliver."""
    cause = error.__cause__ or error
    if isinstance(cause, OfflineModeIsEnabled):
        return "is out of reach because HF_HUB_OFFLINE is set"
    if isinstance(cause, HfHubHTTPError):
        return f"answers with status {cause.response.status_code} and is out of reach"
    return "is out of reach"
