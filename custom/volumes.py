"""Volumes in any of the field's formats, read lazily box by box; and writable OME-Zarr arrays."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorstore
from funlib.geometry import Roi
from numpy.typing import DTypeLike, NDArray

from custom.affine_arrays import nifti_array, nrrd_array
from custom.errors import InputError
from custom.file_arrays import (
    Box,
    FileArray,
    hdf5_array,
    n5_array,
    npy_array,
    precomputed_array,
    section_paths,
    sections_array,
    tiff_array,
    zarr_array,
)
from custom.locations import FORMATS, Location, parse_location
from custom.n5_metadata import find_n5_dataset
from custom.precomputed_metadata import find_scale
from custom.voxel_grid import Triple, VoxelGrid, zyx_order
from custom.zarr_metadata import (
    Json,
    array_metadata,
    children,
    find_array,
    ome_multiscales,
    read_node,
    update_group,
    write_array,
)

HDF5_SUFFIXES = (".h5", ".hdf", ".hdf5")
TIFF_SUFFIXES = (".tif", ".tiff")
NRRD_SUFFIXES = (".nrrd", ".nhdr")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
OME_VERSIONS = ("0.4", "0.5")

Opened = tuple[FileArray, VoxelGrid, Location]  # an array, its grid and its own place


@dataclass(frozen=True)
class VolumeMetadata:
    """Shape, type and place of a volume.

    Args:
        shape: (D, H, W).
        dtype: NumPy's name of the data type.
        voxel_size_nm: edge lengths of a voxel, zyx.
        offset_nm: position of the centre of voxel (0, 0, 0), zyx (OME-Zarr's translation).
        corner_nm: position of its corner, zyx, where the file counts from corners or states no
            position; counts between volumes that both have one, instead of ``offset_nm``.

    Raises:
        ValueError: a length is not positive.
    """

    shape: tuple[int, int, int]
    dtype: str
    voxel_size_nm: Triple
    offset_nm: Triple = (0.0, 0.0, 0.0)
    corner_nm: Triple | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise ValueError(f"a volume cannot be empty, got shape {self.shape}")
        if min(self.voxel_size_nm) <= 0:
            raise ValueError(f"voxel_size_nm must be positive, got {self.voxel_size_nm}")

    @property
    def roi(self) -> Roi:
        """The whole volume in its own voxels."""
        return Roi((0, 0, 0), self.shape)


class BoxArray(Protocol):
    """An array that is read box by box, as ``FileArray``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""

    def read(self, box: Box) -> NDArray[Any]:
        """The voxels of a box; axes given by an integer are dropped."""


class Volume:
    """A 3D array in a file, axes brought to z, y, x.

    It may be pickled, and read from several threads and processes; a process opens the file when it
    first reads.

    Args:
        path: the array's own path: file, folder, or file and name of the array in it.
        metadata: shape, type and place, zyx.
        array: the array as the file has it.
        order: which axes of ``array`` are z, y and x; all others are singletons.
    """

    def __init__(
        self,
        path: str,
        metadata: VolumeMetadata,
        array: BoxArray,
        order: tuple[int, int, int] = (0, 1, 2),
    ) -> None:
        self.path = path
        self.metadata = metadata
        self._array = array
        self._order = order

    def read(self, roi: Roi) -> NDArray[Any]:
        """The voxels of a box.

        Args:
            roi: box in voxels, zyx, inside the volume.

        Returns:
            (D, H, W) in the data type of the file.

        Raises:
            ValueError: the box sticks out of the volume.
        """
        if not self.metadata.roi.contains(roi):
            raise ValueError(
                f"{roi} sticks out of {self.path}, whose shape is {self.metadata.shape}"
            )
        box: list[slice | int] = [0] * len(self._array.shape)
        for axis, extent in zip(self._order, roi.to_slices(), strict=True):
            box[axis] = extent
        present = sorted(self._order)
        return self._array.read(tuple(box)).transpose([present.index(a) for a in self._order])


def open_volume(
    path: str | Path, voxel_size_nm: Sequence[float] | None = None, field: str = "raw"
) -> Volume:
    """Open a volume for reading; only metadata is read here.

    Args:
        path: ``x.zarr`` or a group in it with multiscales (their finest level), an array in it
            (``x.zarr/raw/s0``), OME-Zarr 0.4 and 0.5, Zarr v2 and v3; ``x.n5/path/s0``; a
            Neuroglancer precomputed volume, or a scale of it by its key (``x/16_16_40``); or the
            URL of one of these (``s3://``, ``gs://``, ``http://``, ``https://``). A prefix
            (``precomputed://``, ``n5://``, ``zarr://``) says which it must be. On this machine
            also ``x.h5/volumes/raw``, a TIFF stack, a folder of PNG or TIFF sections, ``.nrrd``,
            ``.nii``, ``.nii.gz`` and ``.npy``.
        voxel_size_nm: voxel size, zyx; wins over the file's own.
        field: what the volume is for the user, for messages.

    Raises:
        InputError: nothing there, not a 3D volume of one channel, or no voxel size anywhere.
    """
    where = f"{field} '{path}'"
    prefix, location = parse_location(str(path), where)
    if prefix is None and not location.remote:
        where = f"{field} '{location.url}'"
    try:
        array, grid, location = _open(location, prefix, where)
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error}") from error
    except InputError as error:
        if where in str(error):
            raise
        raise InputError(f"{where} cannot be read: {error}") from error
    order = zyx_order(grid.axes, array.shape, where)
    if array.dtype.kind not in "biuf":
        raise InputError(f"{where} has the data type {array.dtype}; convert it to real numbers")
    size, offset, corner = grid.in_nanometers(voxel_size_nm, where)
    shape = (array.shape[order[0]], array.shape[order[1]], array.shape[order[2]])
    if min(shape) < 1:
        raise InputError(f"{where} is empty: its shape is {array.shape}")
    metadata = VolumeMetadata(shape, array.dtype.name, size, offset, corner)
    return Volume(location.url, metadata, array, order)


