"""Arrays in files, opened in the process that reads them and read box by box."""

import os
import re
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import h5py
import numpy as np
import tensorstore
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image

from custom.errors import InputError
from custom.locations import Location, short_reason
from custom.n5_metadata import N5Dataset
from custom.precomputed_metadata import PrecomputedScale
from custom.voxel_grid import VoxelGrid, default_axes
from custom.zarr_metadata import ZarrNode, plain_grid

Box = tuple[slice | int, ...]
SECTION_SUFFIXES = (".png", ".tif", ".tiff")


class FileArray:
    """N-dimensional array in a file.

    Nothing is open after construction or unpickling: the first ``read`` in a process opens the
    file, and it stays open. Reads may come from several threads.

    Args:
        shape: shape of the array.
        dtype: data type of the array; reads give it in native byte order.
        open_file: opens the file; picklable.
        read_box: reads a box from what ``open_file`` gave; picklable.
    """

    def __init__(
        self,
        shape: Sequence[int],
        dtype: np.dtype[Any],
        open_file: Callable[[], Any],
        read_box: Callable[[Any, Box], NDArray[Any]],
    ) -> None:
        self.shape = tuple(shape)
        self.dtype = dtype.newbyteorder("=")
        self._open_file = open_file
        self._read_box = read_box
        self._lock = threading.Lock()
        self._opened: tuple[int, Any] | None = None

    def read(self, box: Box) -> NDArray[Any]:
        """The voxels of a box; axes given by an integer are dropped."""
        with self._lock:
            opened = self._opened
            if opened is None or opened[0] != os.getpid():
                opened = self._opened = os.getpid(), self._open_file()
        return self._read_box(opened[1], box).astype(self.dtype, copy=False)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_lock", "_opened")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock(), _opened=None)


def zarr_array(node: ZarrNode, where: str) -> FileArray:
    """Array of Zarr v2 or v3, through TensorStore.

    Args:
        node: the array's metadata.
        where: the field and the file, for messages, here and below.
    """
    array = node.array or {}
    name = array["dtype"] if node.zarr_format == 2 else array["data_type"]
    driver = "zarr" if node.zarr_format == 2 else "zarr3"
    spec = {"driver": driver, "kvstore": node.location.kvstore()}
    metadata = ".zarray" if node.zarr_format == 2 else "zarr.json"
    return _tensorstore_array(spec, node.shape, name, node.location / metadata, where)


def n5_array(dataset: N5Dataset, where: str) -> FileArray:
    """Dataset of N5, through TensorStore, axes in the order in which N5 stores them."""
    spec = {"driver": "n5", "kvstore": dataset.location.kvstore()}
    dtype, metadata = dataset.attributes["dataType"], dataset.location / "attributes.json"
    return _tensorstore_array(spec, dataset.shape, dtype, metadata, where)


def precomputed_array(scale: PrecomputedScale, where: str) -> FileArray:
    """Scale of a Neuroglancer precomputed volume, through TensorStore; axes x, y, z, channel."""
    driver, kvstore = "neuroglancer_precomputed", scale.folder.kvstore()
    spec = {"driver": driver, "kvstore": kvstore, "scale_index": scale.index}
    return _tensorstore_array(spec, scale.shape, scale.dtype, scale.folder / "info", where)


def hdf5_array(path: Path, dataset: str, where: str) -> tuple[FileArray, VoxelGrid]:
    """Dataset of an HDF5 file; ``resolution`` and ``offset`` as in CREMI."""
    with _open_hdf5(str(path), where) as file:
        found = file.get(dataset) if dataset else None
        if not isinstance(found, h5py.Dataset):
            raise InputError(f"{where} names no array of that file; it holds: {_datasets(file)}")
        attributes = {
            key: value.tolist() if isinstance(value, np.ndarray) else value
            for key, value in found.attrs.items()
        }
        open_file = partial(_open_hdf5_dataset, str(path), dataset, where)
        grid = plain_grid(attributes, found.ndim)
        return FileArray(found.shape, found.dtype, open_file, index_array), grid


