"""What segmentation methods ask of their input and settings."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from custom.errors import InputError
from custom.segmentation.faces import face_channels
from custom.segmentation.fragments import Offset, linked_axes

Number = int | float | np.number
SMALL = ("neighbours", "background")
"""What becomes of small segments: they are given to a neighbour, or they are background."""


def check_affinities(
    affinities: NDArray[np.uint8], offsets: Sequence[Offset], mask: NDArray[np.bool_] | None
) -> NDArray[np.bool_]:
    """The mask, True everywhere when left out.

    Args:
        affinities: (K, D, H, W) uint8.
        offsets: K offsets.
        mask: (D, H, W), or none.

    Raises:
        ValueError: shapes or dtype do not match.
    """
    if affinities.ndim != 4 or len(affinities) != len(offsets) or affinities.dtype != np.uint8:
        raise ValueError(
            f"affinities must be (K, D, H, W) uint8 with one channel for each of the "
            f"{len(offsets)} offsets, got {affinities.dtype} {affinities.shape}"
        )
    shape = affinities.shape[1:]
    if mask is None:
        return np.ones(shape, dtype=np.bool_)
    if mask.shape != shape:
        raise ValueError(f"mask must have the shape of one channel {shape}, got {mask.shape}")
    return mask


def refuse_faceless(offsets: Sequence[Offset], method: str) -> None:
    """Refuse offsets that do not lead to the next voxel along every axis that they lead along.

    Raises:
        InputError: names the axis.
    """
    faces = face_channels(offsets)
    for axis, linked in enumerate(linked_axes(offsets)):
        if axis not in faces and (linked or axis > 0):
            raise InputError(
                f"{method} needs an affinity offset of one voxel along {'zyx'[axis]}, and "
                f"affinity_offsets {[list(offset) for offset in offsets]} has none: take the "
                f"mutex watershed, or train with such an offset."
            )


def refuse_range(method: str, **values: object) -> None:
    """Refuse settings that are no numbers from 0 to 1.

    Raises:
        InputError: names the first.
    """
    for name, value in values.items():
        if type(value) is bool or not isinstance(value, Number) or not 0 <= value <= 1:
            raise InputError(f"{name} of {method} must be from 0 to 1, got {value!r}.")


def refuse_small(small: str) -> None:
    """Refuse what is none of ``SMALL``.

    Raises:
        InputError: names both.
    """
    if small not in SMALL:
        raise InputError(f"small must be one of {', '.join(map(repr, SMALL))}, got {small!r}.")
