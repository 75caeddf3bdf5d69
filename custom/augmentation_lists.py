"""The lists of random changes in a configuration, checked before MONAI builds them.

MONAI takes a probability of 1.5 for 1 and turns a range that is upside down round, in silence.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from custom.draws import number_range, probability
from custom.json_fields import not_negative

KEYS = ("augmentation", "augmentations")
RANGES = {
    "factors": -math.inf,
    "offsets": -math.inf,
    "gamma": 0.01,  # grey values to the power of 0 are all white, and below that infinite
    "sigma_x": 0.0,
    "sigma_y": 0.0,
    "sigma_z": 0.0,
}
"""Ranges that transforms draw from, and the least that they may begin with."""


def check_augmentation(config: Mapping[str, Any]) -> None:
    """Refuse what MONAI's random transforms would take without a word, or with a traceback.

    Args:
        config: of a run; looked at are ``augmentation`` and ``augmentations``. Values that refer
            to others or are expressions are left alone.

    Raises:
        InputError: a probability is not from 0 to 1, a range is upside
            down or begins below its least, or ``std`` is negative.
    """
    for transform in _transforms([config.get(key) for key in KEYS]):
        name = str(transform["_target_"]).rpartition(".")[2]
        for key, value in transform.items():
            if isinstance(value, str):
                continue
            if key == "prob":
                probability(value, f"prob of {name}")
            elif key == "std":
                not_negative(value, f"std of {name}")
            elif key in RANGES and isinstance(value, list):
                number_range(value, f"{key} of {name}", RANGES[key])


def _transforms(part: Any) -> Iterator[Mapping[str, Any]]:
    """Every object with a ``_target_``, at any depth."""
    if isinstance(part, Mapping) and "_target_" in part:
        yield part
    inner = part.values() if isinstance(part, Mapping) else part
    if isinstance(inner, str) or not hasattr(inner, "__iter__"):
        return
    for child in inner:
        yield from _transforms(child)
