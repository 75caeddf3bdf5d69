"""Normalisation layers by name and options, checked."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from custom.errors import InputError
from custom.json_fields import check_keys, hint, not_negative, whole_number
from custom.networks.batch_renorm import BatchRenorm

Norm = str | Mapping[str, Any]
"""A name, or ``{"name": ..., option: value}``."""

OPTIONS = {
    "batch": ("momentum", "eps"),
    "batch_renorm": ("momentum", "eps", "rmax", "dmax", "warmup_steps"),
    "group": ("groups", "eps"),
    "instance": ("eps",),
}
NORMS = tuple(OPTIONS)


def normalization(norm: Norm, channels: int, dimensions: int = 3) -> nn.Module:
    """A normalisation layer, its weights and biases learned.

    Args:
        norm: "group" (8 groups, or the most of 4, 2 and 1 that divide the channels), "instance",
            "batch" or "batch_renorm", or an object with that ``name`` and options: ``eps``; of both
            batch norms ``momentum``; of group ``groups``; of batch_renorm those of ``BatchRenorm``.
        channels: of the input.
        dimensions: 3 for inputs (B, C, D, H, W), 2 for (B, C, H, W).

    Raises:
        InputError: unknown name or option, a value out of range, groups that do not divide the
            channels.
    """
    name, options = _parsed(norm)
    if name == "batch":
        return (nn.BatchNorm2d if dimensions == 2 else nn.BatchNorm3d)(channels, **options)
    if name == "batch_renorm":
        return BatchRenorm(channels, **options)
    if name == "instance":
        kind = nn.InstanceNorm2d if dimensions == 2 else nn.InstanceNorm3d
        return kind(channels, affine=True, **options)
    groups = options.pop("groups", None)
    if groups is None:
        groups = next(g for g in (8, 4, 2, 1) if channels % g == 0)
    if channels % groups:
        raise InputError(
            f"unet_norm's groups must divide the channels of every level, {groups} does not "
            f"divide {channels}."
        )
    return nn.GroupNorm(groups, channels, **options)


def _parsed(norm: object) -> tuple[str, dict[str, Any]]:
    """Name and checked options."""
    given = dict(norm) if isinstance(norm, Mapping) else {"name": norm}
    name = given.pop("name", None)
    if not isinstance(name, str) or name not in OPTIONS:
        close = hint(name, NORMS) if isinstance(name, str) else f"; known are {', '.join(NORMS)}"
        raise InputError(
            f"unet_norm must be a norm's name or an object with one, got {norm!r}{close}"
        )
    check_keys(given, OPTIONS[name], f"unet_norm '{name}'")
    return name, {key: CHECKS[key](value, f"unet_norm's {key}") for key, value in given.items()}


def _share(value: object, what: str) -> float:
    """A number above 0 and at most 1."""
    found = not_negative(value, what)
    if not 0 < found <= 1:
        raise InputError(f"{what} must be above 0 and at most 1, got {value!r}.")
    return found


def _from_one(value: object, what: str) -> float:
    """A number from 1 on."""
    found = not_negative(value, what)
    if found < 1:
        raise InputError(f"{what} must be a number from 1 on, got {value!r}.")
    return found


CHECKS: Mapping[str, Callable[[object, str], Any]] = {
    "momentum": _share,
    "eps": _share,
    "groups": lambda value, what: whole_number(value, 1, what),
    "rmax": _from_one,
    "dmax": not_negative,
    "warmup_steps": lambda value, what: whole_number(value, 0, what),
}
