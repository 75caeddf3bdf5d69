"""NRRD and NIfTI: arrays, stored x first, whose header places them by an affine map."""

import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from custom.errors import InputError
from custom.file_arrays import Box, FileArray, index_array
from custom.voxel_grid import VoxelGrid, default_axes, pick_zyx

WORLD = ("x", "y", "z")
ROTATION = 1e-3  # of a voxel's length: what rounding in headers may amount to
BYTES = {"char": 1, "short": 2, "int": 4, "longlong": 8, "float": 4, "double": 8}
DAMAGED = (OSError, EOFError, ValueError, KeyError, zlib.error, nrrd.NRRDError, ImageFileError)


def nrrd_array(path: Path, where: str) -> tuple[FileArray, VoxelGrid]:
    """NRRD, attached or detached; mapped into memory where it is not compressed.

    Args:
        path: of the file or of its header.
        where: the field and the file, for messages, here and below.

    Raises:
        InputError: a header that makes no sense, or axes that are not those of the space.
    """
    header, _ = _read_nrrd_header(path, where)
    try:
        grid = _nrrd_grid(header, where)
        shape = tuple(int(n) for n in header["sizes"])
        array = FileArray(shape, _nrrd_type(header), partial(_open_nrrd, path, where), index_array)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{where} has a header that cannot be understood: {error!r}") from error
    return array, grid


def nrrd_data_file(path: Path) -> Path | None:
    """The file that a detached NRRD's header names for its data; None for an attached one.

    Args:
        path: of the header.

    Raises:
        InputError: not NRRD.
    """
    header, _ = _read_nrrd_header(path, f"'{path}'")
    name = header.get("datafile", header.get("data file"))
    return None if name is None else path.parent / name


def nifti_array(path: Path, where: str) -> tuple[FileArray, VoxelGrid]:
    """NIfTI; read box by box where it is not compressed, else whole when first read.

    Raises:
        InputError: not NIfTI, or axes that are not those of the space.
    """
    image = _load_nifti(path, where)
    header, proxy = image.header, image.dataobj
    placed = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
    zooms = [*header.get_zooms(), 1, 1][:3]
    affine = image.affine if placed else np.diag([*zooms, 1])
    columns = [[_as_written(v) for v in affine[:3, i]] for i in range(min(3, len(image.shape)))]
    unit = header.get_xyzt_units()[0]
    grid = affine_grid(
        [*columns, *[None] * (len(image.shape) - 3)],
        [_as_written(v) for v in affine[:3, 3]],
        [None if unit == "unknown" else unit] * 3,
        where,
    )
    scaled = (proxy.slope, proxy.inter) != (1, 0)
    dtype = np.dtype(np.float32) if scaled else proxy.dtype
    open_file, read_box = partial(_open_nifti, path, where), partial(_read_nifti, where)
    return FileArray(image.shape, dtype, open_file, read_box), grid


def affine_grid(
    columns: Sequence[Sequence[float] | None],
    origin: Sequence[float],
    units: Sequence[str | None],
    where: str,
) -> VoxelGrid:
    """Grid of an array whose axes lie along those of the space, in any order.

    An axis that runs backwards stays as it is stored, and its position is counted along it: what
    one program wrote beside each other stays beside each other.

    Args:
        columns: step of each axis of the array in x, y, z; None for one that is not of the space.
        origin: centre of the first voxel in x, y, z.
        units: of x, y, z.

    Raises:
        InputError: an axis is oblique.
    """
    axes = tuple("c" if column is None else _axis(column, where) for column in columns)
    steps = [column for column in columns if column is not None]
    if sorted(set(axes) - {"c"}) != sorted(a for a in axes if a != "c"):
        raise InputError(f"{where} has a header that gives two axes one direction")
    if len(steps) != 3:
        return VoxelGrid(axes)
    step = {a: column[WORLD.index(a)] for a, column in zip(axes, columns, strict=True) if column}
    position = [o if step[a] > 0 or o == 0 else -o for a, o in zip(WORLD, origin, strict=True)]
    scale = [abs(step[a]) for a in WORLD]
    return VoxelGrid(
        axes, pick_zyx(scale, WORLD), pick_zyx(position, WORLD), pick_zyx(list(units), WORLD)
    )


