"""Moments of objects under a Gaussian about each of their voxels, compiled.

An object is its runs along x, and its work is a row of ``WIDTH`` voxels at a time:

1. along x, the sums of a kernel over a run are differences of two entries of a table of sums;
2. along y, six sums of rows, from the three powers of x;
3. along z, ten sums, only for rows that hold voxels of the object.

Rows are flat parts of one array, ``WIDTH`` values per moment, so that the compiler makes vector
instructions of the loops over a row.
"""

import math

import numpy as np
from numpy.typing import NDArray

from custom.compiling import compiled as _compiled
from custom.compiling import kept as _kept

WIDTH = 32  # voxels along x at a time: two vectors of AVX-512
TILE = (128, 64, WIDTH)  # bounds a thread's memory; larger and smaller ones were no faster
TAPS = 4  # summands at a time: sums are loaded and stored a quarter as often
NOWHERE = 2**40  # a place that no kernel reaches

_Floats = NDArray[np.float32]
_Whole = NDArray[np.int64]
_Sums = NDArray[np.float64]
_Triple = tuple[int, int, int]
_RunArrays = tuple[_Whole, _Whole, _Whole, _Whole]  # z, y, begin, end; see Runs
_Tile = tuple[int, int, int, int, int, int]  # z, y, x, from and to
_Tables = tuple[_Sums, _Floats, _Floats, _Floats]  # sums of the kernel x; kernels y, z; floor
_Scratch = tuple[_Floats, _Floats, _Whole, _Whole, _Floats, _Floats]


@_compiled
def _add_run(
    row: _Floats, sums: NDArray[np.float64], begin: int, end: int, x: int, radius: int
) -> None:
    """Add a run's sums of the powers 0, 1 and 2 of the distance along x to a row at ``x``.

    ``sums`` are those of a kernel up to a distance, from ``-(WIDTH + radius)`` on; of float64, so
    that the difference of two is precise for one voxel, too.
    """
    begin, end = max(begin, x - radius), min(end, x + WIDTH + radius)
    if begin >= end:
        return
    before, behind = x - begin + WIDTH + radius, x - end + WIDTH + radius
    zeroth, first, second = (sums[0], sums[1], sums[2])
    a0, b0 = zeroth[before : before + WIDTH], zeroth[behind : behind + WIDTH]
    a1, b1 = first[before : before + WIDTH], first[behind : behind + WIDTH]
    a2, b2 = second[before : before + WIDTH], second[behind : behind + WIDTH]
    for i in range(WIDTH):
        row[i] += np.float32(b0[i] - a0[i])
        row[WIDTH + i] += np.float32(b1[i] - a1[i])
        row[2 * WIDTH + i] += np.float32(b2[i] - a2[i])


@_compiled
def _sum_along_y(rows: _Floats, out: _Floats, count: int, kernel: _Floats, tap: int) -> None:
    """Six sums of ``count`` rows; powers of (y, x): 00, 10, 20, 01, 11, 02.

    The kernel's values from ``tap`` on belong to the rows; rows behind the last must be zero.
    """
    for i in range(6 * WIDTH):
        out[i] = np.float32(0)
    for k in range(0, count, TAPS):
        j = tap + k
        p0, p1, p2, p3 = kernel[0, j], kernel[0, j + 1], kernel[0, j + 2], kernel[0, j + 3]
        q0, q1, q2, q3 = kernel[1, j], kernel[1, j + 1], kernel[1, j + 2], kernel[1, j + 3]
        s0, s1, s2, s3 = kernel[2, j], kernel[2, j + 1], kernel[2, j + 2], kernel[2, j + 3]
        r = rows[k * 3 * WIDTH : (k + TAPS) * 3 * WIDTH]
        for i in range(WIDTH):
            a0, a1, a2, a3 = r[i], r[3 * WIDTH + i], r[6 * WIDTH + i], r[9 * WIDTH + i]
            b0, b1 = r[WIDTH + i], r[4 * WIDTH + i]
            b2, b3 = r[7 * WIDTH + i], r[10 * WIDTH + i]
            c0, c1 = r[2 * WIDTH + i], r[5 * WIDTH + i]
            c2, c3 = r[8 * WIDTH + i], r[11 * WIDTH + i]
            out[i] += p0 * a0 + p1 * a1 + p2 * a2 + p3 * a3
            out[WIDTH + i] += q0 * a0 + q1 * a1 + q2 * a2 + q3 * a3
            out[2 * WIDTH + i] += s0 * a0 + s1 * a1 + s2 * a2 + s3 * a3
            out[3 * WIDTH + i] += p0 * b0 + p1 * b1 + p2 * b2 + p3 * b3
            out[4 * WIDTH + i] += q0 * b0 + q1 * b1 + q2 * b2 + q3 * b3
            out[5 * WIDTH + i] += p0 * c0 + p1 * c1 + p2 * c2 + p3 * c3


