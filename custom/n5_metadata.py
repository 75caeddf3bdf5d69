"""N5 datasets as their ``attributes.json`` describe them; axes are stored x, y, z."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from custom.errors import InputError
from custom.locations import Location
from custom.voxel_grid import VoxelGrid, pick_zyx
from custom.zarr_metadata import parse_json

Json = Mapping[str, Any]
N5_FILE = "attributes.json"
FINEST = "s0"
AXES = ("x", "y", "z", "c", "t")


@dataclass(frozen=True)
class N5Dataset:
    """A dataset.

    Args:
        location: its folder.
        attributes: what its ``attributes.json`` holds.
        groups: the same of the groups around it, nearest first.
    """

    location: Location
    attributes: Json
    groups: tuple[Json, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the order in which N5 stores the axes, x first."""
        return tuple(int(n) for n in self.attributes["dimensions"])


def find_n5_dataset(location: Location, where: str) -> tuple[N5Dataset, VoxelGrid] | None:
    """The dataset in a folder or, of a multiscale group, its finest level; with its grid.

    Where several attributes give the voxel size: ``transform`` (COSEM, OpenOrganelle) of the
    dataset, then that of the group's ``multiscales``, then ``pixelResolution`` or ``resolution``
    with ``units`` and ``offset``, of the dataset or of a group around it, times the level's
    ``downsamplingFactors``.

    Args:
        location: a folder.
        where: the field and the file, for messages.

    Returns:
        None where the folder is not N5.

    Raises:
        InputError: the group has no level ``s0``, or what its metadata says is unusable.
    """
    dataset = _find_dataset(location, where)
    if dataset is None:
        return None
    try:
        if dataset.attributes.get("isLabelMultiset"):
            raise InputError(f"{where} is a label multiset of Paintera; export it as plain labels")
        return dataset, _grid_of(dataset)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where} has metadata that cannot be understood: {error!r}") from error


def _find_dataset(location: Location, where: str) -> N5Dataset | None:
    """The dataset, with the groups around it; None where there is no N5."""
    finest = f"{FINEST}/{N5_FILE}"
    files = location.read((N5_FILE, finest))
    found = {name: parse_json(content, location / name) for name, content in files.items()}
    groups = _groups_around(location)
    own = found.get(N5_FILE, {})
    if "dimensions" in own:
        return N5Dataset(location, own, groups)
    if "dimensions" in found.get(finest, {}):
        return N5Dataset(location / FINEST, found[finest], (own, *groups))
    if N5_FILE not in found:
        return None
    raise InputError(f"{where} is an N5 group, not a dataset; add the path of a dataset in it")


def _groups_around(location: Location) -> tuple[Json, ...]:
    """Attributes of the two folders around a dataset, where levels keep what they share."""
    groups = []
    for folder in location.parents[:2]:
        try:
            files = folder.read((N5_FILE,))
        except PermissionError:
            files = {}
        groups.append(parse_json(files[N5_FILE], folder / N5_FILE) if files else {})
    return tuple(groups)


def _grid_of(dataset: N5Dataset) -> VoxelGrid:
    """Grid of a dataset; malformed metadata ends in a lookup or type error."""
    attributes, name = dataset.attributes, dataset.location.url.rpartition("/")[2]
    axes = tuple(str(a).lower() for a in attributes.get("axes", AXES[: len(dataset.shape)]))
    space = [a for a in axes if a in ("x", "y", "z")]
    if len(space) != 3:
        return VoxelGrid(axes)
    for level in (attributes, *_levels(dataset.groups, name)):
        if "transform" in level:
            return _transform_grid(axes, level["transform"])
    for holder in (attributes, *dataset.groups):
        if "pixelResolution" in holder or "resolution" in holder:
            return _resolution_grid(axes, space, holder, _factors(dataset, name))
    return VoxelGrid(axes)


def _levels(groups: Sequence[Json], name: str) -> list[Json]:
    """What the nearest group's ``multiscales`` say of a level."""
    return [
        level
        for group in groups[:1]
        for multiscale in group.get("multiscales", ())
        for level in multiscale["datasets"]
        if level["path"] == name
    ]


def _transform_grid(axes: tuple[str, ...], transform: Json) -> VoxelGrid:
    """Grid by COSEM's transform, whose axes are named and in any order."""
    names = [str(a).lower() for a in transform["axes"]]
    return VoxelGrid(
        axes,
        pick_zyx([float(v) for v in transform["scale"]], names),
        pick_zyx([float(v) for v in transform["translate"]], names),
        pick_zyx(list(transform["units"]), names),
    )


def _resolution_grid(
    axes: tuple[str, ...], space: Sequence[str], holder: Json, factors: Sequence[float]
) -> VoxelGrid:
    """Grid by the resolution of the finest level.

    ::

        finest  |.|.|.|.|     offset is the centre of the first voxel
        level   |   .   |     (factor - 1) / 2 voxels of the finest level further on
    """
    found = holder.get("pixelResolution", holder.get("resolution"))
    units: Any = holder.get("units", "nm" if "resolution" in holder else None)
    if isinstance(found, Mapping):
        found, units = found["dimensions"], found.get("unit")
    finest = [float(v) for v in found]
    offset = [float(v) for v in holder.get("offset", (0, 0, 0))]
    moved = [
        o + (f - 1) / 2 * v if f != 1 else o
        for o, f, v in zip(offset, factors, finest, strict=True)
    ]
    return VoxelGrid(
        axes,
        pick_zyx([v * f for v, f in zip(finest, factors, strict=True)], space),
        pick_zyx(moved, space),
        pick_zyx(list(units) if isinstance(units, list) else [units] * 3, space),
        corner=None if "offset" in holder else (0.0, 0.0, 0.0),
    )


def _factors(dataset: N5Dataset, name: str) -> list[float]:
    """How many voxels of the finest level one voxel has, by the level or by its group."""
    found: Any = dataset.attributes.get("downsamplingFactors")
    number = name.removeprefix("s")
    if found is None and number.isdigit():
        for group in dataset.groups:
            found = group.get("scales", group.get("downsamplingFactors"))
            if found is not None:
                found = found[int(number)]
                break
    return [1.0, 1.0, 1.0] if found is None else [float(f) for f in found]
