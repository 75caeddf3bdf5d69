"""What random changes draw from, checked when a configuration is read."""

import math
from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.transforms import MapTransform, RandomizableTransform

from custom.errors import InputError
from custom.json_fields import hint

Shape = tuple[int, int, int]

AXES = {"z": 0, "y": 1, "x": 2}


class RandomChanged(RandomizableTransform, MapTransform):
    """A change of a crop that happens with a probability; what all of them share.

    ``randomize`` draws everything, from ``self.R`` alone; ``apply`` does what was drawn.

    Args:
        keys: volumes (1, D, H, W) that are changed, all of the crop's box; none has a halo.
        prob: probability of the change.

    Raises:
        InputError: ``prob`` is not from 0 to 1; when applied, volumes differ in shape.
    """

    def __init__(self, keys: Sequence[str] | str, prob: float) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, probability(prob, self.named("prob")))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Draw, and apply what was drawn."""
        self.randomize(data)
        return self.apply(data) if self._do_transform else dict(data)

    @abstractmethod
    def apply(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The sample, changed as drawn last."""

    def named(self, argument: str) -> str:
        """An argument's name in messages."""
        return f"{argument} of {type(self).__name__}"

    def shape_in(self, data: Mapping[Hashable, Any]) -> Shape:
        """(D, H, W) of the crop."""
        shapes = {tuple(data[key].shape[1:]) for key in self.keys}
        if len(shapes) > 1:
            raise InputError(
                f"{self.named('keys')} must be volumes of one shape, got {sorted(shapes)}; give "
                "each its own transform"
            )
        depth, height, width = shapes.pop()
        return depth, height, width

    def whole(self, bounds: tuple[int, int]) -> int:
        """A whole number, both bounds included."""
        return int(self.R.randint(bounds[0], bounds[1] + 1))

    def uniform(self, bounds: tuple[float, float]) -> float:
        """A number between bounds."""
        return float(self.R.uniform(*bounds))


def probability(value: object, what: str) -> float:
    """A number from 0 to 1."""
    if isinstance(value, (int, float)) and type(value) is not bool and 0 <= value <= 1:
        return float(value)
    raise InputError(f"{what} must be a number from 0 to 1, got {value!r}")


def number_range(
    value: object, what: str, least: float = -math.inf, most: float = math.inf
) -> tuple[float, float]:
    """[low, high], or one number for both.

    Raises:
        InputError: they are no finite numbers, upside down or out of bounds. So below.
    """
    return _range(value, what, least, most, (int, float))


def whole_range(value: object, what: str, least: int) -> tuple[int, int]:
    """[low, high] of whole numbers, or one for both."""
    low, high = _range(value, what, least, math.inf, (int,))
    return int(low), int(high)


def axis_word(value: object, words: Sequence[str], what: str) -> str:
    """One of the words for an axis or for axes."""
    if value not in words:
        raise InputError(f"{what} is {value!r}{hint(str(value), words)}")
    return str(value)


def _range(
    value: object, what: str, least: float, most: float, kinds: tuple[type, ...]
) -> tuple[float, float]:
    bounds: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value, value]
    numeric = all(type(bound) in kinds and math.isfinite(bound) for bound in bounds)
    if numeric and len(bounds) == 2 and least <= bounds[0] <= bounds[1] <= most:
        return bounds[0], bounds[1]
    wanted = "whole numbers" if kinds == (int,) else "numbers"
    limits = f" from {least:g}" if math.isfinite(least) else ""
    limits += f" to {most:g}" if math.isfinite(most) else " on" if limits else ""
    raise InputError(f"{what} must be [low, high], {wanted}{limits}, low <= high, got {value!r}")
