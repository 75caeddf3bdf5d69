"""What targets are made with, in training and in a cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from custom.channels import ChannelLayout, channel_layout
from custom.errors import InputError
from custom.json_fields import check_keys, hint, not_negative, per_axis, whole_numbers
from custom.targets.affinities import BACKGROUNDS
from custom.targets.boundary_settings import UNWEIGHTED, BoundarySettings, boundary_settings
from custom.targets.classes import ClassSettings, class_settings

Triple = tuple[int, int, int]

KEYS = (
    "affinity_offsets",
    "lsd_sigma_nm",
    "lsd_downsample",
    "output_type",
    "dimensions",
    "affinity_background",
    *UNWEIGHTED.to_json(),
)
"""Of the settings that the arrays of a cache follow from."""


@dataclass(frozen=True)
class TargetSettings:
    """Everything that a volume's targets follow from, beside its labels and their mask.

    Args:
        affinity_offsets: K offsets, voxels, zyx; none for classes.
        lsd_sigma_nm: sigma of the LSDs in nm; None for affinities alone and for classes.
        lsd_downsample: as in ``local_shape_descriptors``, zyx; (1, 1, 1) without LSDs.
        boundary: weights of voxels near boundaries.
        affinity_background: as in ``affinities``.
        mask_erosion: so many voxels (zyx) from the edge of what is annotated, labels do not count.
        dimensions: 3, or 2 for networks that see one section at a time.
        classes: what labels mean where classes are predicted; else None.
    """

    affinity_offsets: tuple[Triple, ...]
    lsd_sigma_nm: float | None
    lsd_downsample: Triple = (1, 1, 1)
    boundary: BoundarySettings = UNWEIGHTED
    affinity_background: str = "apart"
    mask_erosion: Triple = (0, 0, 0)
    dimensions: int = 3
    classes: ClassSettings | None = None

    @property
    def output_type(self) -> str:
        """What the network predicts, as the config says it."""
        if self.classes:
            return "labels"
        return "affinities_lsds" if self.lsd_sigma_nm else "affinities"

    @property
    def layout(self) -> ChannelLayout:
        """Channels of predictions and target tensors."""
        return channel_layout(
            self.output_type,
            self.affinity_offsets,
            self.lsd_sigma_nm,
            self.classes.num_classes if self.classes else 2,
            self.dimensions,
        )

    @property
    def told_apart(self) -> tuple[tuple[bool, int], ...]:
        """What targets know of every axis, zyx; only axes that they know the same of are alike."""
        across = (self.dimensions == 2, False, False)
        return tuple(zip(across, self.mask_erosion, strict=True))

    def to_json(self) -> dict[str, Any]:
        """Plain values of ``KEYS``; ``stored_settings`` takes them back."""
        return {
            "affinity_offsets": [list(offset) for offset in self.affinity_offsets],
            "lsd_sigma_nm": self.lsd_sigma_nm,
            "lsd_downsample": list(self.lsd_downsample),
            "output_type": self.output_type,
            "dimensions": self.dimensions,
            "affinity_background": self.affinity_background,
            **self.boundary.to_json(),
        }

    def difference(self, other: "TargetSettings") -> list[str]:
        """What differs in arrays of a cache, each as "lsd_sigma_nm (80.0, not 40.0)".

        First this one's value, then the other's. The mask's erosion is no part of a cache.
        """
        here, there = self.to_json(), other.to_json()
        return [f"{k} ({here[k]}, not {there[k]})" for k in here if here[k] != there[k]]

    def refuse_crop(self, crop_size: Sequence[int]) -> None:
        """Refuse crops in which a voxel and its neighbour at an offset are never seen together.

        Raises:
            InputError: names the offset.
        """
        for offset in self.affinity_offsets:
            if any(abs(o) >= size for o, size in zip(offset, crop_size, strict=True)):
                raise InputError(
                    f"affinity_offsets holds {list(offset)}, which leads out of every crop of "
                    f"{list(crop_size)} voxels, so the network never sees both; leave it out or "
                    "make crop_size larger"
                )


def target_settings(
    affinity_offsets: Sequence[Sequence[int]],
    lsd_sigma_nm: float | None,
    lsd_downsample: int | Sequence[int] = 1,
    boundary_power: float = 0.0,
    output_type: str | None = None,
    dimensions: int = 3,
    affinity_background: str = "apart",
    mask_erosion: int | Sequence[int] = 0,
    boundary_form: str = UNWEIGHTED.form,
    boundary_between: str = UNWEIGHTED.between,
    boundary_length_nm: float | None = None,
    boundary_peak: float = UNWEIGHTED.peak,
    boundary_sigma_nm: float = UNWEIGHTED.sigma_nm,
    boundary_reach_nm: float | None = UNWEIGHTED.reach_nm,
    num_classes: int = 2,
    ignore_label: int | None = None,
    class_of_labels: str = "ids",
) -> TargetSettings:
    """Settings from a config's values, which have these names, checked.

    Args:
        affinity_offsets: list of [z, y, x], voxels, none of them zero; not looked at for "labels".
        lsd_sigma_nm: positive, or None (0 too) for affinities alone; not looked at for
            "affinities" and "labels".
        lsd_downsample: one whole number or three.
        boundary_power: and the others of these names, see ``BoundarySettings``.
        output_type: "affinities_lsds", "affinities" or "labels"; None: as ``lsd_sigma_nm`` says.
        dimensions: 3, or 2 for networks that see one section at a time.
        affinity_background: "apart" or "joined".
        mask_erosion: voxels, one whole number (of sections: in their plane) or three.
        num_classes: and what follows, see ``ClassSettings``; looked at for "labels" alone.

    Raises:
        InputError: a value is of the wrong kind or out of range, or an offset leaves the section
            that ``dimensions`` 2 sees.
    """
    sigma = None if lsd_sigma_nm is None else not_negative(lsd_sigma_nm, "lsd_sigma_nm") or None
    output_type = output_type or ("affinities_lsds" if sigma else "affinities")
    offsets = () if output_type == "labels" else _offsets(affinity_offsets)
    layout = channel_layout(output_type, offsets, sigma, num_classes, dimensions)
    if affinity_background not in BACKGROUNDS:
        close = hint(str(affinity_background), BACKGROUNDS)
        raise InputError(f"affinity_background {affinity_background!r} is unknown{close}")
    given = TargetSettings(
        offsets,
        sigma if layout.num_lsds else None,
        _triple(per_axis(lsd_downsample, "lsd_downsample") if layout.num_lsds else [1, 1, 1]),
        boundary_settings(
            boundary_power,
            boundary_form,
            boundary_between,
            boundary_length_nm,
            boundary_peak,
            boundary_sigma_nm,
            boundary_reach_nm,
        ),
        affinity_background,
        _erosion(mask_erosion, dimensions),
        dimensions,
        class_settings(num_classes, ignore_label, class_of_labels) if layout.num_classes else None,
    )
    return _in_sections(given) if dimensions == 2 else given


def parse_target_settings(values: object) -> TargetSettings:
    """Settings of a cache's targets from a JSON object with ``KEYS``.

    Raises:
        InputError: a key is unknown or missing, or as in ``target_settings``; or classes, which
            are no more than the labels themselves.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"targets must be null or a JSON object, got {values!r}")
    check_keys(values, KEYS, "targets")
    for key in KEYS[:2]:
        if key not in values:
            raise InputError(f"targets lacks '{key}'; give it the value that train.json has")
    found = target_settings(**values)
    if found.classes:
        raise InputError(
            "targets with output_type 'labels' are the labels themselves, which a cache has; "
            "set targets to null and cached_targets to false"
        )
    return found


