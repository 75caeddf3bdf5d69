"""Weights that make a loss look at the boundaries of objects."""

from collections.abc import Sequence
from typing import Literal

import edt
import numpy as np
from numpy.typing import NDArray


def boundary_weights(
    labels: NDArray[np.integer],
    power: float = 1.0,
    voxel_size: Sequence[float] = (1, 1, 1),
    form: Literal["inverse", "gaussian"] = "inverse",
    peak: float = 5.0,
    sigma: float = 5.0,
    mask: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    """Weight of every voxel, largest at the boundaries between labels.

    A boundary voxel has a neighbour across one of its six faces with another id (background
    counts as an id), both inside ``mask``. With ``d`` the distance to the centre of the nearest
    boundary voxel, in units of the smallest edge of ``voxel_size``, the weight is::

        inverse    1 / (1 + d) ** power
        gaussian   (1 + (peak - 1) exp(-d^2 / (2 sigma^2))) ** power

    so boundary voxels have 1 and ``peak ** power``. Where there is no boundary at all (one label,
    or none), every weight is 1, in both forms. Outside ``mask`` weights are 1.

    Args:
        labels: instance labels, shape (D, H, W), zyx; 0 is background.
        power: exponent, 0 for no weighting.
        voxel_size: edge lengths of a voxel, zyx; only their ratios matter.
        form: which of the two formulas.
        peak: weight of boundary voxels in the Gaussian form, before ``power``.
        sigma: width of the Gaussian form, in the unit of ``d``.
        mask: True where ``labels`` is annotated, shape (D, H, W); everywhere when left out.

    Returns:
        (D, H, W) float32, positive.

    Raises:
        ValueError: ``labels`` is not 3D, ``mask`` has another shape, ``form`` is unknown, or
            ``peak``, ``sigma`` or ``voxel_size`` is not positive.
    """
    if labels.ndim != 3:
        raise ValueError(f"labels must be 3D (D, H, W), got shape {labels.shape}")
    if mask is not None and mask.shape != labels.shape:
        raise ValueError(f"mask must have the shape of labels {labels.shape}, got {mask.shape}")
    if form not in ("inverse", "gaussian"):
        raise ValueError(f"form must be 'inverse' or 'gaussian', got {form!r}")
    if len(voxel_size) != 3 or min(*voxel_size, peak, sigma) <= 0:
        raise ValueError(
            f"voxel_size, peak and sigma must be positive, got {voxel_size}, {peak} and {sigma}"
        )
    distance = boundary_distance(labels, voxel_size, mask)
    if np.isinf(distance).all():
        return np.ones(labels.shape, dtype=np.float32)
    if form == "inverse":
        weights = np.power(1 + distance, -power)
    else:
        bump = np.exp(-0.5 * np.square(distance / sigma))
        weights = np.power(1 + (peak - 1) * bump, power)
    if mask is not None:
        weights[~mask] = 1
    return weights.astype(np.float32, copy=False)


def boundary_distance(
    labels: NDArray[np.integer],
    voxel_size: Sequence[float] = (1, 1, 1),
    mask: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    """Distance of every voxel to the nearest boundary voxel, as in ``boundary_weights``.

    Args:
        labels: instance labels, shape (D, H, W), zyx.
        voxel_size: edge lengths of a voxel, zyx; the smallest is the unit of the distances.
        mask: True where ``labels`` is annotated; everywhere when left out.

    Returns:
        (D, H, W) float32; infinite everywhere if there is no boundary.
    """
    boundary = _boundary(labels, mask)
    if not boundary.any():
        return np.full(labels.shape, np.inf, dtype=np.float32)
    edges = tuple(v / min(voxel_size) for v in voxel_size)
    distance: NDArray[np.float32] = edt.edt(~boundary, anisotropy=edges)
    return distance


def _boundary(labels: NDArray[np.integer], mask: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Voxels with a face neighbour of another id, both inside the mask."""
    boundary = np.zeros(labels.shape, dtype=np.bool_)
    for axis in range(labels.ndim):
        lower = tuple(slice(None, -1) if a == axis else slice(None) for a in range(labels.ndim))
        upper = tuple(slice(1, None) if a == axis else slice(None) for a in range(labels.ndim))
        differ = labels[lower] != labels[upper]
        if mask is not None:
            differ &= mask[lower] & mask[upper]
        boundary[lower] |= differ
        boundary[upper] |= differ
    return boundary
