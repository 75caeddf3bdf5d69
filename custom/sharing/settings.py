"""Configurations of a shared bundle: the shipped ones with the settings of the training."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from custom.config_check.findings import mistakes
from custom.config_check.key_tree import path_of
from custom.config_check.layers import merged
from custom.config_check.new_keys import unused_keys
from custom.config_check.references import Resolved
from custom.config_check.sources import Source
from custom.sharing.machine_paths import last_name, without_machine_paths

OF_A_MACHINE = (
    "bundle_root bootstrap cache_dir compile dataset_dir datalist device eval_dir imports "
    "initialize model_dir num_workers output_dir pool_gib preflight preprocessing run section "
    "sections source training inference windows_at_once workers"
)
"""Keys that say where and how a run works, not what it computes."""

_REFERENCE = re.compile(r"@\w+(?:::\w+)+")
_KEPT = frozenset(OF_A_MACHINE.split())


def trained_settings(
    config: Mapping[str, Any], shipped: Mapping[str, Any], several_gpus: Mapping[str, Any]
) -> dict[str, Any]:
    """What a training was told, without paths, and without what several GPUs need beside.

    Args:
        config: of the training, as ``model.json`` has it.
        shipped: content of ``train.json``.
        several_gpus: content of the overlay ``multi_gpu_train.json``, empty without one.

    Returns:
        Settings by key; a backbone or upsampler that was a folder is only the folder's name.
    """
    kept = {key: value for key, value in config.items() if key not in _KEPT and key != "_meta_"}
    for key in several_gpus:
        _put_back(kept, shipped, re.split("::|#", key.removeprefix("+")))
    found: dict[str, Any] = without_machine_paths(_with_short_separators(kept))
    backbone = config.get("backbone")
    if isinstance(backbone, str) and Path(backbone).is_dir():
        found["backbone"] = last_name(backbone)
    return found


def _put_back(config: dict[str, Any], shipped: Mapping[str, Any], key: list[str]) -> None:
    """Give a nested key of ``config`` the shipped value; without one, it goes."""
    first, *rest = key
    if rest and isinstance(config.get(first), dict) and isinstance(shipped.get(first), dict):
        config[first] = dict(config[first])
        _put_back(config[first], shipped[first], rest)
    elif first in shipped and first not in _KEPT:
        config[first] = shipped[first]
    else:
        config.pop(first, None)


def with_settings(shipped: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, Any]:
    """A shipped configuration whose keys have the values of a training, where it has them.

    Keys that nothing refers to any more are left out: a run would take them for mistakes.
    """
    config = {key: trained.get(key, value) for key, value in shipped.items()}
    return _without(config, [path_of(key) for key in _unused(config) - _unused(shipped)])


def _unused(config: Mapping[str, Any]) -> set[str]:
    """Nested keys that nothing refers to."""
    resolved = Resolved(merged([Source("", config)]))
    return {found.key for found in mistakes(list(unused_keys(resolved, None)))}


def _without(config: Mapping[str, Any], paths: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The same without some nested keys."""
    found = {}
    for key, value in config.items():
        inner = [path[1:] for path in paths if path[0] == key]
        if [] not in [list(path) for path in inner]:
            found[key] = _without(value, inner) if inner else value
    return found


def changed_settings(shipped: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of a training that differ from the shipped ones, by nested key."""
    before, now = dict(_leaves(shipped)), dict(_leaves(trained))
    return {
        key: value
        for key, value in now.items()
        if before.get(key, ...) != value and key.split("#")[0] in shipped
    }


def _leaves(config: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Values that are no dictionaries, each with its nested key."""
    if isinstance(config, Mapping) and config:
        for name, value in config.items():
            yield from _leaves(value, f"{key}#{name}" if key else name)
    else:
        yield key, config


def _with_short_separators(value: Any) -> Any:
    """MONAI writes ``@a::b`` for ``@a#b``; the shipped configurations have the latter."""
    text = json.dumps(value)
    return json.loads(_REFERENCE.sub(lambda found: found[0].replace("::", "#"), text))
