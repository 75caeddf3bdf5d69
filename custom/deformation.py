"""Smooth random deformations of a volume: where each voxel of the deformed volume comes from."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from funlib.geometry import Roi
from monai.transforms import Randomizable
from numpy.typing import NDArray

from custom.errors import InputError
from custom.json_fields import check_keys, flag, mapping, not_negative, numbers
from custom.voxel_grid import Triple
from custom.working_grid import filtered

LARGEST_DISPLACEMENT = 0.4  # of the spacing: beyond 1 / 2.479 a cubic B-spline can fold
ZOOMS = (0.1, 10.0)  # with 0.1, a crop reads 1000 times its own voxels
DEFAULTS: Mapping[str, Any] = {
    "elastic_nm": 0.0,
    "spacing_nm": None,
    "zoom": [1.0, 1.0],
    "zoom_per_axis": False,
    "in_plane": False,
    "prob": 1.0,
}


@dataclass(frozen=True)
class Deformation:
    """Zoom about a centre, and a smooth elastic displacement.

    Voxel ``p`` of the deformed volume shows what is at ``p + (p - centre) * (1 / zoom - 1) + u(p)``
    of the original. ``u`` is the cubic B-spline of control points ``spacing_nm`` apart in all
    directions, one of them at the centre; beyond the last of them they begin anew, so that ``u`` is
    smooth everywhere and no larger than the largest control point.

    Args:
        voxel_size_nm: of the volume, zyx.
        centre: that stays in place but for the displacement; voxels from the centre of voxel 0.
        zoom: zyx; 2 makes things twice as large.
        spacing_nm: of the control points.
        displacements_nm: (3, nz, ny, nx) displacement along z, y and x at the control points.

    Raises:
        ValueError: a zoom or the spacing is not positive, or the displacements have another form or
            are so large that the volume may fold.

    Source:
        Choi and Lee 2000, Graphical Models 62(6): a uniform cubic B-spline whose control points
        move by less than 1 / 2.479 of their spacing along every axis does not fold.
    """

    voxel_size_nm: Triple
    centre: Triple
    zoom: Triple
    spacing_nm: float
    displacements_nm: NDArray[np.float64]

    def __post_init__(self) -> None:
        if not all(0 < z < math.inf for z in (*self.zoom, self.spacing_nm)):
            raise ValueError(
                f"zoom and spacing must be positive, got {self.zoom} and {self.spacing_nm}"
            )
        if self.displacements_nm.ndim != 4 or len(self.displacements_nm) != 3:
            raise ValueError(f"displacements must be (3, nz, ny, nx), got {self._shape}")
        moved = np.abs(self.displacements_nm).max(axis=(1, 2, 3)) * self.zoom
        if not (moved <= LARGEST_DISPLACEMENT * self.spacing_nm).all():
            raise ValueError(
                f"displacements times zoom of up to {moved.max()} nm may fold a volume whose "
                f"control points are {self.spacing_nm} nm apart"
            )

    @property
    def _shape(self) -> tuple[int, ...]:
        return self.displacements_nm.shape

    def shifts(self, places: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """How far away from each place of a grid that place's value is found.

        The same for a place whatever others are asked for, to the last bit.

        Args:
            places: (D,), (H,) and (W,) along z, y and x, voxels from the centre of voxel 0.

        Returns:
            (3, D, H, W) along z, y and x, voxels.
        """
        taps = [self._taps(axis, along) for axis, along in enumerate(places)]
        result = np.empty((3, *(len(along) for along in places)))
        for axis, along in enumerate(places):
            shape = [-1 if axis == other else 1 for other in range(3)]
            zoomed = (along - self.centre[axis]) * (1 / self.zoom[axis] - 1)
            result[axis] = zoomed.reshape(shape)
            displacements = self.displacements_nm[axis]
            if displacements.any():
                for other in (2, 1, 0):  # z last: its slices are whole in memory
                    displacements = filtered(displacements, other, *taps[other])
                result[axis] += displacements / self.voxel_size_nm[axis]
        return result

    def _taps(
        self, axis: int, along: NDArray[np.float64]
    ) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """The four control points around every place along an axis, and their weights, (n, 4)."""
        position = (along - self.centre[axis]) * (self.voxel_size_nm[axis] / self.spacing_nm)
        first = np.floor(position)
        t = position - first
        weights = [
            (1 - t) ** 3,
            3 * t**3 - 6 * t**2 + 4,
            -3 * t**3 + 3 * t**2 + 3 * t + 1,
            t**3,
        ]
        index = first.astype(np.intp)[:, None] + np.arange(-1, 3)
        return index % self._shape[1 + axis], np.stack(weights, axis=1) / 6


class RandDeformation(Randomizable):
    """Draws deformations, from MONAI's random state ``R``.

    Args:
        elastic_nm: control points are displaced by up to so much along every axis, drawn uniformly;
            0 for none.
        spacing_nm: of the control points; needed with ``elastic_nm``.
        zoom: smallest and largest zoom, drawn uniformly; 2 makes things twice as large.
        zoom_per_axis: draw one zoom for every axis, instead of one for all.
        in_plane: leave z as it is: sections stay sections.
        prob: probability that a sample is deformed at all.

    Raises:
        InputError: a value is of the wrong kind or out of range, nothing would ever be deformed, or
            ``elastic_nm`` is so large for ``spacing_nm`` that volumes could fold.
    """

    def __init__(
        self,
        elastic_nm: float = 0.0,
        spacing_nm: float | None = None,
        zoom: Sequence[float] = (1.0, 1.0),
        zoom_per_axis: bool = False,
        in_plane: bool = False,
        prob: float = 1.0,
    ) -> None:
        self.deforms = False
        self.elastic_nm = not_negative(elastic_nm, "deformation.elastic_nm")
        self.zoom = _zoom(zoom)
        self.spacing_nm = _spacing(spacing_nm, self.elastic_nm)
        self.zoom_per_axis = flag(zoom_per_axis, "deformation.zoom_per_axis")
        self.in_plane = flag(in_plane, "deformation.in_plane")
        self.prob = not_negative(prob, "deformation.prob")
        if not 0 < self.prob <= 1:
            raise InputError(f"deformation.prob must be above 0 and at most 1, got {prob!r}.")
        if not self.elastic_nm and self.zoom == (1.0, 1.0):
            raise InputError(
                "deformation deforms nothing: give elastic_nm and spacing_nm, or a zoom other than "
                "[1, 1], or set deformation to null."
            )
        self._refuse_folding()

    def _refuse_folding(self) -> None:
        largest = LARGEST_DISPLACEMENT * self.spacing_nm / max(1.0, self.zoom[1])
        if self.elastic_nm > largest:
            raise InputError(
                f"deformation.elastic_nm {self.elastic_nm:g} could fold volumes; with spacing_nm "
                f"{self.spacing_nm:g} and zoom up to {self.zoom[1]:g}, make it {largest:g} or less."
            )

    def randomize(self, data: Any = None) -> None:
        """Draw whether a sample is deformed (``deforms``)."""
        self.deforms = bool(self.R.random_sample() < self.prob)

    def draw(self, roi: Roi, voxel_size_nm: Triple) -> Deformation:
        """A deformation for a crop, about the crop's centre.

        Args:
            roi: the crop, voxels.
            voxel_size_nm: zyx.
        """
        low, high = self.zoom
        zooms = self.R.uniform(low, high, 3) if self.zoom_per_axis else [self.R.uniform(low, high)]
        z, y, x = (float(zoom) for zoom in np.broadcast_to(zooms, 3))
        displacements = self._displacements(np.multiply(roi.shape, voxel_size_nm))
        if self.in_plane:
            z, displacements[0] = 1.0, 0.0
        cz, cy, cx = (float(b + (n - 1) / 2) for b, n in zip(roi.begin, roi.shape, strict=True))
        return Deformation(voxel_size_nm, (cz, cy, cx), (z, y, x), self.spacing_nm, displacements)

    def _displacements(self, extent_nm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of control points, so many that none counts twice in a crop of this extent."""
        if not self.elastic_nm:
            return np.zeros((3, 1, 1, 1))
        points = [4 + math.ceil(extent / self.spacing_nm) for extent in extent_nm]
        return self.R.uniform(-self.elastic_nm, self.elastic_nm, (3, *points))


