"""What targets are made with, in training and in a cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from custom.channels import ChannelLayout, channel_layout
from custom.errors import InputError
from custom.json_fields import check_keys, not_negative, per_axis, whole_numbers

KEYS = (
    "affinity_offsets",
    "lsd_sigma_nm",
    "lsd_downsample",
    "boundary_power",
    "output_type",
    "dimensions",
)
"""Of the settings that the arrays of a cache follow from."""


@dataclass(frozen=True)
class TargetSettings:
    """Everything that a volume's targets follow from, beside its labels and their mask.

    Args:
        affinity_offsets: K offsets, voxels, zyx.
        lsd_sigma_nm: sigma of the LSDs in nm; None for affinities alone.
        lsd_downsample: as in ``local_shape_descriptors``, zyx; (1, 1, 1) without LSDs.
        boundary_power: weights are ``1 / (1 + distance) ** boundary_power``.
        dimensions: 3, or 2 for networks that see one section at a time.
    """

    affinity_offsets: tuple[tuple[int, int, int], ...]
    lsd_sigma_nm: float | None
    lsd_downsample: tuple[int, int, int]
    boundary_power: float
    dimensions: int = 3

    @property
    def output_type(self) -> str:
        """What the network predicts, as the config says it."""
        return "affinities_lsds" if self.lsd_sigma_nm else "affinities"

    @property
    def layout(self) -> ChannelLayout:
        """Channels of predictions and target tensors."""
        return channel_layout(
            self.output_type,
            self.affinity_offsets,
            self.lsd_sigma_nm,
            dimensions=self.dimensions,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values of ``KEYS``; ``parse_target_settings`` takes them back."""
        return {
            "affinity_offsets": [list(offset) for offset in self.affinity_offsets],
            "lsd_sigma_nm": self.lsd_sigma_nm,
            "lsd_downsample": list(self.lsd_downsample),
            "boundary_power": self.boundary_power,
            "output_type": self.output_type,
            "dimensions": self.dimensions,
        }

    def difference(self, other: "TargetSettings") -> list[str]:
        """What differs, each as "lsd_sigma_nm (80.0, not 40.0)": this one's, then the other's."""
        here, there = self.to_json(), other.to_json()
        return [f"{k} ({here[k]}, not {there[k]})" for k in here if here[k] != there[k]]


def target_settings(
    affinity_offsets: Sequence[Sequence[int]],
    lsd_sigma_nm: float | None,
    lsd_downsample: int | Sequence[int] = 1,
    boundary_power: float = 0.0,
    output_type: str | None = None,
    dimensions: int = 3,
) -> TargetSettings:
    """Settings from a config's values, checked.

    Args:
        affinity_offsets: list of [z, y, x], voxels, none of them zero.
        lsd_sigma_nm: positive, or None (0 too) for affinities alone; not looked at for
            "affinities".
        lsd_downsample: one whole number or three.
        boundary_power: not negative; 0 weighs all voxels alike.
        output_type: "affinities_lsds" or "affinities"; None: as ``lsd_sigma_nm`` says.
        dimensions: 3, or 2 for networks that see one section at a time.

    Raises:
        InputError: a value is of the wrong kind or out of range.
    """
    if not isinstance(affinity_offsets, Sequence) or not affinity_offsets:
        raise InputError(
            f"affinity_offsets must be a list of [z, y, x] in voxels, got {affinity_offsets!r}"
        )
    sigma = None if lsd_sigma_nm is None else not_negative(lsd_sigma_nm, "lsd_sigma_nm") or None
    wanted = output_type or ("affinities_lsds" if sigma else "affinities")
    layout = channel_layout(wanted, affinity_offsets, sigma, dimensions=dimensions)
    step = per_axis(lsd_downsample, "lsd_downsample") if layout.num_lsds else [1, 1, 1]
    return TargetSettings(
        tuple(_offset(offset) for offset in affinity_offsets),
        sigma if layout.num_lsds else None,
        (step[0], step[1], step[2]),
        not_negative(boundary_power, "boundary_power"),
        dimensions,
    )


def parse_target_settings(values: object) -> TargetSettings:
    """Settings from a JSON object with the keys of ``target_settings``.

    Raises:
        InputError: a key is unknown or missing, or as in ``target_settings``.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"targets must be null or a JSON object, got {values!r}")
    check_keys(values, KEYS, "targets")
    for key in KEYS[:2]:
        if key not in values:
            raise InputError(f"targets lacks '{key}'; give it the value that train.json has")
    return target_settings(**values)


def _offset(value: object) -> tuple[int, int, int]:
    """Three whole numbers, not all zero."""
    given = list(value) if isinstance(value, (list, tuple)) else value
    z, y, x = whole_numbers(given, 3, -(2**31), "each of affinity_offsets")
    if not (z or y or x):
        raise InputError("affinity_offsets holds [0, 0, 0]; a voxel is not its own neighbour")
    return z, y, x
