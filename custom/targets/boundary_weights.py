"""Weights that make a loss look at the boundaries of objects."""

from collections.abc import Sequence
from typing import Literal

import edt
import numpy as np
from numpy.typing import NDArray

FORMS = ("inverse", "gaussian")
BETWEEN = ("all", "instances")


def boundary_weights(
    labels: NDArray[np.integer],
    power: float = 1.0,
    voxel_size: Sequence[float] = (1, 1, 1),
    form: Literal["inverse", "gaussian"] | str = "inverse",
    peak: float = 5.0,
    sigma: float = 5.0,
    mask: NDArray[np.bool_] | None = None,
    length: float | None = None,
    reach: float | None = None,
    between: Literal["all", "instances"] | str = "all",
    dimensions: int = 3,
) -> NDArray[np.float32]:
    """Weight of every voxel, largest at the boundaries between labels.

    A boundary voxel has a neighbour across one of its faces with another id, both inside ``mask``.
    With ``d`` the distance to the centre of the nearest boundary voxel, in the unit of
    ``voxel_size`` and at most ``reach``, the weight is::

        inverse    1 / (1 + d / length) ** power
        gaussian   (1 + (peak - 1) exp(-d^2 / (2 sigma^2))) ** power

    so boundary voxels have 1 and ``peak ** power``. Without a reach, where there is no boundary at
    all (one label, or nothing but unannotated voxels), and outside ``mask`` in any case, it is 1.

    Args:
        labels: instance labels or classes, shape (D, H, W), zyx; 0 is background.
        power: exponent of the whole formula; 0 makes every weight 1.
        voxel_size: edge lengths of a voxel, zyx.
        form: which of the two formulas.
        peak: weight of boundary voxels in the Gaussian form, before ``power``.
        sigma: width of the Gaussian form, in the unit of ``voxel_size``.
        mask: True where ``labels`` is annotated, shape (D, H, W); everywhere when left out.
        length: unit of distance in the inverse form, in the unit of ``voxel_size``; the smallest
            edge of a voxel when left out.
        reach: from this distance on weights stay the same, and depend on nothing farther away; in
            the unit of ``voxel_size``.
        between: "all": background counts as an id; "instances": boundaries between objects alone.
        dimensions: 2 takes every section (H, W) for itself.

    Returns:
        (D, H, W) float32, positive.

    Raises:
        ValueError: ``labels`` is not 3D, ``mask`` has another shape, ``form``, ``between`` or
            ``dimensions`` is unknown, or a length or ``peak`` is not positive.
    """
    edges = tuple(voxel_size)[3 - dimensions :]
    unit = min(edges) if length is None else length
    _check_numbers(voxel_size, (peak, sigma, unit, reach or unit))
    if form not in FORMS:
        raise ValueError(f"form must be 'inverse' or 'gaussian', got {form!r}")
    distance = boundary_distance(labels, voxel_size, mask, between, dimensions)
    if reach is not None:
        np.minimum(distance, np.float32(reach), out=distance)
    if form == "inverse":
        weights = np.power(1 + distance / np.float32(unit), -power)
    else:
        bump = np.exp(-0.5 * np.square(distance / np.float32(sigma)))
        weights = np.power(1 + (peak - 1) * bump, power)
    counts = np.isfinite(distance) if mask is None else mask & np.isfinite(distance)
    return np.where(counts, weights, np.float32(1)).astype(np.float32, copy=False)


def boundary_distance(
    labels: NDArray[np.integer],
    voxel_size: Sequence[float] = (1, 1, 1),
    mask: NDArray[np.bool_] | None = None,
    between: str = "all",
    dimensions: int = 3,
) -> NDArray[np.float32]:
    """Distance of every voxel to the nearest boundary voxel, as in ``boundary_weights``.

    Args:
        labels: instance labels or classes, shape (D, H, W), zyx.
        voxel_size: edge lengths of a voxel, zyx, in the unit of the distances.
        mask: True where ``labels`` is annotated; everywhere when left out.
        between: "all" or "instances".
        dimensions: 2 takes every section for itself.

    Returns:
        (D, H, W) float32; infinite where there is no boundary in the array, or the section.

    Raises:
        ValueError: ``labels`` is not 3D, ``mask`` has another shape, or ``between`` or
            ``dimensions`` is unknown.
    """
    if labels.ndim != 3:
        raise ValueError(f"labels must be 3D (D, H, W), got shape {labels.shape}")
    if mask is not None and mask.shape != labels.shape:
        raise ValueError(f"mask must have the shape of labels {labels.shape}, got {mask.shape}")
    if between not in BETWEEN:
        raise ValueError(f"between must be 'all' or 'instances', got {between!r}")
    if dimensions not in (2, 3):
        raise ValueError(f"dimensions must be 2 or 3, got {dimensions}")
    boundary = _boundary(labels, mask, between, range(3 - dimensions, 3))
    if dimensions == 3:
        return _distance(boundary, voxel_size)
    return np.stack([_distance(section, tuple(voxel_size)[1:]) for section in boundary])


def _check_numbers(voxel_size: Sequence[float], others: Sequence[float]) -> None:
    numbers = np.array([*voxel_size, *others], np.float64)
    if len(voxel_size) != 3 or not (np.isfinite(numbers) & (numbers > 0)).all():
        raise ValueError(
            "voxel_size, peak, sigma, length and reach must be positive, got "
            f"{tuple(voxel_size)} and {tuple(others)}"
        )


def _distance(boundary: NDArray[np.bool_], edges: Sequence[float]) -> NDArray[np.float32]:
    """Distance to the nearest voxel that is True."""
    if not boundary.any():
        return np.full(boundary.shape, np.inf, dtype=np.float32)
    distance: NDArray[np.float32] = edt.edt(~boundary, anisotropy=tuple(edges))
    return distance


def _boundary(
    labels: NDArray[np.integer],
    mask: NDArray[np.bool_] | None,
    between: str,
    axes: Sequence[int],
) -> NDArray[np.bool_]:
    """Voxels with a face neighbour of another id along these axes, both inside the mask."""
    counts = np.ones(labels.shape, np.bool_) if mask is None else mask
    if between == "instances":
        counts = counts & (labels != 0)
    boundary = np.zeros(labels.shape, dtype=np.bool_)
    for axis in axes:
        lower = tuple(slice(None, -1) if a == axis else slice(None) for a in range(labels.ndim))
        upper = tuple(slice(1, None) if a == axis else slice(None) for a in range(labels.ndim))
        differ = (labels[lower] != labels[upper]) & counts[lower] & counts[upper]
        boundary[lower] |= differ
        boundary[upper] |= differ
    return boundary