def rand_deformation(settings: Mapping[str, Any] | None) -> RandDeformation | None:
    """The config's ``deformation``: null, or an object with arguments of ``RandDeformation``.

    Raises:
        InputError: a key that is not known; as ``RandDeformation``.
    """
    if settings is None:
        return None
    check_keys(mapping(settings, "deformation"), list(DEFAULTS), "deformation")
    return RandDeformation(**{**DEFAULTS, **settings})


def _zoom(value: Sequence[float]) -> tuple[float, float]:
    low, high = numbers(list(value) if isinstance(value, tuple) else value, 2, "deformation.zoom")
    if not ZOOMS[0] <= low <= high <= ZOOMS[1]:
        raise InputError(
            f"deformation.zoom must be the smallest and the largest zoom, both from {ZOOMS[0]:g} "
            f"to {ZOOMS[1]:g}, got {[low, high]}."
        )
    return float(low), float(high)


def _spacing(value: float | None, elastic_nm: float) -> float:
    """Distance of the control points; any will do where these stay in place."""
    if value is None and elastic_nm:
        raise InputError(
            "deformation.elastic_nm needs deformation.spacing_nm, the distance of the control "
            f"points: {elastic_nm / LARGEST_DISPLACEMENT:g} or more."
        )
    spacing = not_negative(1.0 if value is None else value, "deformation.spacing_nm")
    if not spacing:
        raise InputError("deformation.spacing_nm must be above 0, got 0.")
    return spacing