def create_ome_zarr_array(
    group_path: str | Path,
    array_path: str,
    shape: Sequence[int],
    dtype: DTypeLike,
    axes: str,
    voxel_size_nm: Triple,
    offset_nm: Triple,
    chunks: Sequence[int],
    attributes: Mapping[str, Any],
    version: str = "0.4",
    shards: Sequence[int] | None = None,
) -> tensorstore.TensorStore:
    """Create ``<group_path>/<array_path>/s0``, an OME-Zarr image of one level.

    Args:
        group_path: the OME-Zarr; created where it is missing.
        array_path: group of the image in it, as ``affinities`` or ``labels/segmentation``; what
            lies under ``labels`` becomes a label image.
        shape: shape of the array, in the order of ``axes``.
        dtype: data type of the array.
        axes: "zyx" or "czyx".
        voxel_size_nm: voxel size, zyx.
        offset_nm: position of the centre of voxel (0, 0, 0), zyx.
        chunks: chunk of the array, in the order of ``axes``; cut to ``shape``.
        attributes: attributes for the image's group and for the array itself.
        version: "0.4" (Zarr v2) or "0.5" (Zarr v3).
        shards: with "0.5": what one file holds, in the order of ``axes``; None: one chunk.

    Returns:
        The array, filled with 0 and open for writing.

    Raises:
        ValueError: arguments that do not fit together.
        InputError: there is an array already.
    """
    path = declare_ome_zarr_array(
        group_path, array_path, shape, dtype, axes, voxel_size_nm, offset_nm, chunks, attributes,
        version, shards,
    )  # fmt: skip
    return open_array(path)


def declare_ome_zarr_array(
    group_path: str | Path,
    array_path: str,
    shape: Sequence[int],
    dtype: DTypeLike,
    axes: str,
    voxel_size_nm: Triple,
    offset_nm: Triple,
    chunks: Sequence[int],
    attributes: Mapping[str, Any],
    version: str = "0.4",
    shards: Sequence[int] | None = None,
) -> Path:
    """Like ``create_ome_zarr_array``, but TensorStore is not touched: a fork may follow.

    Returns:
        Folder of the array.
    """
    if axes not in ("zyx", "czyx") or not len(axes) == len(shape) == len(chunks):
        raise ValueError(f"axes {axes!r}, shape {shape} and chunks {chunks} do not fit together")
    if version not in OME_VERSIONS:
        raise ValueError(f"version must be one of {OME_VERSIONS}, got {version!r}")
    image = Path(group_path).absolute() / array_path
    if (image / "s0").exists():
        raise InputError(f"{image / 's0'} exists already; remove it or choose another output path")
    _create_parents(Path(group_path).absolute(), array_path, version)
    ome = ome_multiscales(image.name, axes, voxel_size_nm, offset_nm, version)
    if Path(array_path).parts[0] == "labels":
        ome["image-label"] = {"version": version}
    update_group(image, version, ome, attributes)
    chunks = [min(c, s) for c, s in zip(chunks, shape, strict=True)]
    metadata = array_metadata(shape, np.dtype(dtype), chunks, axes, version, shards)
    write_array(image / "s0", metadata, attributes)
    return image / "s0"


