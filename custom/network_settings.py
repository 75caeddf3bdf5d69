"""The settings that make a network what it is, compared between a model and a run."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from monai.bundle import ReferenceResolver

NOT_COMPARED = ("checkpointing", "unet_dropout", "lsd_sigma_nm")
"""Settings that change nothing of what a trained network computes."""


def network_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """All plain values that ``network_def`` holds or refers to, by key.

    Weights of the same names and shapes may belong to different networks: instance and group
    normalisation have the same, and strides have none.

    Args:
        config: of a run, as written: references and expressions not resolved.

    Returns:
        Plain JSON values by nested key, such as ``network_def#network#_target_`` or ``unet_norm``;
        without expressions, and without ``NOT_COMPARED``. Empty without a ``network_def``.
    """
    plain = json.loads(json.dumps(dict(config), default=str))
    found: dict[str, Any] = {}
    seen, waiting = set(NOT_COMPARED), ["network_def"]
    while waiting:
        key = waiting.pop()
        if key in seen:
            continue
        seen.add(key)
        for leaf, value in _leaves(plain, key):
            if isinstance(value, str) and value.startswith(("$", "@")):
                references = ReferenceResolver.match_refs_pattern(value)
                waiting += [reference.replace("::", "#") for reference in references]
            else:
                found[leaf] = value
    return found


def network_difference(trained: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Settings of two networks that both name and that differ, each with both values.

    What only one of them names is not compared: it came with another version, and where it
    matters, the weights do not fit.

    Args:
        trained: from ``network_settings``.
        wanted: likewise.
    """
    return [
        f"{key} ({json.dumps(value)}, not {json.dumps(trained[key])})"
        for key, value in wanted.items()
        if key in trained and trained[key] != value
    ]


def _leaves(config: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Value of a nested key, if there is one; of a component, those of its arguments."""
    value = config
    for part in key.split("#"):
        if not isinstance(value, dict) or part not in value:
            return
        value = value[part]
    if not isinstance(value, dict) or "_target_" not in value:
        yield key, value
        return
    for name in value:
        if name != "_requires_":
            yield from _leaves(config, f"{key}#{name}")
