"""A volume at all of its resolutions, read box by box at whichever is asked for."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from funlib.geometry import Roi
from numpy.typing import NDArray

from custom.errors import InputError
from custom.file_arrays import FileArray, zarr_array
from custom.locations import Location, parse_location
from custom.precomputed_metadata import INFO_FILE
from custom.volumes import Volume, VolumeMetadata, open_volume
from custom.voxel_grid import Triple
from custom.zarr_metadata import find_array, parse_json, read_node

Factors = tuple[int, int, int]
Read = Callable[[Roi], NDArray[Any]]

MEAN, FIRST, LARGEST = "mean", "first", "largest"
WHOLE = 0.01  # a level's voxels are so nearly a whole number of the finest ones


@dataclass(frozen=True)
class Level:
    """One resolution.

    Args:
        factors: voxels of the finest level in one of this level, zyx.
        shape: (D, H, W).
        read: gives the voxels of a box in this level, (D, H, W) or (C, D, H, W).
    """

    factors: Factors
    shape: tuple[int, int, int]
    read: Read


@dataclass(frozen=True)
class Pyramid:
    """A volume, or channels of one, at one or more resolutions.

    Args:
        metadata: of the finest level; of its type and place.
        levels: the finest first.
        channels: how many ``read`` gives; None where it gives (D, H, W).
    """

    metadata: VolumeMetadata
    levels: tuple[Level, ...]
    channels: int | None = None

    def level_for(self, factors: Sequence[int]) -> Level:
        """The coarsest level whose voxels divide voxels of this size, zyx."""
        fitting = [
            level
            for level in self.levels
            if all(f % own == 0 for f, own in zip(factors, level.factors, strict=True))
        ]
        return max(fitting, key=lambda level: math.prod(level.factors))

    def read(
        self, begin: Sequence[int], end: Sequence[int], factors: Sequence[int], reduction: str
    ) -> NDArray[Any]:
        """Voxels of a box at a resolution that need not be one of the levels.

        Args:
            begin: first voxel, zyx, counted in voxels of this resolution.
            end: the one after the last.
            factors: voxels of the finest level per voxel, zyx.
            reduction: what becomes of the voxels that one shows: their ``MEAN``, the ``FIRST``, for
                labels, or the ``LARGEST``, for codes of which none may get lost.

        Returns:
            (D, H, W) or (C, D, H, W).
        """
        level = self.level_for(factors)
        steps = [f // own for f, own in zip(factors, level.factors, strict=True)]
        first = [b * s for b, s in zip(begin, steps, strict=True)]
        stop = [min(e * s, n) for e, s, n in zip(end, steps, level.shape, strict=True)]
        values = level.read(Roi(first, [s - f for s, f in zip(stop, first, strict=True)]))
        reduced = REDUCTIONS[reduction](values, steps)
        missing = [
            (0, e - b - n) for b, e, n in zip(begin, end, reduced.shape[-3:], strict=True)
        ]  # another tool's pyramid may round down
        return np.pad(reduced, [(0, 0)] * (reduced.ndim - 3) + missing, mode="edge")


def single(volume: Volume) -> Pyramid:
    """A volume of one resolution."""
    level = Level((1, 1, 1), volume.metadata.shape, volume.read)
    return Pyramid(volume.metadata, (level,))


def open_pyramid(
    path: str, voxel_size_nm: Sequence[float] | None = None, field: str = "raw"
) -> Pyramid:
    """Open a volume with the levels that its multiscales, or its precomputed info, name.

    Args:
        path: as of ``volumes.open_volume``.
        voxel_size_nm: of the finest level, wins over the file's own.
        field: what the volume is for the user, for messages.

    Raises:
        InputError: as ``open_volume``.
    """
    finest = open_volume(path, voxel_size_nm, field)
    names = _level_names(path, field)
    try:
        stored = [open_volume(f"{path.rstrip('/')}/{name}", None, field) for name in names]
    except InputError:  # a level without a size, or one that is gone: the finest one is there
        stored = []
    levels = [Level((1, 1, 1), finest.metadata.shape, finest.read)]
    if stored:
        sizes = [volume.metadata.voxel_size_nm for volume in stored]
        base = min(sizes, key=math.prod)
        for volume, size in zip(stored, sizes, strict=True):
            levels += _level(base, size, volume.metadata.shape, volume.read)
    return Pyramid(finest.metadata, tuple(levels))


def open_channels(path: str, channels: Sequence[int], field: str) -> Pyramid:
    """Open some channels of an image (C, D, H, W) in an OME-Zarr.

    Args:
        path: group of the image.
        channels: their numbers.
        field: what the image is for the user, for messages.

    Raises:
        InputError: there is no such image, or it has no voxel size.
    """
    where = f"{field} '{path}'"
    location = Location(path)
    group = read_node(location)
    if group is None:
        raise InputError(f"{where} does not exist")
    opened = []
    for name in [data["path"] for m in group.multiscales[:1] for data in m["datasets"]]:
        node = read_node(location / name)
        if node is None:
            raise InputError(f"{where} lists the level '{name}' but does not hold it")
        array, grid = find_array(node, where)
        file = zarr_array(array, where)
        size, offset, _ = grid.in_nanometers(None, where)
        depth, height, width = file.shape[1:]
        metadata = VolumeMetadata((depth, height, width), file.dtype.name, size, offset)
        opened.append((metadata, partial(_read_channels, file, tuple(channels))))
    finest = min((metadata for metadata, _ in opened), key=lambda m: math.prod(m.voxel_size_nm))
    levels = []
    for metadata, read in opened:
        first = metadata is finest
        levels += (
            [Level((1, 1, 1), metadata.shape, read)]
            if first
            else _level(finest.voxel_size_nm, metadata.voxel_size_nm, metadata.shape, read)
        )
    levels.sort(key=lambda level: math.prod(level.factors))
    return Pyramid(finest, tuple(levels), len(channels))


def _read_channels(file: FileArray, channels: Sequence[int], roi: Roi) -> NDArray[Any]:
    """Some channels of a box, (C, D, H, W)."""
    return np.stack([file.read((k, *roi.to_slices())) for k in channels])


def _level_names(path: str, field: str) -> list[str]:
    """Names of the levels in a folder, of multiscales or of a precomputed volume; else none."""
    location = parse_location(path, f"{field} '{path}'")[1]
    if not location.remote and not location.path.is_dir():
        return []
    node = read_node(location)
    if node is not None:
        return [str(data["path"]) for m in node.multiscales[:1] for data in m["datasets"]]
    files = location.read((INFO_FILE,))
    info = parse_json(files[INFO_FILE], location / INFO_FILE) if files else {}
    return [str(scale["key"]) for scale in info.get("scales", ())]


def _level(base: Triple, size: Triple, shape: tuple[int, int, int], read: Read) -> list[Level]:
    """A coarser level; none where its voxels are those of the base, or no whole number of them."""
    exact = np.divide(size, base)
    z, y, x = (int(v) for v in np.rint(exact))
    if (z, y, x) == (1, 1, 1) or np.abs(exact - (z, y, x)).max() > WHOLE:
        return []
    return [Level((z, y, x), shape, read)]


def _averaged(values: NDArray[Any], steps: Sequence[int]) -> NDArray[Any]:
    """Mean of every box of voxels, rounded down for integers; boxes at the end may be smaller."""
    if all(step == 1 for step in steps):
        return values
    total: NDArray[Any] = values.astype(np.float32)
    for axis, step in zip((-3, -2, -1), steps, strict=True):
        starts = np.arange(0, total.shape[axis], step)
        counts = np.diff(np.append(starts, total.shape[axis]))
        shape = [-1 if a == axis else 1 for a in range(-total.ndim, 0)]
        total = np.add.reduceat(total, starts, axis) / counts.reshape(shape).astype(np.float32)
    return total.astype(values.dtype)


def _strided(values: NDArray[Any], steps: Sequence[int]) -> NDArray[Any]:
    """The first voxel of every box."""
    z, y, x = steps
    strided: NDArray[Any] = values[..., ::z, ::y, ::x]
    return strided


def _largest(values: NDArray[Any], steps: Sequence[int]) -> NDArray[Any]:
    """The largest value of every box."""
    for axis, step in zip((-3, -2, -1), steps, strict=True):
        values = np.maximum.reduceat(values, np.arange(0, values.shape[axis], step), axis)
    return values


REDUCTIONS = {MEAN: _averaged, FIRST: _strided, LARGEST: _largest}