def _axis(column: Sequence[float], where: str) -> str:
    """The axis of space that a step goes along."""
    lengths = [abs(v) for v in column]
    longest = max(lengths)
    if len(lengths) != 3 or not longest > 0:
        raise InputError(
            f"{where} has a header with the direction {list(column)}; it has no length"
        )
    if sum(lengths) - longest > ROTATION * longest:
        raise InputError(
            f"{where} is rotated: its header has the direction {list(column)}; resample it along "
            f"the axes, or save it without the rotation"
        )
    return WORLD[lengths.index(longest)]


def _nrrd_grid(header: Mapping[str, Any], where: str) -> VoxelGrid:
    """Grid by the space directions, or by spacings."""
    if "space directions" in header:
        rows = [
            None if row is None or np.isnan(row).any() else [float(v) for v in row]
            for row in header["space directions"]
        ]
        origin = [float(v) for v in header.get("space origin", (0, 0, 0))]
        return affine_grid(rows, origin, header.get("space units", [None] * 3), where)
    if len(header["sizes"]) != 3:
        return VoxelGrid(default_axes(len(header["sizes"])))
    spacings = [float(v) for v in header.get("spacings", [np.nan] * 3)]
    units = [unit or None for unit in header.get("units", [None] * 3)]
    scale = None if np.isnan(spacings).any() else pick_zyx(spacings, WORLD)
    return VoxelGrid(WORLD, scale, units=pick_zyx(units, WORLD))


def _nrrd_type(header: Mapping[str, Any]) -> np.dtype[Any]:
    """NumPy's type for NRRD's many names, as "unsigned short int" and "uint16_t"."""
    name = str(header["type"]).replace("unsigned ", "u").replace("signed ", "")
    name = name.removesuffix(" int").removesuffix("_t").replace(" ", "")
    base = name.removeprefix("u")
    kind = "f" if base in ("float", "double") else "u" if name.startswith("u") else "i"
    dtype = np.dtype(f"{kind}{BYTES[base]}" if base in BYTES else name)
    return dtype.newbyteorder(">" if header.get("endian") == "big" else "<")


def _read_nrrd_header(path: Path, where: str) -> tuple[Mapping[str, Any], int]:
    """Fields of the header, and its length in bytes.

    pynrrd would drop what is not ASCII, and "µm" would become "m".
    """
    lines = []
    try:
        with path.open("rb") as file:
            for line in file:
                lines.append(line)
                if not line.strip():
                    break
        text = b"".join(lines).decode(errors="replace").splitlines()
        return nrrd.read_header([*text, ""]), sum(len(line) for line in lines)
    except DAMAGED as error:
        raise InputError(f"{where} is not a readable NRRD file: {error}") from error


def _open_nrrd(path: Path, where: str) -> NDArray[Any]:
    """Memory map of an attached, uncompressed array, else the array itself."""
    header, start = _read_nrrd_header(path, where)
    apart = {"datafile", "data file", "lineskip", "line skip", "byteskip", "byte skip"}
    try:
        if header["encoding"] == "raw" and not apart & set(header):
            shape = tuple(int(n) for n in header["sizes"])
            return np.memmap(path, _nrrd_type(header), "r", start, shape, order="F")
        with path.open("rb") as file:
            file.seek(start)
            return np.asarray(nrrd.read_data(dict(header), file, str(path)))
    except DAMAGED as error:
        raise InputError(f"{where} cannot be decoded: {error}") from error


def _load_nifti(path: Path, where: str) -> Any:
    try:
        return nibabel.load(path)
    except DAMAGED as error:
        raise InputError(f"{where} is not a readable NIfTI file: {error}") from error


def _open_nifti(path: Path, where: str) -> Any:
    """What can be read box by box: a compressed array is unpacked once."""
    proxy = _load_nifti(path, where).dataobj
    if path.suffix.lower() != ".gz":
        return proxy
    try:
        return np.asanyarray(proxy)
    except DAMAGED as error:
        raise InputError(f"{where} cannot be decoded: {error}") from error


def _read_nifti(where: str, array: Any, box: Box) -> NDArray[Any]:
    try:
        return index_array(array, box)
    except DAMAGED as error:
        raise InputError(f"{where} cannot be decoded: {error}") from error


def _as_written(value: float) -> float:
    """NIfTI stores float32: 4e-06, not 3.9999999e-06."""
    return float(str(np.float32(value)))