@_compiled
def _sum_along_z(rows: _Floats, out: _Floats, count: int, kernel: _Floats, tap: int) -> None:
    """Ten moments from ``count`` results of ``_sum_along_y``; as ``_sum_along_y``.

    Mass; means z, y, x; second moments zz, yy, xx; zy, zx, yx.
    """
    for i in range(10 * WIDTH):
        out[i] = np.float32(0)
    for k in range(0, count, TAPS):
        j = tap + k
        p0, p1, p2, p3 = kernel[0, j], kernel[0, j + 1], kernel[0, j + 2], kernel[0, j + 3]
        q0, q1, q2, q3 = kernel[1, j], kernel[1, j + 1], kernel[1, j + 2], kernel[1, j + 3]
        s0, s1, s2, s3 = kernel[2, j], kernel[2, j + 1], kernel[2, j + 2], kernel[2, j + 3]
        r = rows[k * 6 * WIDTH : (k + TAPS) * 6 * WIDTH]
        for i in range(WIDTH):
            a0, a1, a2, a3 = r[i], r[6 * WIDTH + i], r[12 * WIDTH + i], r[18 * WIDTH + i]
            out[i] += p0 * a0 + p1 * a1 + p2 * a2 + p3 * a3
            out[WIDTH + i] += q0 * a0 + q1 * a1 + q2 * a2 + q3 * a3
            out[4 * WIDTH + i] += s0 * a0 + s1 * a1 + s2 * a2 + s3 * a3
            b0, b1 = r[WIDTH + i], r[7 * WIDTH + i]
            b2, b3 = r[13 * WIDTH + i], r[19 * WIDTH + i]
            out[2 * WIDTH + i] += p0 * b0 + p1 * b1 + p2 * b2 + p3 * b3
            out[7 * WIDTH + i] += q0 * b0 + q1 * b1 + q2 * b2 + q3 * b3
            c0, c1 = r[3 * WIDTH + i], r[9 * WIDTH + i]
            c2, c3 = r[15 * WIDTH + i], r[21 * WIDTH + i]
            out[3 * WIDTH + i] += p0 * c0 + p1 * c1 + p2 * c2 + p3 * c3
            out[8 * WIDTH + i] += q0 * c0 + q1 * c1 + q2 * c2 + q3 * c3
            d0, d1 = r[2 * WIDTH + i], r[8 * WIDTH + i]
            d2, d3 = r[14 * WIDTH + i], r[20 * WIDTH + i]
            out[5 * WIDTH + i] += p0 * d0 + p1 * d1 + p2 * d2 + p3 * d3
            e0, e1 = r[4 * WIDTH + i], r[10 * WIDTH + i]
            e2, e3 = r[16 * WIDTH + i], r[22 * WIDTH + i]
            out[9 * WIDTH + i] += p0 * e0 + p1 * e1 + p2 * e2 + p3 * e3
            f0, f1 = r[5 * WIDTH + i], r[11 * WIDTH + i]
            f2, f3 = r[17 * WIDTH + i], r[23 * WIDTH + i]
            out[6 * WIDTH + i] += p0 * f0 + p1 * f1 + p2 * f2 + p3 * f3


@_compiled
def _bounded(value: np.float32, low: np.float32, high: np.float32) -> np.float32:
    value = value if value > low else low
    return value if value < high else high