def open_array(path: Path) -> tensorstore.TensorStore:
    """A Zarr array on this machine, for reading and writing."""
    driver = "zarr3" if (path / "zarr.json").exists() else "zarr"
    spec = {"driver": driver, "kvstore": Location(str(path)).kvstore()}
    return tensorstore.open(spec).result()


def _open(location: Location, prefix: str | None, where: str) -> Opened:
    """Array, its grid and its own location, by what lies at ``location``."""
    found = _open_chunked(location, prefix, where)
    if found is not None:
        return found
    if prefix is not None or location.remote:
        raise InputError(
            f"{where} does not exist: there is no metadata of {prefix or ' or '.join(FORMATS)}, "
            f"the formats that URLs may have"
        )
    path = location.path
    if path.is_dir():
        raise InputError(
            f"{where} is a folder with neither Zarr, N5 or precomputed metadata nor PNG or TIFF "
            f"sections"
        )
    if path.is_file():
        return *_open_file(path, where), location
    for parent in path.parents:
        if parent.suffix.lower() in HDF5_SUFFIXES and parent.is_file():
            return *hdf5_array(parent, path.relative_to(parent).as_posix(), where), location
    raise InputError(_not_there(path, where))


def _open_chunked(location: Location, prefix: str | None, where: str) -> Opened | None:
    """What is kept in a folder; None where it is none of the formats.

    A bucket may deny what it does not hold, so a denial counts only where nothing is found.
    """
    if not location.remote and location.path.is_file():
        return None
    denied: PermissionError | None = None
    for name, reader in (
        ("zarr", _open_zarr),
        ("n5", _open_n5),
        ("sections", _open_sections),
        ("precomputed", _open_precomputed),
    ):
        if prefix in (None, name):
            try:
                found = reader(location, where)
            except PermissionError as error:
                denied = error
            else:
                if found is not None:
                    return found
    if denied is not None:
        raise denied
    return None


def _open_zarr(location: Location, where: str) -> Opened | None:
    node = read_node(location)
    if node is None:
        return None
    node, grid = find_array(node, where)
    return zarr_array(node, where), grid, node.location


def _open_n5(location: Location, where: str) -> Opened | None:
    found = find_n5_dataset(location, where)
    if found is None:
        return None
    dataset, grid = found
    return n5_array(dataset, where), grid, dataset.location


def _open_sections(location: Location, where: str) -> Opened | None:
    if location.remote or not location.path.is_dir() or not section_paths(location.path):
        return None
    return *sections_array(location.path, where), location


def _open_precomputed(location: Location, where: str) -> Opened | None:
    found = find_scale(location, where)
    if found is None:
        return None
    scale, grid = found
    return precomputed_array(scale, where), grid, scale.folder / scale.key


def _open_file(path: Path, where: str) -> tuple[FileArray, VoxelGrid]:
    """Array and grid of a file, by its suffix."""
    name = path.name.lower()
    readers: dict[tuple[str, ...], Callable[[Path, str], tuple[FileArray, VoxelGrid]]] = {
        (".npy",): npy_array,
        TIFF_SUFFIXES: tiff_array,
        NRRD_SUFFIXES: nrrd_array,
        NIFTI_SUFFIXES: nifti_array,
        HDF5_SUFFIXES: lambda path, where: hdf5_array(path, "", where),
    }
    for suffixes, reader in readers.items():
        if name.endswith(suffixes):
            return reader(path, where)
    raise InputError(
        f"{where} has an unknown format; known are folders of Zarr, N5 or Neuroglancer "
        f"precomputed, .h5, .hdf5, .tif, .tiff, .nrrd, .nii, .nii.gz, .npy and folders of PNG or "
        f"TIFF sections"
    )


def _not_there(path: Path, where: str) -> str:
    """Sentence on a missing path, with what a Zarr group around it holds instead."""
    parent = next(p for p in path.parents if p.exists())
    if not parent.is_dir() or read_node(Location(str(parent))) is None:
        return f"{where} does not exist"
    names = children(parent)
    close = get_close_matches(path.relative_to(parent).parts[0], names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"{where} does not exist: {parent} holds {', '.join(names) or 'nothing'}{hint}"


def _create_parents(group: Path, array_path: str, version: str) -> None:
    """Groups above an image, and the index of label images."""
    update_group(group, version, {}, {})
    *parents, name = Path(array_path).parts
    for parent in parents:
        group = group / parent
        update_group(group, version, {}, {})
    if parents == ["labels"]:
        node = read_node(Location(str(group)))
        attributes: Json = node.attributes if node else {}
        known = attributes.get("ome", attributes).get("labels", [])
        update_group(group, version, {"labels": sorted({*known, name})}, {})
