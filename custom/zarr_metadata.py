"""Zarr groups and arrays as their JSON describes them: plain v2 and v3, OME-Zarr 0.4 and 0.5."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from custom.errors import InputError
from custom.files import write_atomically
from custom.locations import Location
from custom.voxel_grid import Triple, VoxelGrid, default_axes, pick_zyx

Json = Mapping[str, Any]
ZARR_FILES = ("zarr.json", ".zarray", ".zgroup", ".zattrs")


@dataclass(frozen=True)
class ZarrNode:
    """A group or an array.

    Args:
        location: its folder.
        zarr_format: 2 or 3.
        attributes: the user's attributes.
        array: the array's own metadata, None for a group.
    """

    location: Location
    zarr_format: int
    attributes: Json
    array: Json | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array; () for a group."""
        return () if self.array is None else tuple(self.array["shape"])

    @property
    def multiscales(self) -> Sequence[Json]:
        """OME-Zarr ``multiscales``, empty when there are none."""
        found = self.attributes.get("ome", self.attributes).get("multiscales", ())
        return tuple(found)


def read_node(location: Location) -> ZarrNode | None:
    """Metadata of the Zarr group or array in a folder, None when it is neither.

    Raises:
        OSError: the folder cannot be read.
    """
    files = location.read(ZARR_FILES)
    found = {name: parse_json(files[name], location / name) for name in files}
    if "zarr.json" in found:
        node = found["zarr.json"]
        array = node if node.get("node_type") == "array" else None
        return ZarrNode(location, 3, node.get("attributes", {}), array)
    if not found:
        return None
    return ZarrNode(location, 2, found.get(".zattrs", {}), found.get(".zarray"))


def children(path: Path) -> list[str]:
    """Names of the groups and arrays in a group."""
    return sorted(p.name for p in path.iterdir() if p.is_dir() and read_node(Location(str(p))))


