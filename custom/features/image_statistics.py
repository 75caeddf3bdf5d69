"""Mean and standard deviation of the images that a backbone was trained on."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from custom.errors import InputError

logger = logging.getLogger(__name__)

RGB = tuple[float, float, float]

IMAGENET_MEAN: RGB = (0.485, 0.456, 0.406)
IMAGENET_STD: RGB = (0.229, 0.224, 0.225)
SAT493M_MEAN: RGB = (0.430, 0.411, 0.296)  # DINOv3's satellite images
SAT493M_STD: RGB = (0.213, 0.156, 0.143)


def image_statistics(folder: Path, name: str) -> tuple[RGB, RGB]:
    """Mean and standard deviation per channel that a backbone wants its images normalised by.

    Those of ``preprocessor_config.json`` (Hugging Face) or of ``pretrained_cfg`` in ``config.json``
    (timm). Where neither says any: those of SAT-493M for a backbone with "sat493m" in its name,
    which is a guess and announced, else ImageNet's, which LVD-1689M shares.

    Args:
        folder: of the backbone.
        name: what the user called it, a hub id or folder.

    Raises:
        InputError: a file cannot be read, or what it says is not two times three numbers.
    """
    path, keys = folder / "preprocessor_config.json", ("image_mean", "image_std")
    stated = _read(path)
    if not any(stated.get(key) for key in keys):
        path, keys = folder / "config.json", ("mean", "std")
        stated = _read(path).get("pretrained_cfg") or {}
    default = _default(stated, keys, name)
    mean, std = (
        _three(stated.get(key) or value, path) for key, value in zip(keys, default, strict=True)
    )
    if min(std) <= 0:
        raise InputError(f"{path}: {keys[1]} must be three positive numbers, got {list(std)}.")
    return mean, std


def _default(stated: Mapping[str, Any], keys: tuple[str, str], name: str) -> tuple[RGB, RGB]:
    """What stands in for statistics that are not stated."""
    if "sat493m" not in name.lower():
        return IMAGENET_MEAN, IMAGENET_STD
    if not all(stated.get(key) for key in keys):
        logger.warning(
            "backbone %s states no mean and standard deviation of its images; its name says "
            "sat493m, so those of SAT-493M are used: mean %s, std %s",
            name,
            list(SAT493M_MEAN),
            list(SAT493M_STD),
        )
    return SAT493M_MEAN, SAT493M_STD


def _read(path: Path) -> dict[str, Any]:
    """Object in a JSON file, empty if there is no file."""
    try:
        content = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}).") from error
    return content if isinstance(content, dict) else {}


def _three(values: Any, path: Path) -> RGB:
    """Three numbers, as floats."""
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{path}: image mean and std must be three numbers each, got {values!r}."
        ) from error
    return red, green, blue
