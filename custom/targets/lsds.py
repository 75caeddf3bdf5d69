"""Local shape descriptors: the shape of an object as seen from each of its voxels."""

from collections.abc import Sequence

import numpy as np
import torch
from funlib.geometry.roi import Roi
from numpy.typing import NDArray

from custom.errors import InputError
from custom.targets import moment_matrices

TRUNCATE = 3.0
"""Radius of the Gaussian in sigmas; also the halo that makes a crop's descriptors exact."""

VARIANCE_FLOOR = 1e-3
"""Smallest variance, in squared units of sigma, as in lsd-lite."""

_ALL_CHANNELS = range(10)
_SECTION_CHANNELS = (1, 2, 4, 5, 8, 9)  # those of the ten without z
_NO_EXTENT = 0.1  # voxels; a Gaussian as narrow is the voxel itself
_INTERPOLATED = 4  # steps around a roi that its interpolated moments depend on

_Numbers = float | Sequence[float]


def local_shape_descriptors(
    labels: NDArray[np.integer],
    sigma: _Numbers,
    voxel_size: _Numbers = 1.0,
    roi: Roi | Sequence[slice] | None = None,
    downsample: int | Sequence[int] = 1,
    device: str | torch.device | None = None,
) -> NDArray[np.float32]:
    """Ten numbers per voxel that describe the part of its object within three sigma.

    For a voxel ``p`` of label ``l`` let ``w(q) = g(q - p) [labels[q] == l]`` with ``g`` the
    normalised Gaussian, truncated at ``int(3 sigma + 0.5)`` voxels and zero outside the array.
    With ``m`` the sum of ``w``, ``mu`` the w-weighted mean of ``q - p`` and ``C`` the w-weighted
    covariance (its diagonal at least 1e-3, in squared units of ``sigma``)::

        0-2  mean offset z y x    mu_d / (2 sigma_d) + 0.5
        3-5  variance z y x       C_dd / sigma_d^2
        6-8  correlation zy zx yx C_ij / (2 sqrt(C_ii C_jj)) + 0.5
        9    mass                 m

    all clipped to [0, 1], and 0 where the label is 0. Moments are taken about the voxel itself,
    so that float32 does not cancel, however large the array. In two dimensions there are six:
    mean offset y x, variance y x, correlation yx, mass.

    Args:
        labels: instance labels, shape (D, H, W), zyx, or (H, W); 0 is background; any integer
            dtype, no negative ids.
        sigma: width of the Gaussian, one number or one per axis, in the unit of ``voxel_size``.
        voxel_size: edge lengths of a voxel, one number or one per axis; 1 makes sigma a number of
            voxels.
        roi: compute only this box of ``labels`` (in its voxels); what lies around it is context.
            With three sigma of context the result equals that of a larger array, cropped.
        downsample: compute the moments, which are smooth, from every n-th voxel at every n-th
            voxel, and interpolate them; one number or one per axis. 1 is exact; with 2 and sigma 8
            voxels the descriptors differ by 0.002 in the mean, more within three sigma of the
            array's border. Objects that those voxels miss, and axes of fewer than 4 n voxels, are
            computed exactly. On the CPU the exact ones are the fastest.
        device: where torch computes, such as "cuda"; None: compiled code on the CPU, by as many
            threads as torch would use in this thread. The numbers are the same up to float32's
            rounding.

    Returns:
        (10, D, H, W) or (6, H, W) float32 in [0, 1], of the shape of ``roi`` when one is given.

    Raises:
        InputError: ``labels`` has neither two nor three axes, no integers or negative ones,
            ``sigma`` or ``voxel_size`` is not positive and finite or has not one number per axis,
            ``downsample`` is not a whole number from 1 on, or ``roi`` does not lie inside
            ``labels``.

    Source:
        Sheridan et al. 2023, Nature Methods 20; equal to lsd-lite 1.0.1 up to its rounding.
    """
    labels = np.asarray(labels)
    if labels.ndim == 2:
        box = (slice(0, 1), *_slices(roi, labels.shape))
        return section_descriptors(labels[None], sigma, voxel_size, box, downsample, device)[:, 0]
    if labels.ndim != 3:
        raise InputError(f"labels must be 3D (D, H, W) or 2D (H, W), got shape {labels.shape}")
    sigmas = _positive(sigma, "sigma", "zyx")
    sizes = _positive(voxel_size, "voxel_size", "zyx")
    steps = _whole(downsample, "zyx")
    return _descriptors(labels, sigmas, sizes, roi, steps, device, _ALL_CHANNELS)


def section_descriptors(
    labels: NDArray[np.integer],
    sigma: _Numbers,
    voxel_size: _Numbers = 1.0,
    roi: Roi | Sequence[slice] | None = None,
    downsample: int | Sequence[int] = 1,
    device: str | torch.device | None = None,
) -> NDArray[np.float32]:
    """Six numbers per voxel that describe its object in its own section, without its neighbours.

    The definition of ``local_shape_descriptors`` in two dimensions, for every section (H, W)::

        0-1  mean offset y x
        2-3  variance y x
        4    correlation yx
        5    mass

    Args:
        labels: instance labels, shape (D, H, W), zyx; 0 is background; any integer dtype, no
            negative ids.
        sigma: width of the Gaussian, one number or y, x, in the unit of ``voxel_size``.
        voxel_size: edge lengths of a voxel, one number or y, x.
        roi: as in ``local_shape_descriptors``, three axes; context is needed along y and x.
        downsample: as in ``local_shape_descriptors``, one number or y, x.
        device: as in ``local_shape_descriptors``.

    Returns:
        (6, D, H, W) float32 in [0, 1], of the shape of ``roi`` when one is given.

    Raises:
        InputError: as ``local_shape_descriptors``.
    """
    labels = np.asarray(labels)
    if labels.ndim != 3:
        raise InputError(f"labels must be sections (D, H, W), got shape {labels.shape}")
    sigmas = np.append(_NO_EXTENT, _positive(sigma, "sigma", "yx"))
    sizes = np.append(1.0, _positive(voxel_size, "voxel_size", "yx"))
    steps = (1, *_whole(downsample, "yx"))
    return _descriptors(labels, sigmas, sizes, roi, steps, device, _SECTION_CHANNELS)


