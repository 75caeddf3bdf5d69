"""The settings of a run that differ from those of a configuration file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PLUMBING = ("_meta_", "imports", "bootstrap")
PLACES = ("bundle_root", "datalist", "dataset_dir", "cache_dir", "model_dir", "eval_dir")
ALWAYS = (
    "learning_rate",
    "batch_size",
    "epochs",
    "iterations_per_epoch",
    "crop_size",
    "seed",
    "use_raw",
    "token_channels",
    "unet_channels",
    "augmentation",
    "output_type",
)
"""Settings that runs are compared by, whether they differ or not."""

LONGEST = 120  # characters of a value


def changed_settings(config: Mapping[str, Any], defaults: str | Path) -> dict[str, Any]:
    """Settings that a configuration file does not have, or has with another value.

    Args:
        config: merged, as it was run.
        defaults: path of the file.

    Returns:
        Values by key, nested ones as "features#window", without the paths of ``PLACES``. A
        component that differs in its ``_target_`` is one value.
    """
    return dict(_different(_as_written(config), _as_written(json.loads(_text(defaults))), ""))


def compared_settings(config: Mapping[str, Any], defaults: str | Path) -> dict[str, str | float]:
    """``ALWAYS`` and what has changed, as numbers and texts for TensorBoard."""
    found = {key: config[key] for key in ALWAYS if config.get(key) is not None}
    found |= changed_settings(config, defaults)
    return {
        key: value if isinstance(value, int | float) else as_text(value)
        for key, value in found.items()
        if value is not None
    }


def as_text(value: object) -> str:
    """A value as one short line."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 4]} ..."


def _text(path: str | Path) -> str:
    return Path(path).read_text(encoding="utf-8")


def _as_written(config: Mapping[str, Any]) -> dict[str, Any]:
    """Plain JSON values with ``#`` in references, for which MONAI writes ``::``."""
    found: dict[str, Any] = json.loads(json.dumps(config, default=str).replace("::", "#"))
    return found


def _different(config: Mapping[str, Any], defaults: Any, above: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in config.items():
        name, default = f"{above}{key}", defaults.get(key)
        if (not above and key in (*PLUMBING, *PLACES)) or (key in defaults and value == default):
            continue
        both = isinstance(value, Mapping) and isinstance(default, Mapping)
        if both and value.get("_target_") == default.get("_target_"):
            found += _different(value, default, f"{name}#")
        else:
            found.append((name, value))
    return found
