"""Moments of objects under a Gaussian by products of matrices in torch, on any device."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from torch import Tensor

_MOMENTS = (
    (0, 0, 0),  # mass; a triple holds the powers of the z, y and x distance
    (1, 0, 0), (0, 1, 0), (0, 0, 1),  # means
    (2, 0, 0), (0, 2, 0), (0, 0, 2),  # variances
    (1, 1, 0), (1, 0, 1), (0, 1, 1),  # covariances zy, zx, yx
)  # fmt: skip

_TILE = (32, 48, 64)  # voxels of a tile on the CPU, the fastest of those tried at sigma 8
_LARGE_TILE = (128, 128, 128)  # elsewhere, where every product has to be started

_Box = tuple[slice, ...]

_MomentsOf = Callable[[int, _Box], Tensor]
"""Ten moments of one object about every voxel of a box."""


@dataclass(frozen=True)
class _Numbered:
    """Labels as numbers from 1 on, 0 is background; the same on the host and on a device."""

    host: NDArray[np.int32]
    there: Tensor

    def every(self, steps: Sequence[int]) -> "_Numbered":
        """Every n-th voxel."""
        at = tuple(slice(None, None, step) for step in steps)
        return _Numbered(self.host[at], self.there[at])


def described(
    labels: NDArray[np.integer],
    roi: Sequence[slice],
    kernels: Sequence[NDArray[np.float64]],
    floor: Sequence[float],
    channels: Sequence[int],
    device: str | torch.device,
    steps: Sequence[int] = (1, 1, 1),
    coarse_kernels: Sequence[NDArray[np.float64]] = (),
) -> NDArray[np.float32]:
    """Descriptors of the voxels of a box; the first arguments are those of ``tiles.described``.

    Args:
        labels: instance labels, shape (D, H, W), zyx; 0 is background; any integer dtype.
        roi: three slices of ``labels``.
        kernels: z, y, x; Gaussian times distance to the powers 0, 1 and 2, (3, 2 radius + 1).
        floor: smallest variance z, y, x, in the unit of the kernels' distance, squared.
        channels: which of the ten descriptors, in which order.
        device: where to compute.
        steps: z, y, x; moments are interpolated from every n-th voxel at every n-th voxel.
        coarse_kernels: as ``kernels``, for these.

    Returns:
        (channels, *roi) float32; 0 where the label is 0.
    """
    device = torch.device(device)
    box = tuple(roi)
    out = np.zeros((len(channels), *(s.stop - s.start for s in box)), dtype=np.float32)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        numbered = _numbered(labels, device)
        moments_of: _MomentsOf = partial(_object_moments, numbered, kernels)
        if any(step > 1 for step in steps):
            moments_of = _interpolation_of(numbered, steps, coarse_kernels, moments_of)
        for tile in _tiles(box, _TILE if device.type == "cpu" else _LARGE_TILE):
            inside = tuple(
                slice(t.start - b.start, t.stop - b.start) for t, b in zip(tile, box, strict=True)
            )
            found = _descriptors(_moments(numbered, tile, moments_of), floor)
            out[:, *inside] = found[list(channels)].cpu().numpy()
    return out


def _numbered(labels: NDArray[np.integer], device: torch.device) -> _Numbered:
    """Labels numbered in the order of their ids."""
    ids, numbers = np.unique(labels, return_inverse=True)
    first = 0 if ids.size and ids[0] == 0 else 1
    host = np.ascontiguousarray((numbers + first).reshape(labels.shape).astype(np.int32))
    return _Numbered(host, torch.from_numpy(host).to(device))


def _tiles(box: _Box, sizes: Sequence[int]) -> Iterator[_Box]:
    """``box`` in tiles of at most ``sizes`` voxels, so that products stay small."""
    yield from product(
        *(
            [slice(i, min(i + size, b.stop)) for i in range(b.start, b.stop, size)]
            for b, size in zip(box, sizes, strict=True)
        )
    )


def _moments(numbered: _Numbered, tile: _Box, moments_of: _MomentsOf) -> Tensor:
    """Ten moments of every voxel's own object, (10, *tile); 0 where the label is 0."""
    inside = numbered.there[tile]
    moments = torch.zeros((len(_MOMENTS), *inside.shape), device=inside.device)
    parts = enumerate(find_objects(numbered.host[tile]), 1)
    for number, part in ((number, part) for number, part in parts if part):
        write = tuple(
            slice(t.start + p.start, t.start + p.stop) for t, p in zip(tile, part, strict=True)
        )
        view = moments[:, *part]
        view.copy_(torch.where(inside[part] == number, moments_of(number, write), view))
    return moments