def tiff_array(path: Path, where: str) -> tuple[FileArray, VoxelGrid]:
    """TIFF stack, with the voxel size of its ImageJ or OME metadata."""
    with _open_tiff(str(path), where) as tiff:
        series = tiff.series[0]
        if series.dtype is None:
            raise InputError(f"{where} has pixels of an unknown data type")
        size = _ome_voxel_size(tiff) if tiff.is_ome else _imagej_voxel_size(tiff)
        axes = _tiff_axes(series.axes.lower())
        grid = VoxelGrid(axes) if size is None else VoxelGrid(axes, size[0], units=size[1])
        open_file = partial(_open_tiff_series, str(path), where)
        return FileArray(series.shape, series.dtype, open_file, partial(_read_tiff, where)), grid


def sections_array(folder: Path, where: str) -> tuple[FileArray, VoxelGrid]:
    """Folder of PNG or TIFF files, one section each, in natural order of their names."""
    paths = section_paths(folder)
    first = _read_section(paths[0], where)
    shape = (len(paths), *first.shape)
    read_box = partial(_read_sections, first.shape, where)
    return (
        FileArray(shape, first.dtype, partial(section_paths, folder), read_box),
        VoxelGrid(default_axes(len(shape))),
    )


def npy_array(path: Path, where: str) -> tuple[FileArray, VoxelGrid]:
    """NumPy's own format, memory-mapped."""
    try:
        found = _open_npy(path)
    except ValueError as error:
        raise InputError(f"{where} is not a readable .npy file: {error}") from error
    array = FileArray(found.shape, found.dtype, partial(_open_npy, path), index_array)
    return array, VoxelGrid(default_axes(found.ndim))


def section_paths(folder: Path) -> list[Path]:
    """PNG and TIFF files of a folder, ``9.png`` before ``10.png``."""
    paths = [p for p in folder.iterdir() if p.suffix.lower() in SECTION_SUFFIXES]
    return sorted(paths, key=lambda p: [int(s) if s.isdigit() else s for s in _runs(p.name)])


def _runs(name: str) -> list[str]:
    """Digits and the text between them, alternating, text first."""
    return re.split(r"(\d+)", name)


def index_array(array: Any, box: Box) -> NDArray[Any]:
    """Copy of a box of anything that is indexed like a NumPy array, maps of files among them."""
    return np.array(array[box])


def _tensorstore_array(
    spec: dict[str, Any], shape: Sequence[int], dtype: Any, metadata: Location, where: str
) -> FileArray:
    """Array that TensorStore opens by ``spec`` when it is first read; its ``metadata`` file."""
    try:
        native = np.dtype(dtype)
    except TypeError as error:
        raise InputError(f"{where} has the unsupported data type {dtype}") from error
    open_file = partial(_open_tensorstore, spec, where)
    return FileArray(shape, native, open_file, partial(_read_tensorstore, metadata, where))


def _open_tensorstore(spec: dict[str, Any], where: str) -> tensorstore.TensorStore:
    """The array, its first voxel at index 0."""
    try:
        store = tensorstore.open(spec, open=True, read=True).result()
    except ValueError as error:
        raise InputError(f"{where} cannot be opened: {short_reason(error)}") from error
    return store[tensorstore.d[:].translate_to[0]]


def _read_tensorstore(
    metadata: Location, where: str, store: tensorstore.TensorStore, box: Box
) -> NDArray[Any]:
    """A box; chunks that are not there are zeros only while the array itself is there."""
    try:
        values = np.asarray(store[box].read().result())
        gone = not values.all() and not metadata.is_file()
    except (ValueError, OSError) as error:
        raise InputError(f"{where} cannot be read: {short_reason(error)}") from error
    if gone:
        raise InputError(f"{where} cannot be read: '{metadata.url}' is no longer there")
    return values


def _open_hdf5(path: str, where: str) -> h5py.File:
    try:
        return h5py.File(path, "r", locking="best-effort")
    except OSError as error:
        raise InputError(f"{where} is not a readable HDF5 file: {error}") from error