def _descriptors(
    labels: NDArray[np.integer],
    sigmas: NDArray[np.float64],
    sizes: NDArray[np.float64],
    roi: Roi | Sequence[slice] | None,
    steps: Sequence[int],
    device: str | torch.device | None,
    channels: Sequence[int],
) -> NDArray[np.float32]:
    """Descriptors from checked arguments, zyx."""
    box = _slices(roi, labels.shape)
    steps = [w if n >= 4 * w else 1 for w, n in zip(steps, labels.shape, strict=True)]
    kernels = [_moment_kernel(sigma) for sigma in sigmas / sizes]
    floor = (VARIANCE_FLOOR / sigmas**2).tolist()
    near, inside = _context(box, [k.shape[1] // 2 for k in kernels], steps, labels.shape)
    context = _trusted(labels[near])
    if 0 in context[inside].shape:
        return np.zeros((len(channels), *context[inside].shape), dtype=np.float32)
    if device is None and max(steps) == 1:
        from custom.targets import tiles  # the compiler is loaded where LSDs are computed

        threads = torch.get_num_threads()
        return tiles.described(context, inside, kernels, floor, channels, threads)
    coarse = [_moment_kernel(sigma) for sigma in sigmas / sizes / steps]
    return moment_matrices.described(
        context, inside, kernels, floor, channels, device or "cpu", steps, coarse
    )


def _trusted(labels: NDArray[np.integer]) -> NDArray[np.integer]:
    """``labels``, once it is known that they are integers and not negative."""
    if labels.dtype.kind not in "iu":
        raise InputError(f"labels must be integers, got {labels.dtype}")
    if labels.size and labels.dtype.kind == "i" and labels.min() < 0:
        raise InputError(
            f"labels must not be negative, got {labels.min()}: 0 is background, ids begin at 1"
        )
    return labels


def _positive(values: float | Sequence[float], name: str, axes: str) -> NDArray[np.float64]:
    """One positive number, or one per axis, as one per axis."""
    given = np.asarray(values, dtype=np.float64)
    right_shape = given.shape in ((), (len(axes),))
    if not right_shape or not (np.isfinite(given) & (given > 0)).all():
        raise InputError(f"{name} must be one positive number or {_each(axes)}, got {values}")
    return np.broadcast_to(given, (len(axes),))


def _whole(downsample: int | Sequence[int], axes: str) -> tuple[int, ...]:
    """One whole number, or one per axis, as one per axis."""
    steps = np.asarray(downsample)
    right_shape = steps.shape in ((), (len(axes),))
    if not right_shape or steps.dtype.kind not in "iu" or not (steps >= 1).all():
        raise InputError(
            f"downsample must be a whole number from 1 on or {_each(axes)}, got {downsample}"
        )
    return tuple(int(step) for step in np.broadcast_to(steps, (len(axes),)))


def _each(axes: str) -> str:
    """How a message names one number per axis, such as "two (y, x)"."""
    return f"{('one', 'two', 'three')[len(axes) - 1]} ({', '.join(axes)})"


def _slices(roi: Roi | Sequence[slice] | None, shape: Sequence[int]) -> tuple[slice, ...]:
    """``roi`` as slices with whole numbers, inside ``shape``."""
    if roi is None:
        return tuple(slice(0, n) for n in shape)
    given = roi.to_slices() if isinstance(roi, Roi) else roi
    if len(given) != len(shape):
        raise InputError(f"roi must have {('two', 'three')[len(shape) - 2]} axes, got {roi}")
    box = tuple(
        slice(s.start or 0, n if s.stop is None else s.stop)
        for s, n in zip(given, shape, strict=True)
    )
    if any(not 0 <= s.start <= s.stop <= n for s, n in zip(box, shape, strict=True)):
        raise InputError(f"roi must lie inside labels of shape {tuple(shape)}, got {roi}")
    return box


def _context(
    box: Sequence[slice], reach: Sequence[int], steps: Sequence[int], shape: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The part of an array that a box depends on, from a multiple of ``steps`` on; the box in it.

    ::

        |--------------------|   array
          |cccccccccccc|         context
             |bbbbbb|            box
    """
    near, inside = [], []
    for b, r, step, n in zip(box, reach, steps, shape, strict=True):
        margin = r + (_INTERPOLATED * step if step > 1 else 0)
        start = max(0, b.start - margin) // step * step
        near.append(slice(start, min(n, b.stop + margin)))
        inside.append(slice(b.start - start, b.stop - start))
    return tuple(near), tuple(inside)


def _moment_kernel(sigma: float) -> NDArray[np.float64]:
    """Gaussian times distance to the powers 0, 1 and 2: (3, 2 radius + 1), distance in sigmas."""
    radius = int(TRUNCATE * sigma + 0.5)
    distance = np.arange(-radius, radius + 1, dtype=np.float64) / sigma
    gaussian = np.exp(-0.5 * distance**2)
    gaussian /= gaussian.sum()
    return np.stack([gaussian, gaussian * distance, gaussian * distance**2])