def _interpolation_of(
    numbered: _Numbered,
    steps: Sequence[int],
    kernels: Sequence[NDArray[np.float64]],
    exact: _MomentsOf,
) -> _MomentsOf:
    """Moments interpolated from every n-th voxel; exact ones of objects that these miss."""
    coarse = numbered.every(steps)
    sampled = partial(_object_moments, coarse, kernels)

    def interpolated(number: int, write: _Box) -> Tensor:
        places = [
            _interpolation(w, step, n)
            for w, step, n in zip(write, steps, coarse.host.shape, strict=True)
        ]
        at = tuple(read for read, _ in places)
        if not (coarse.host[_grown(at, kernels, coarse.host.shape)] == number).any():
            return exact(number, write)
        z, y, x = (matrix.to(coarse.there.device) for _, matrix in places)
        return torch.einsum("ai,cijx,bj->cabx", z, sampled(number, at) @ x.T, y)

    return interpolated


def _interpolation(write: slice, step: int, count: int) -> tuple[slice, Tensor]:
    """Samples that the voxels ``write`` lie between, and their weights (n_write, n_samples).

    Sample ``i`` of ``count`` lies on voxel ``i * step``; voxels after the last are extrapolated.
    """
    position = np.arange(write.start, write.stop) / step
    low = np.clip(np.floor(position).astype(int), 0, max(0, count - 2))
    read = slice(int(low[0]), min(count, int(low[-1]) + 2))
    above = position - low
    weights = np.zeros((len(position), read.stop - read.start), np.float32)
    rows = np.arange(len(position))
    weights[rows, low - read.start] = 1 - above
    if count > 1:
        weights[rows, low - read.start + 1] = above
    else:
        weights[:] = 1
    return read, torch.from_numpy(weights)


def _object_moments(
    numbered: _Numbered, kernels: Sequence[NDArray[np.float64]], number: int, write: _Box
) -> Tensor:
    """Ten moments of one object about every voxel of the box ``write``, (10, *write).

    Each axis is a few dense matrix products: three along z, six along y, ten along x.
    """
    read = _tight(numbered.host, number, _grown(write, kernels, numbered.host.shape))
    own = (numbered.there[read] == number).float()
    z, y, x = (_band(k, r, w).to(own.device) for k, r, w in zip(kernels, read, write, strict=True))
    along_y = [(kernel @ own).flatten(1) for kernel in y]
    along_z = {
        (a, b): (z[a] @ along_y[b]).unflatten(1, (-1, own.shape[2]))
        for a in range(3)
        for b in range(3 - a)
    }
    shape = (len(_MOMENTS), *(w.stop - w.start for w in write))
    moments = torch.empty(shape, device=own.device)
    for out, (a, b, c) in zip(moments, _MOMENTS, strict=True):
        torch.matmul(along_z[a, b], x[c].T, out=out)
    return moments


def _band(kernel: NDArray[np.float64], read: slice, write: slice) -> Tensor:
    """Correlation with ``kernel`` as a (powers, n_write, n_read) matrix.

    ::

        |-----read-----|      columns
           |--write--|        rows; row p holds the kernel centred on column p
    """
    radius = kernel.shape[1] // 2
    distance = np.arange(read.start, read.stop) - np.arange(write.start, write.stop)[:, None]
    near = np.abs(distance) <= radius
    band = np.where(near, kernel[:, np.clip(distance, -radius, radius) + radius], 0.0)
    return torch.from_numpy(band.astype(np.float32))


def _grown(box: _Box, kernels: Sequence[NDArray[np.float64]], shape: Sequence[int]) -> _Box:
    """``box`` and all that the kernels reach from it, inside ``shape``."""
    return tuple(
        slice(max(0, b.start - k.shape[1] // 2), min(n, b.stop + k.shape[1] // 2))
        for b, k, n in zip(box, kernels, shape, strict=True)
    )


def _tight(numbers: NDArray[np.int32], number: int, box: _Box) -> _Box:
    """``box`` without the margins that do not hold ``number``."""
    (part,) = find_objects((numbers[box] == number).view(np.uint8))
    return tuple(slice(b.start + p.start, b.start + p.stop) for b, p in zip(box, part, strict=True))


def _descriptors(moments: Tensor, floor: Sequence[float]) -> Tensor:
    """Descriptors in [0, 1] from moments whose distances are in sigmas; 0 where the mass is 0."""
    mass = moments[0]
    per_mass = moments[1:] / torch.where(mass > 0, mass, 1)
    first, second = per_mass[:3], per_mass[3:]
    smallest = torch.tensor(list(floor), device=mass.device).reshape(3, 1, 1, 1)
    variance = torch.maximum(second[:3] - first**2, smallest)
    deviation = variance.sqrt()
    result = torch.empty_like(moments)
    result[0:3] = first / 2 + 0.5
    result[3:6] = variance
    for channel, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
        covariance = second[3 + channel] - first[i] * first[j]
        result[6 + channel] = covariance / (2 * deviation[i] * deviation[j]) + 0.5
    result[9] = mass
    return torch.where(mass > 0, result, 0).clamp_(0, 1)