def _open_hdf5_dataset(path: str, dataset: str, where: str) -> h5py.Dataset:
    return _open_hdf5(path, where)[dataset]


def _datasets(file: h5py.File) -> str:
    """Names of all datasets."""
    names: list[str] = []
    file.visititems(lambda n, o: names.append(n) if isinstance(o, h5py.Dataset) else None)
    return ", ".join(names) or "nothing"


def _open_npy(path: Path) -> NDArray[Any]:
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def _open_tiff(path: str, where: str) -> tifffile.TiffFile:
    try:
        return tifffile.TiffFile(path)
    except (tifffile.TiffFileError, OSError) as error:
        raise InputError(f"{where} is not a readable TIFF file: {error}") from error


def _open_tiff_series(path: str, where: str) -> Any:
    """Memory map where the pixels lie in one piece, else a Zarr array that decodes page by page."""
    tiff = _open_tiff(path, where)
    if tiff.series[0].dataoffset is not None:
        tiff.close()
        return tifffile.memmap(path, series=0, mode="r")
    array = zarr.open_array(tiff.series[0].aszarr(), mode="r")
    weakref.finalize(array, tiff.close)
    return array


def _read_tiff(where: str, array: Any, box: Box) -> NDArray[Any]:
    try:
        return index_array(array, box)
    except ValueError as error:
        raise InputError(f"{where} cannot be decoded: {error}") from error


def _tiff_axes(axes: str) -> tuple[str, ...]:
    """Axis names; without z, the pages (or time points) of a file are its sections."""
    if "z" not in axes:
        axes = re.sub("[qit]", "z", axes, count=1)
    return tuple(axes)


def _imagej_voxel_size(tiff: tifffile.TiffFile) -> Any:
    """Voxel size and units, zyx, from ImageJ's metadata; None where it says too little."""
    metadata = tiff.imagej_metadata or {}
    unit = str(metadata.get("unit", "pixel")).replace("\\u00B5", "u")
    tags = tiff.pages.first.tags
    if "spacing" not in metadata or unit.startswith("pixel") or "XResolution" not in tags:
        return None
    (pixels_y, units_y), (pixels_x, units_x) = tags["YResolution"].value, tags["XResolution"].value
    size = float(metadata["spacing"]), units_y / pixels_y, units_x / pixels_x
    return size, (unit, unit, unit)


def _ome_voxel_size(tiff: tifffile.TiffFile) -> Any:
    """Voxel size and units, zyx, from OME metadata; None where one is missing."""
    root = ElementTree.fromstring(tiff.ome_metadata or "<OME/>")
    pixels = root.find(".//{*}Pixels")
    names = [f"PhysicalSize{axis}" for axis in "ZYX"]
    if pixels is None or not set(names) <= set(pixels.keys()):
        return None
    size = tuple(float(pixels.get(name, "")) for name in names)
    return size, tuple(pixels.get(f"{name}Unit", "um") for name in names)


def _read_section(path: Path, where: str) -> NDArray[Any]:
    """One 2D image."""
    try:
        if path.suffix.lower() == ".png":
            with Image.open(path) as image:
                section = np.asarray(image)
        else:
            section = np.asarray(tifffile.imread(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: section {path.name} cannot be read: {error}") from error
    if section.ndim != 2:
        raise InputError(
            f"{where}: section {path.name} has shape {section.shape}; "
            f"sections are images with one channel"
        )
    return section


def _read_sections(
    shape: tuple[int, int], where: str, paths: Sequence[Path], box: Box
) -> NDArray[Any]:
    """Box of a folder of sections of equal ``shape``."""
    sections = []
    for path in np.asarray(paths, dtype=object)[box[0]]:
        section = _read_section(path, where)
        if section.shape != shape:
            raise InputError(
                f"{where}: section {path.name} has shape {section.shape}, the first one {shape}"
            )
        sections.append(section[box[1:]])
    return np.stack(sections)