@_compiled
def _describe(moments: _Floats, out: _Floats, floor: _Floats) -> None:
    """Ten rows of descriptors from ten rows of moments; ``floor`` of the variances."""
    zero, half, one, top = np.float32(0), np.float32(0.5), np.float32(1), np.float32(np.inf)
    for i in range(WIDTH):
        mass = moments[i]
        share = one / _bounded(mass, np.float32(1e-30), top)
        z, y, x = moments[WIDTH + i], moments[2 * WIDTH + i], moments[3 * WIDTH + i]
        z, y, x = z * share, y * share, x * share
        zz = _bounded(moments[4 * WIDTH + i] * share - z * z, floor[0], top)
        yy = _bounded(moments[5 * WIDTH + i] * share - y * y, floor[1], top)
        xx = _bounded(moments[6 * WIDTH + i] * share - x * x, floor[2], top)
        zy = moments[7 * WIDTH + i] * share - z * y
        zx = moments[8 * WIDTH + i] * share - z * x
        yx = moments[9 * WIDTH + i] * share - y * x
        dz, dy, dx = math.sqrt(zz), math.sqrt(yy), math.sqrt(xx)
        out[i] = _bounded(half * z + half, zero, one)
        out[WIDTH + i] = _bounded(half * y + half, zero, one)
        out[2 * WIDTH + i] = _bounded(half * x + half, zero, one)
        out[3 * WIDTH + i] = _bounded(zz, zero, one)
        out[4 * WIDTH + i] = _bounded(yy, zero, one)
        out[5 * WIDTH + i] = _bounded(xx, zero, one)
        out[6 * WIDTH + i] = _bounded(half * zy / (dz * dy) + half, zero, one)
        out[7 * WIDTH + i] = _bounded(half * zx / (dz * dx) + half, zero, one)
        out[8 * WIDTH + i] = _bounded(half * yx / (dy * dx) + half, zero, one)
        out[9 * WIDTH + i] = _bounded(mass, zero, one)


@_compiled
def _in_tile(runs: _RunArrays, r: int, tile: _Tile) -> bool:
    """Whether run ``r`` has voxels in a tile."""
    z, y, begin, end = runs
    z0, z1, y0, y1, x0, x1 = tile
    return bool(z0 <= z[r] < z1 and y0 <= y[r] < y1 and begin[r] < x1 and end[r] > x0)


@_compiled
def _in_reach(runs: _RunArrays, r: int, tile: _Tile, reach: _Triple) -> bool:
    """Whether the kernels reach run ``r`` from a tile, along y and x."""
    _, y, begin, end = runs
    _, _, y0, y1, x0, _ = tile
    near = begin[r] < x0 + WIDTH + reach[2] and end[r] > x0 - reach[2]
    return bool(near and y0 - reach[1] <= y[r] < y1 + reach[1])


@_compiled
def _outermost(runs: _RunArrays, tile: _Tile, low: _Whole, high: _Whole) -> None:
    """The first and the last z of the object's voxels in a tile, for each of its y."""
    z, y, _, _ = runs
    low[:], high[:] = NOWHERE, -NOWHERE
    for r in range(len(z)):
        if _in_tile(runs, r, tile):
            i = y[r] - tile[2]
            low[i], high[i] = min(low[i], z[r]), z[r]


@_compiled
def _sum_along_x(
    runs: _RunArrays, a: int, b: int, tile: _Tile, reach: _Triple, sums: _Sums, rows: _Floats
) -> tuple[int, int]:
    """Fill ``rows`` from runs ``a`` to ``b``, those of one section; zeros behind the last.

    Returns:
        y of the first row and behind the last; equal if no run is in reach.
    """
    _, y, begin, end = runs
    while a < b and not _in_reach(runs, a, tile, reach):
        a += 1
    while a < b and not _in_reach(runs, b - 1, tile, reach):
        b -= 1
    if a == b:
        return 0, 0
    low, high = y[a], y[b - 1] + 1
    rows[: (high - low + TAPS) * 3 * WIDTH] = 0
    for r in range(a, b):
        _add_run(rows[(y[r] - low) * 3 * WIDTH :], sums, begin[r], end[r], tile[4], reach[2])
    return low, high


@_compiled
def _sum_sections(
    runs: _RunArrays, tile: _Tile, reach: _Triple, tables: _Tables, scratch: _Scratch
) -> int:
    """Fill the columns of a tile: for every y, the sums along x and y of each section in reach.

    Returns:
        Number of rows that were summed.
    """
    z, (_, _, y0, y1, _, _) = runs[0], tile
    rows, columns, low, high = scratch[0], scratch[1], scratch[2], scratch[3]
    sections = z[-1] - z[0] + TAPS  # the last few are empty
    summed = 0
    b = 0
    for section in range(sections):
        at, a = z[0] + section, b
        while b < len(z) and z[b] == at:
            b += 1
        y_begin, y_end = _sum_along_x(runs, a, b, tile, reach, tables[0], rows)
        for y in range(y0, y1):
            if low[y - y0] - reach[0] <= at <= high[y - y0] + reach[0]:
                first, last = max(y - reach[1], y_begin), min(y + reach[1] + 1, y_end)
                near = rows[max(0, first - y_begin) * 3 * WIDTH :]
                out = columns[((y - y0) * sections + section) * 6 * WIDTH :]
                _sum_along_y(near, out, last - first, tables[1], first - y + reach[1])
                summed += max(0, last - first)
    return summed