def parse_json(content: bytes, location: Location) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        InputError: it holds something else.
    """
    try:
        found = json.loads(content)
    except ValueError as error:
        raise InputError(f"{location.url} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{location.url} should hold a JSON object")
    return found


def find_array(node: ZarrNode, where: str) -> tuple[ZarrNode, VoxelGrid]:
    """The array itself, or the finest level of a multiscale group; with its grid.

    Args:
        node: a group or an array.
        where: the field and the file, for messages.

    Raises:
        InputError: the group has no multiscales, or what its metadata says is unusable.
    """
    try:
        return _find_array(node, where)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where} has metadata that cannot be understood: {error!r}") from error


def plain_grid(attributes: Json, ndim: int, names: Sequence[str] | None = None) -> VoxelGrid:
    """Grid from the attributes ``voxel_size`` or ``resolution``, ``offset`` and ``units``.

    Without ``units`` they are nanometres. ``offset`` is taken for the position of the first voxel,
    as a translation is in OME-Zarr.

    Args:
        attributes: attributes of the array; ``axis_names`` may name its axes.
        ndim: number of axes of the array.
        names: its axes by another source, used when ``axis_names`` is not there.
    """
    axes = tuple(str(a).lower().strip("^") for a in attributes.get("axis_names", names or ()))
    axes = axes if {"z", "y", "x"} <= set(axes) else default_axes(ndim)
    space = [a for a in axes if a in ("z", "y", "x")]
    if len(space) != 3:
        return VoxelGrid(axes)
    scale = attributes.get("voxel_size", attributes.get("resolution"))
    units = attributes.get("units", "nm")
    return VoxelGrid(
        axes,
        None if scale is None else pick_zyx(_floats(scale), space),
        pick_zyx(_floats(attributes["offset"]), space) if "offset" in attributes else None,
        pick_zyx([units] * 3 if isinstance(units, str) else list(units), space),
    )


def ome_multiscales(
    name: str, axes: str, voxel_size_nm: Triple, offset_nm: Triple, version: str
) -> dict[str, Any]:
    """``multiscales`` of one level ``s0``, as a dictionary to be merged into the OME-Zarr keys."""
    multiscale: dict[str, Any] = {
        "name": name,
        "axes": [
            {"name": "c", "type": "channel"}
            if axis == "c"
            else {"name": axis, "type": "space", "unit": "nanometer"}
            for axis in axes
        ],
        "datasets": [ome_level("s0", axes, voxel_size_nm, offset_nm)],
    }
    if version == "0.4":
        multiscale["version"] = version
    return {"multiscales": [multiscale]}


def ome_level(path: str, axes: str, voxel_size_nm: Triple, offset_nm: Triple) -> dict[str, Any]:
    """An entry of the ``datasets`` of ``multiscales``."""
    channels = len(axes) - 3
    transforms = [
        {"type": "scale", "scale": [1.0] * channels + list(voxel_size_nm)},
        {"type": "translation", "translation": [0.0] * channels + list(offset_nm)},
    ]
    return {"path": path, "coordinateTransformations": transforms}


def update_group(path: Path, version: str, ome: Json, attributes: Json) -> None:
    """Create a group, or add to the attributes of one that is there.

    Args:
        path: folder of the group.
        version: of OME-Zarr: "0.4" (Zarr v2) or "0.5" (Zarr v3).
        ome: OME-Zarr's own keys.
        attributes: the user's attributes.
    """
    path.mkdir(parents=True, exist_ok=True)
    node = read_node(Location(str(path)))
    known = {} if node is None else dict(node.attributes)
    known.update(attributes)
    if version == "0.4":
        _write_json(path / ".zgroup", {"zarr_format": 2})
        _write_json(path / ".zattrs", {**known, **ome})
        return
    if ome:
        known["ome"] = {"version": version, **known.get("ome", {}), **ome}
    group = {"zarr_format": 3, "node_type": "group", "attributes": known}
    _write_json(path / "zarr.json", group)


def array_metadata(
    shape: Sequence[int],
    dtype: np.dtype[Any],
    chunks: Sequence[int],
    axes: str,
    version: str,
    shards: Sequence[int] | None = None,
) -> dict[str, Any]:
    """What describes an array that is filled with 0 and compressed by zstd, without attributes.

    Args:
        shape: of the array.
        dtype: of the array.
        chunks: of the array.
        axes: a letter for each axis.
        version: of OME-Zarr: "0.4" (Zarr v2) or "0.5" (Zarr v3).
        shards: for Zarr v3: what one file holds, whole chunks of it; None: one chunk.
    """
    fill = dtype.type(0).item()
    if version == "0.4":
        return {
            "zarr_format": 2, "shape": list(shape), "chunks": list(chunks), "dtype": dtype.str,
            "compressor": {"id": "zstd", "level": 3}, "fill_value": fill, "order": "C",
            "filters": None, "dimension_separator": "/",
        }  # fmt: skip
    endian = {"configuration": {"endian": sys.byteorder}} if dtype.itemsize > 1 else {}
    codecs: list[Any] = [{"name": "bytes", **endian}]
    codecs += [{"name": "zstd", "configuration": {"level": 3, "checksum": False}}]
    if shards is not None:
        index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        settings = {"chunk_shape": list(chunks), "codecs": codecs, "index_codecs": index}
        codecs = [{"name": "sharding_indexed", "configuration": settings}]
    grid = {"chunk_shape": list(chunks if shards is None else shards)}
    return {
        "zarr_format": 3, "node_type": "array", "shape": list(shape), "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": grid},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill, "codecs": codecs, "dimension_names": list(axes),
    }  # fmt: skip


def write_array(path: Path, metadata: Json, attributes: Json) -> None:
    """Make a folder an array.

    Args:
        path: the folder.
        metadata: of ``array_metadata``.
        attributes: the user's attributes.
    """
    if metadata["zarr_format"] == 2:
        _write_json(path / ".zattrs", attributes)
        _write_json(path / ".zarray", metadata)
    else:
        _write_json(path / "zarr.json", {**metadata, "attributes": dict(attributes)})


def _find_array(node: ZarrNode, where: str) -> tuple[ZarrNode, VoxelGrid]:
    """Body of ``find_array``; malformed metadata ends in a lookup or type error."""
    if node.array is not None:
        return node, _grid_of(node, where)
    if not node.multiscales:
        known = [] if node.location.remote else children(node.location.path)
        names = ", ".join(known) or "the path of an array in it"
        raise InputError(f"{where} is a Zarr group, not an array; add what to read ({names})")
    levels = [
        (_multiscale_grid(node.multiscales[0], level, where), level["path"])
        for level in node.multiscales[0]["datasets"]
    ]
    grid, name = min(levels, key=lambda level: math.prod(level[0].scale or (1.0, 1.0, 1.0)))
    found = read_node(node.location / name)
    if found is None or found.array is None:
        raise InputError(
            f"{where} lists the level '{name}' in its multiscales but does not hold it"
        )
    return found, grid


def _grid_of(node: ZarrNode, where: str) -> VoxelGrid:
    """Grid of an array: from the multiscales of a group around it, else its own attributes."""
    for folder in node.location.parents:
        group = _group_at(folder)
        if group is None:
            break
        for multiscale in group.multiscales:
            for level in multiscale["datasets"]:
                if folder / level["path"] == node.location:
                    return _multiscale_grid(multiscale, level, where)
    names = (node.array or {}).get("dimension_names")
    return plain_grid(node.attributes, len(node.shape), names)


def _group_at(folder: Location) -> ZarrNode | None:
    """Metadata of a folder around an array; None also where it may not be read."""
    try:
        return read_node(folder)
    except PermissionError:
        return None


def _multiscale_grid(multiscale: Json, level: Json, where: str) -> VoxelGrid:
    """Grid of one level: its own transformations, then those of the whole multiscale."""
    axes = [{"name": a} if isinstance(a, str) else a for a in multiscale["axes"]]
    names = tuple(str(a["name"]).lower() for a in axes)
    scale, translation, scaled = [1.0] * len(axes), [0.0] * len(axes), False
    moved = False
    for transform in (
        *level.get("coordinateTransformations", ()),
        *multiscale.get("coordinateTransformations", ()),
    ):
        kind = transform["type"]
        if kind == "scale":
            factors, scaled = _floats(transform["scale"]), True
            scale = [s * f for s, f in zip(scale, factors, strict=True)]
            translation = [t * f for t, f in zip(translation, factors, strict=True)]
        elif kind == "translation":
            moves, moved = _floats(transform["translation"]), True
            translation = [t + m for t, m in zip(translation, moves, strict=True)]
        elif kind != "identity":
            raise InputError(f"{where} has the unsupported coordinate transformation '{kind}'")
    if not {"z", "y", "x"} <= set(names):
        return VoxelGrid(names)
    return VoxelGrid(
        names,
        pick_zyx(scale, names) if scaled else None,
        pick_zyx(translation, names) if moved else None,
        pick_zyx([a.get("unit") for a in axes], names),
    )


def _floats(values: Sequence[Any]) -> list[float]:
    return [float(v) for v in values]


def _write_json(path: Path, value: Json) -> None:
    write_atomically(path, json.dumps(value, indent=2).encode())
