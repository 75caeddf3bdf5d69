"""How losses weigh voxels by their distance to a boundary."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from custom.errors import InputError
from custom.json_fields import hint, not_negative
from custom.targets.boundary_weights import BETWEEN, FORMS

LARGEST = 65504.0
"""Weight that a cache's float16 holds."""


@dataclass(frozen=True)
class BoundarySettings:
    """Arguments of ``boundary_weights``, lengths in nm.

    What makes no difference has its default value, so that equal weights have equal settings.

    Args:
        power: 0 weighs all voxels alike.
        form: "inverse" or "gaussian".
        between: "all" or "instances".
        length_nm: unit of the inverse form; None for the smallest edge of a voxel.
        peak: of the Gaussian form.
        sigma_nm: of the Gaussian form.
        reach_nm: where the weights end to fall; None, of caches of earlier versions: nowhere.
    """

    power: float = 0.0
    form: str = "inverse"
    between: str = "all"
    length_nm: float | None = None
    peak: float = 5.0
    sigma_nm: float = 40.0
    reach_nm: float | None = 240.0

    def to_json(self) -> dict[str, Any]:
        """Plain values by their keys in a config, such as ``boundary_power``."""
        return {f"boundary_{name}": value for name, value in asdict(self).items()}


UNWEIGHTED = BoundarySettings()


def boundary_settings(
    power: float = UNWEIGHTED.power,
    form: str = UNWEIGHTED.form,
    between: str = UNWEIGHTED.between,
    length_nm: float | None = None,
    peak: float = UNWEIGHTED.peak,
    sigma_nm: float = UNWEIGHTED.sigma_nm,
    reach_nm: float | None = UNWEIGHTED.reach_nm,
) -> BoundarySettings:
    """Settings from a config's values, checked.

    Raises:
        InputError: a value is of the wrong kind or out of range, the power 0 leaves a form without
            effect, or weights are larger than ``LARGEST``.
    """
    for value, known, key in ((form, FORMS, "form"), (between, BETWEEN, "between")):
        if value not in known:
            raise InputError(f"boundary_{key} {value!r} is unknown{hint(str(value), known)}")
    given = BoundarySettings(
        not_negative(power, "boundary_power"),
        form,
        between,
        None if length_nm is None else _positive(length_nm, "boundary_length_nm"),
        _positive(peak, "boundary_peak"),
        _positive(sigma_nm, "boundary_sigma_nm"),
        _positive(reach_nm, "boundary_reach_nm"),
    )
    if given.form == "gaussian" and given.power * math.log(given.peak) > math.log(LARGEST):
        raise InputError(
            f"boundary_peak {given.peak:g} to the power of boundary_power {given.power:g} weighs "
            f"boundaries more than {LARGEST:g} times; lower one of them"
        )
    return _canonical(given)


def _canonical(given: BoundarySettings) -> BoundarySettings:
    """The same without what makes no difference."""
    if given.power == 0:
        if (given.form, given.between) != (UNWEIGHTED.form, UNWEIGHTED.between):
            raise InputError(
                f"boundary_form '{given.form}' between '{given.between}' has no effect with "
                "boundary_power 0; set boundary_power, 1 for the form as it is"
            )
        return UNWEIGHTED
    shared = given.power, given.form, given.between
    if given.form == "inverse":
        return BoundarySettings(*shared, length_nm=given.length_nm, reach_nm=given.reach_nm)
    return BoundarySettings(*shared, None, given.peak, given.sigma_nm, given.reach_nm)


def _positive(value: object, what: str) -> float:
    """A finite number above 0."""
    found = not_negative(value, what)
    if not found:
        raise InputError(f"{what} must be positive, got {value!r}")
    return found
