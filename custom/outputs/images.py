"""The OME-Zarr of a result: its images, their levels, and whether all of it is there.

Only metadata here, as JSON: whoever calls may be forked afterwards.
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

import custom
from custom.errors import InputError
from custom.locations import Location
from custom.outputs.pyramids import Level, levels_of
from custom.outputs.settings import CHUNK, OutputSettings
from custom.volumes import declare_ome_zarr_array
from custom.voxel_grid import Triple
from custom.zarr_metadata import (
    Json,
    ZarrNode,
    array_metadata,
    children,
    find_array,
    ome_level,
    read_node,
    update_group,
    write_array,
)

MARKER = "custom_inference"  # attribute of the root: who wrote it, and whether it is complete
SEGMENTATION = "labels/segmentation"


def begin(store: Path, version: str = "0.4") -> None:
    """Mark an OME-Zarr as a result of inference that is being written; it may be there already.

    One of another version is removed: a folder that is a group of both is read in either way.

    Args:
        store: the OME-Zarr, a result of inference where it is there.
        version: of OME-Zarr.
    """
    if is_result(store) and _version(store) != version:
        shutil.rmtree(store)
    _mark(store, version, False)


def finish(store: Path) -> None:
    """List all levels of all images that are there, and mark the result as complete.

    Args:
        store: the OME-Zarr, all of whose arrays are written.
    """
    for name in image_names(store):
        list_levels(store, name)
    _mark(store, _version(store), True)


def is_result(store: Path) -> bool:
    """Whether an inference wrote this, or began to."""
    return store.is_dir() and MARKER in _attributes(store)


def is_blockwise(store: Path) -> bool:
    """Whether an inference block by block wrote this, or began to: its state lies beside it."""
    return isinstance(_attributes(store).get(MARKER), Mapping)


def is_complete(store: Path) -> bool:
    """Whether an inference wrote this and came to its end."""
    mark = _attributes(store).get(MARKER)
    return mark is not None and (not isinstance(mark, Mapping) or bool(mark["complete"]))


def create(
    store: Path,
    name: str,
    shape: Sequence[int],
    dtype: DTypeLike,
    voxel_size_nm: Triple,
    offset_nm: Triple,
    settings: OutputSettings,
    attributes: Json,
) -> Path:
    """Create an image of one level, ``<store>/<name>/s0``, filled with 0.

    One that is there with the same shape, type and chunks stays as it is, with its voxels.

    Args:
        store: the OME-Zarr.
        name: "affinities", "labels/segmentation", and so on.
        shape: (D, H, W) or (C, D, H, W).
        dtype: of the voxels.
        voxel_size_nm: zyx.
        offset_nm: position of the centre of voxel (0, 0, 0), zyx.
        settings: how it is written.
        attributes: of the image and of the array.

    Returns:
        Folder of the array; ``custom.volumes.open_array`` opens it.

    Raises:
        InputError: another array is there.
    """
    axes, chunks = "czyx"[-len(shape) :], (1, CHUNK, CHUNK, CHUNK)[-len(shape) :]
    cut = [min(chunk, length) for chunk, length in zip(chunks, shape, strict=True)]
    shards = _shards(shape, settings)
    wanted = array_metadata(shape, np.dtype(dtype), cut, axes, settings.version, shards)
    path = store.absolute() / name / "s0"
    node = read_node(Location(str(path)))
    if node is None or node.array is None:
        attributes = {**attributes, "voxel_size_nm": list(voxel_size_nm)}
        return declare_ome_zarr_array(
            store, name, shape, dtype, axes, voxel_size_nm, offset_nm, cut, attributes,
            settings.version, shards,
        )  # fmt: skip
    if any(node.array.get(key) != value for key, value in wanted.items()):
        raise InputError(
            f"{path} exists with another shape, type or version; remove it or choose another "
            f"output_dir"
        )
    return path


def remove(store: Path, name: str) -> None:
    """Remove an image with all its levels, where it is there."""
    shutil.rmtree(store / name, ignore_errors=True)
    if Path(name).parts[0] == "labels" and (store / "labels").is_dir():
        labels = store / "labels"
        update_group(labels, _version(labels), {"labels": children(labels)}, {})


def image_names(store: Path) -> list[str]:
    """All images of a result, as "affinities" or "labels/segmentation"."""
    found = [name for name in children(store) if name != "labels"]
    labels = children(store / "labels") if (store / "labels").is_dir() else []
    return [*found, *(f"labels/{name}" for name in labels)]


def levels(store: Path, name: str) -> list[Level]:
    """The levels that an image has when its pyramid is complete.

    Args:
        store: the OME-Zarr.
        name: of the image.
    """
    (d, h, w), (size, _) = _node(store / name / "s0").shape[-3:], _place(store, name)
    return levels_of((d, h, w), size, CHUNK)


def declare_level(store: Path, name: str, number: int) -> Path:
    """Create the array of a level, filled with 0, where there is none; it is not listed yet.

    Args:
        store: the OME-Zarr.
        name: of the image.
        number: of the level, 1 for the first below the image itself.

    Returns:
        Folder of the array.
    """
    path = store / name / f"s{number}"
    if read_node(Location(str(path))) is None:
        finest = _node(store / name / "s0")
        shape = (*finest.shape[:-3], *levels(store, name)[number].shape)
        metadata = {**(finest.array or {}), "shape": list(shape)}
        write_array(path, metadata, {})
    return path


def remove_levels(store: Path, name: str, numbers: Sequence[int]) -> None:
    """Remove levels of an image, where they are there."""
    if (store / name / "s0").is_dir():
        for number in numbers:
            shutil.rmtree(store / name / f"s{number}", ignore_errors=True)
        list_levels(store, name)


def list_levels(store: Path, name: str) -> None:
    """Name the levels that are there in the image's metadata, with their scale and position.

    Args:
        store: the OME-Zarr.
        name: of the image.
    """
    group = _node(store / name)
    axes = "".join(axis["name"] for axis in group.multiscales[0]["axes"])
    _, offset = _place(store, name)
    datasets = [
        ome_level(f"s{number}", axes, level.voxel_size_nm, level.offset_nm(offset))
        for number, level in enumerate(levels(store, name))
        if (store / name / f"s{number}").is_dir()
    ]
    multiscale = {**group.multiscales[0], "datasets": datasets}
    update_group(store / name, _version(store / name), {"multiscales": [multiscale]}, {})


def _mark(store: Path, version: str, complete: bool) -> None:
    mark = {"version": custom.__version__, "complete": complete}
    update_group(store, version, {}, {MARKER: mark})


def _version(group: Path) -> str:
    """Of OME-Zarr."""
    return "0.4" if _node(group).zarr_format == 2 else "0.5"


def _place(store: Path, name: str) -> tuple[Triple, Triple]:
    """Voxel size and position of an image's finest level."""
    _, grid = find_array(_node(store / name / "s0"), str(store / name))
    size, offset, _ = grid.in_nanometers(None, str(store / name))
    return size, offset


def _shards(shape: Sequence[int], settings: OutputSettings) -> list[int] | None:
    """What one file of an image holds: whole chunks, and no more than there are."""
    if settings.shards is None:
        return None
    chunks = [min(CHUNK, length) for length in shape[-3:]]
    edges = [
        min(settings.shards, math.ceil(length / chunk) * chunk) if length > CHUNK else chunk
        for length, chunk in zip(shape[-3:], chunks, strict=True)
    ]
    return [*[1] * (len(shape) - 3), *edges]


def _attributes(path: Path) -> Json:
    """Attributes of a group; none where there is no readable one."""
    try:
        node = read_node(Location(str(path)))
    except (OSError, InputError):  # no such folder, or no JSON in it
        return {}
    return {} if node is None else node.attributes


def _node(path: Path) -> ZarrNode:
    """A group or array that is there."""
    node = read_node(Location(str(path.absolute())))
    if node is None:
        raise InputError(f"there is no Zarr group or array at '{path}'; run inference again")
    return node
