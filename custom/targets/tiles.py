"""Objects cut into tiles, and the tiles shared out among threads."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
from numpy.typing import NDArray

from custom.targets.moments import TAPS, TILE, WIDTH, describe_tiles
from custom.targets.runs import Runs, runs_of


def described(
    labels: NDArray[np.integer],
    roi: Sequence[slice],
    kernels: Sequence[NDArray[np.float64]],
    floor: Sequence[float],
    channels: Sequence[int],
    threads: int = 1,
) -> NDArray[np.float32]:
    """Descriptors of the voxels of a box.

    Args:
        labels: instance labels, shape (D, H, W), zyx; 0 is background; any integer dtype.
        roi: three slices of ``labels``.
        kernels: z, y, x; Gaussian times distance to the powers 0, 1 and 2, (3, 2 radius + 1).
        floor: smallest variance z, y, x, in the unit of the kernels' distance, squared.
        channels: which of the ten descriptors, in which order.
        threads: number of them.

    Returns:
        (channels, *roi) float32; 0 where the label is 0.
    """
    out = np.zeros((len(channels), *(s.stop - s.start for s in roi)), dtype=np.float32)
    runs = runs_of(labels)
    describe(runs, tiles_of(runs.boxes(roi)), roi, kernels, floor, channels, out, threads)
    return out


def describe(
    runs: Runs,
    tiles: NDArray[np.int64],
    roi: Sequence[slice],
    kernels: Sequence[NDArray[np.float64]],
    floor: Sequence[float],
    channels: Sequence[int],
    out: NDArray[np.float32],
    threads: int,
) -> int:
    """Write the descriptors of tiles; see ``described``.

    Returns:
        Number of rows of ``WIDTH`` values that were summed: the work is in proportion to it.
    """
    reach = tuple(kernel.shape[1] // 2 for kernel in kernels)
    tables = (
        _sums(kernels[2]),
        _padded(kernels[1]),
        _padded(kernels[0]),
        np.asarray(floor, dtype=np.float32),
    )
    origin = tuple(s.start for s in roi)
    places = (runs.z, runs.y, runs.begin, runs.end)
    chosen = np.asarray(channels, dtype=np.int64)

    def work(share: NDArray[np.int64]) -> int:
        return int(describe_tiles(places, share, reach, tables, chosen, origin, out))

    count = min(threads, len(tiles))
    shares = [np.ascontiguousarray(tiles[number::count]) for number in range(count)]
    if len(shares) <= 1:
        return sum(work(share) for share in shares)
    with ThreadPoolExecutor(len(shares)) as pool:
        return sum(pool.map(work, shares))


def tiles_of(boxes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Boxes of objects, as ``Runs.boxes`` gives them, in tiles of at most ``TILE`` voxels.

    The largest come first: every n-th of them is a fair share for one of n threads.
    """
    tiles = [
        (first, last, *z, *y, *x)
        for first, last, *box in boxes.tolist()
        for z, y, x in product(
            *(
                [(i, min(i + size, end)) for i in range(begin, end, size)]
                for begin, end, size in zip(box[::2], box[1::2], TILE, strict=True)
            )
        )
    ]
    table = np.array(tiles, dtype=np.int64).reshape(-1, 8)
    voxels = (table[:, 3::2] - table[:, 2::2]).prod(axis=1)
    return np.ascontiguousarray(table[np.argsort(-voxels, kind="stable")])


def _sums(kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of a kernel over all distances below ``-u``, for u from ``-(WIDTH + radius)`` on."""
    radius = kernel.shape[1] // 2
    u = np.arange(-(WIDTH + radius), 2 * WIDTH + radius + 1)
    sums = np.pad(np.cumsum(kernel, axis=1), ((0, 0), (1, 0)))
    return np.ascontiguousarray(sums[:, np.clip(radius - u, 0, 2 * radius + 1)])


def _padded(kernel: NDArray[np.float64]) -> NDArray[np.float32]:
    """A kernel with zeros at its end, for sums of ``TAPS`` summands at a time."""
    return np.pad(kernel, ((0, 0), (0, TAPS))).astype(np.float32)
