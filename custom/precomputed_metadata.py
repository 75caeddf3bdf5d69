"""Neuroglancer's precomputed volumes as their ``info`` says; axes are x, y, z, channel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from custom.errors import InputError
from custom.locations import Location
from custom.voxel_grid import VoxelGrid, pick_zyx
from custom.zarr_metadata import parse_json

Json = Mapping[str, Any]
INFO_FILE = "info"
AXES = ("x", "y", "z", "c")
KEY_PARTS = 2  # a scale's key may have a slash


@dataclass(frozen=True)
class PrecomputedScale:
    """One scale of a volume.

    Args:
        folder: with the ``info``.
        index: of the scale.
        key: its folder in ``folder``.
        shape: along x, y, z and channels.
        dtype: name of the data type.
    """

    folder: Location
    index: int
    key: str
    shape: tuple[int, int, int, int]
    dtype: str


def find_scale(location: Location, where: str) -> tuple[PrecomputedScale, VoxelGrid] | None:
    """A scale of a precomputed volume, with its grid.

    Args:
        location: the volume's folder for its first, finest scale; that folder and a scale's key
            (``x/16_16_40``) for another.
        where: the field and the file, for messages.

    Returns:
        None where there is no precomputed volume.

    Raises:
        InputError: there is no such scale, or what the ``info`` says is unusable.
    """
    found = _find_info(location)
    if found is None:
        return None
    folder, info = found
    key = location.url[len(folder.url) + 1 :]
    if "scales" not in info:
        raise InputError(f"{where} has an info without scales; it is not a volume")
    try:
        return _scale(folder, info, key, where)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(f"{where} has an info that cannot be understood: {error!r}") from error


def _find_info(location: Location) -> tuple[Location, Json] | None:
    """The nearest ``info``: in the folder itself, or around the folder of a scale."""
    for folder in (location, *location.parents[:KEY_PARTS]):
        try:
            files = folder.read((INFO_FILE,))
        except PermissionError:
            continue
        if files:
            return folder, parse_json(files[INFO_FILE], folder / INFO_FILE)
    return None


def _scale(
    folder: Location, info: Json, key: str, where: str
) -> tuple[PrecomputedScale, VoxelGrid]:
    """The scale with a key, the first without."""
    scales: Sequence[Json] = info["scales"]
    keys = [str(scale["key"]) for scale in scales]
    if key and key not in keys:
        raise InputError(f"{where} names no scale of {folder.url}; it holds {', '.join(keys)}")
    index = keys.index(key) if key else 0
    x, y, z = (int(n) for n in scales[index]["size"])
    shape = (x, y, z, int(info["num_channels"]))
    found = PrecomputedScale(folder, index, keys[index], shape, str(info["data_type"]))
    return found, _grid(scales[0], scales[index])


def _grid(finest: Json, scale: Json) -> VoxelGrid:
    """Grid of a scale; Neuroglancer counts from the corner of a voxel.

    ::

        finest  |.|.|.|.|     the first voxel's centre is at voxel_offset * resolution
        scale   |   .   |     its centre relative to that

    Corners are moved by half a voxel of the finest scale, the same for all scales: so a volume
    without an offset starts at 0, as in every other format, and its scales stay where they are.
    Between two volumes with corners, these count.
    """
    size = [float(v) for v in scale["resolution"]]
    corner = [float(v) for v in scale.get("voxel_offset", (0, 0, 0))]
    finest_size = [float(v) for v in finest["resolution"]]
    centre = [o * s + (s - f) / 2 for o, s, f in zip(corner, size, finest_size, strict=True)]
    begin = pick_zyx([o * s for o, s in zip(corner, size, strict=True)], AXES[:3])
    return VoxelGrid(AXES, pick_zyx(size, AXES[:3]), pick_zyx(centre, AXES[:3]), corner=begin)