@_compiled
def _write_tile(
    runs: _RunArrays,
    tile: _Tile,
    reach: _Triple,
    tables: _Tables,
    scratch: _Scratch,
    channels: _Whole,
    origin: _Triple,
    out: NDArray[np.float32],
) -> int:
    """Write the descriptors of an object's voxels in a tile.

    Returns:
        Number of rows that were summed.
    """
    z, y, begin, end = runs
    columns, moments, values = scratch[1], scratch[4], scratch[5]
    x0, x1 = tile[4], tile[5]
    sections = z[-1] - z[0] + TAPS
    at_z, at_y, summed = -1, -1, 0
    for r in range(len(z)):
        if not _in_tile(runs, r, tile):
            continue
        if at_z != z[r] or at_y != y[r]:  # there may be several runs in a row
            at_z, at_y = z[r], y[r]
            first, last = max(at_z - reach[0], z[0]), min(at_z + reach[0], z[-1]) + 1
            near = columns[((at_y - tile[2]) * sections + first - z[0]) * 6 * WIDTH :]
            _sum_along_z(near, moments, last - first, tables[2], first - at_z + reach[0])
            _describe(moments, values, tables[3])
            summed += last - first
        for c in range(len(channels)):
            for x in range(max(begin[r], x0), min(end[r], x1)):
                value = values[channels[c] * WIDTH + x - x0]
                out[c, at_z - origin[0], at_y - origin[1], x - origin[2]] = value
    return summed


@_kept
def describe_tiles(
    runs: _RunArrays,
    tiles: _Whole,
    reach: _Triple,
    tables: _Tables,
    channels: _Whole,
    origin: _Triple,
    out: NDArray[np.float32],
) -> int:
    """Write the descriptors of all voxels of objects in tiles.

    Args:
        runs: of all objects, z, y, begin, end of ``Runs``.
        tiles: (tiles, 8) int64: first run and behind the last of the tile's object; begin and end
            of the tile along z, y and x, at most ``TILE`` voxels.
        reach: radius of the kernels z, y, x, voxels.
        tables: (3, 2 (WIDTH + radius) + WIDTH + 1) float64, see ``_add_run``; kernels y and z
            (3, 2 radius + 1 + TAPS) float32, Gaussian times distance to the powers 0, 1 and 2,
            zeros at the end; (3,) float32, smallest variance z, y, x.
        channels: which of the ten descriptors, in which order.
        origin: z, y, x of the first voxel of ``out``.
        out: (channels, D, H, W).

    Returns:
        Number of rows of ``WIDTH`` values that were summed, which the work is in proportion to.
    """
    near = np.empty((len(tiles), 2), np.int64)
    room = 0
    for t in range(len(tiles)):
        first, last = tiles[t, 0], tiles[t, 1]
        z = runs[0][first:last]
        near[t, 0] = first + np.searchsorted(z, tiles[t, 2] - reach[0])
        near[t, 1] = first + np.searchsorted(z, tiles[t, 3] + reach[0])
        sections = runs[0][near[t, 1] - 1] - runs[0][near[t, 0]] + TAPS
        room = max(room, (tiles[t, 5] - tiles[t, 4]) * sections * 6 * WIDTH)
    scratch = (
        np.zeros((TILE[1] + 2 * reach[1] + TAPS) * 3 * WIDTH, np.float32),
        np.zeros(room, np.float32),  # what is not filled must be finite
        np.zeros(TILE[1], np.int64),
        np.zeros(TILE[1], np.int64),
        np.zeros(10 * WIDTH, np.float32),
        np.zeros(10 * WIDTH, np.float32),
    )
    summed = 0
    for t in range(len(tiles)):
        a, b = near[t]
        tile = (tiles[t, 2], tiles[t, 3], tiles[t, 4], tiles[t, 5], tiles[t, 6], tiles[t, 7])
        part = (runs[0][a:b], runs[1][a:b], runs[2][a:b], runs[3][a:b])
        _outermost(part, tile, scratch[2], scratch[3])
        summed += _sum_sections(part, tile, reach, tables, scratch)
        summed += _write_tile(part, tile, reach, tables, scratch, channels, origin, out)
    return summed
