"""Where the axes of an array lie in space: axis names, voxel size, position, units."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from custom.errors import InputError

T = TypeVar("T")
Triple = tuple[float, float, float]

NANOMETERS = {
    **dict.fromkeys(("nm", "nanometer", "nanometers", "nanometre", "nanometres"), 1.0),
    **dict.fromkeys(("um", "\u00b5m", "\u03bcm", "micron", "microns"), 1000.0),
    **dict.fromkeys(("micrometer", "micrometers", "micrometre", "micrometres"), 1000.0),
    **dict.fromkeys(("a", "\u00e5", "angstrom", "angstroms", "\u00e5ngstr\u00f6m"), 0.1),
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres"), 1e6),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1e9),
}

WAY_OUT = "give voxel_size_nm in the datalist, for a mask that of its labels"


@dataclass(frozen=True)
class VoxelGrid:
    """What a file says about the axes of one of its arrays.

    Args:
        axes: one name per axis of the array, among z, y, x, c, t; z, y and x are there.
        scale: voxel size along z, y, x in ``units``; None where the file does not say.
        translation: position of the centre of voxel (0, 0, 0) along z, y, x, in ``units``; None
            where the file does not say.
        units: unit along z, y, x; None where the file does not say.
        corner: position of the corner of voxel (0, 0, 0), for formats that count from corners; in
            ``units``, and from the same point for all volumes that have one.
    """

    axes: tuple[str, ...]
    scale: Triple | None = None
    translation: Triple | None = None
    units: tuple[str | None, str | None, str | None] = ("nm", "nm", "nm")
    corner: Triple | None = None

    def in_nanometers(
        self, explicit: Sequence[float] | None, where: str
    ) -> tuple[Triple, Triple, Triple | None]:
        """Voxel size, position of voxel (0, 0, 0) and that of its corner in nm, zyx.

        An explicit voxel size replaces the file's; the position then keeps its number of voxels.
        A file that states no position lies at 0, with its corner as with its first voxel's centre:
        what it is compared with decides. One that states a centre has no corner.

        Args:
            explicit: voxel size in nm given by the user, or None.
            where: the field and the file, for messages.

        Raises:
            InputError: no voxel size anywhere, a size that is not positive, or an unknown unit.
        """
        if explicit is not None:
            size = _triple(explicit)
            _check_positive(size, f"voxel_size_nm of {where}")
            scale = size if self.scale is None else self.scale
            return size, *self._positions([e / s for e, s in zip(size, scale, strict=True)])
        if self.scale is None:
            raise InputError(f"{where} has no voxel size; {WAY_OUT}")
        _check_positive(self.scale, f"the voxel size in {where}")
        factors = [_nanometers(unit, where) for unit in self.units]
        return _scaled(self.scale, factors), *self._positions(factors)

    def _positions(self, factors: Sequence[float]) -> tuple[Triple, Triple | None]:
        """Position of the first voxel's centre, and of its corner, times these factors."""
        if self.translation is None:
            return (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)
        corner = None if self.corner is None else _scaled(self.corner, factors)
        return _scaled(self.translation, factors), corner


def zyx_order(axes: Sequence[str], shape: Sequence[int], where: str) -> tuple[int, int, int]:
    """Positions of z, y and x among the axes of an array whose other axes are singletons.

    Raises:
        InputError: the array is not 3D, or has several channels or time points.
    """
    if len(axes) != len(shape) or not {"z", "y", "x"} <= set(axes):
        raise InputError(
            f"{where} has the wrong number of axes: a volume has z, y and x, "
            f"this array has shape {tuple(shape)} (axes {', '.join(axes)})"
        )
    for name, size in zip(axes, shape, strict=True):
        if name not in ("z", "y", "x") and size != 1:
            raise InputError(
                f"{where} has {size} entries along axis {name} (shape {tuple(shape)}); "
                f"give one channel as its own 3D array"
            )
    return axes.index("z"), axes.index("y"), axes.index("x")


def pick_zyx(values: Sequence[T], names: Sequence[str]) -> tuple[T, T, T]:
    """The values of z, y and x, given those of all named axes."""
    if len(values) != len(names):
        raise ValueError(f"{list(values)} should have one value for each of {', '.join(names)}")
    return values[names.index("z")], values[names.index("y")], values[names.index("x")]


def default_axes(ndim: int) -> tuple[str, ...]:
    """z, y, x for three axes; for any other number, names that ``zyx_order`` refuses."""
    return ("z", "y", "x") if ndim == 3 else tuple(f"{axis}" for axis in range(ndim))


def _nanometers(unit: str | None, where: str) -> float:
    """Nanometres per unit."""
    if unit is None:
        raise InputError(f"{where} has a voxel size without unit; {WAY_OUT}")
    if unit.lower() not in NANOMETERS:
        raise InputError(
            f"{where} has the unknown unit '{unit}' (known: angstrom, nanometer, micrometer, "
            f"millimeter, meter); {WAY_OUT}"
        )
    return NANOMETERS[unit.lower()]


def _check_positive(size: Triple, what: str) -> None:
    if not all(0 < s < float("inf") for s in size):
        raise InputError(f"{what} must be three positive numbers (z, y, x), got {list(size)}")


def _scaled(values: Triple, factors: Sequence[float]) -> Triple:
    return _triple([v if f == 1 else v * f for v, f in zip(values, factors, strict=True)])


def _triple(values: Sequence[float]) -> Triple:
    if len(values) != 3:
        raise InputError(f"expected three numbers (z, y, x), got {list(values)}")
    z, y, x = (float(v) for v in values)
    return z, y, x