def stored_settings(values: Mapping[str, Any]) -> TargetSettings:
    """Settings as a cache's metadata have them, those of earlier versions too.

    Raises:
        InputError: as ``parse_target_settings``.
    """
    limited = "boundary_reach_nm"
    found = parse_target_settings({k: v for k, v in values.items() if k != limited or v})
    if found.boundary.power and not values.get(limited):
        return replace(found, boundary=replace(found.boundary, reach_nm=None))
    return found


def _in_sections(given: TargetSettings) -> TargetSettings:
    """The same for sections, among which nothing depends on another one."""
    for offset in given.affinity_offsets:
        if offset[0]:
            raise InputError(
                f"affinity_offsets holds {list(offset)}, which leaves its section: with dimensions "
                "2 the first number (z) of every offset must be 0"
            )
    if given.mask_erosion[0]:
        raise InputError(
            f"mask_erosion {list(given.mask_erosion)} leaves its section: with dimensions 2 the "
            "first number (z) must be 0"
        )
    return replace(given, lsd_downsample=(1, *given.lsd_downsample[1:]))


def _offsets(value: object) -> tuple[Triple, ...]:
    """Offsets, none of them zero."""
    if not isinstance(value, Sequence) or not value:
        raise InputError(f"affinity_offsets must be a list of [z, y, x] in voxels, got {value!r}")
    found = []
    for offset in value:
        given = list(offset) if isinstance(offset, (list, tuple)) else offset
        found.append(_triple(whole_numbers(given, 3, -(2**31), "each of affinity_offsets")))
        if not any(found[-1]):
            raise InputError("affinity_offsets holds [0, 0, 0]; a voxel is not its own neighbour")
    return tuple(found)


def _erosion(value: object, dimensions: int) -> Triple:
    """Voxels, zyx."""
    if isinstance(value, (list, tuple)):
        return _triple(whole_numbers(list(value), 3, 0, "mask_erosion"))
    if type(value) is not int or value < 0:
        raise InputError(
            f"mask_erosion must be one or three whole numbers from 0 on, got {value!r}"
        )
    return (value if dimensions == 3 else 0), value, value


def _triple(numbers: Sequence[int]) -> Triple:
    z, y, x = numbers
    return z, y, x
