"""One small volume, written in formats that our own code only reads."""

import json
import struct
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
from numpy.typing import NDArray

SHAPE = (5, 7, 11)
SIZE = (30.5, 4.0, 4.25)  # nm, unequal and fractional
OFFSET = (61.0, -8.0, 17.0)  # nm, whole voxels
PLANTED = (3, 1, 8)

VALUES = np.random.default_rng(0).integers(0, 60000, SHAPE).astype(np.uint16)
VALUES[PLANTED] = 65535

BLOCK = (4, 3, 2)  # x, y, z


def write_n5(path: Path, values: NDArray[Any] = VALUES, **attributes: Any) -> Path:
    """An N5 dataset by N5's specification: big-endian blocks ``x/y/z``, x varies fastest."""
    array, block = values.T, BLOCK[: values.ndim]
    header = {"dimensions": array.shape, "blockSize": block, "dataType": values.dtype.name}
    path.mkdir(parents=True)
    compression = {"compression": {"type": "raw"}}
    (path / "attributes.json").write_text(json.dumps({**header, **compression, **attributes}))
    for start in product(*(range(0, n, b) for n, b in zip(array.shape, block, strict=True))):
        part = array[tuple(slice(s, s + b) for s, b in zip(start, block, strict=True))]
        file = path.joinpath(*(str(s // b) for s, b in zip(start, block, strict=True)))
        file.parent.mkdir(parents=True, exist_ok=True)
        size = struct.pack(f">HH{part.ndim}I", 0, part.ndim, *part.shape)
        file.write_bytes(size + part.astype(part.dtype.newbyteorder(">")).tobytes("F"))
    return path


def write_precomputed(
    path: Path,
    *scales: tuple[str, NDArray[Any], Sequence[float], Sequence[int]],
    num_channels: int = 1,
) -> Path:
    """A precomputed volume by Neuroglancer's specification: chunks ``x0-x1_y0-y1_z0-z1``.

    Args:
        path: its folder.
        scales: key, values, voxel size in nm, and corner in voxels, all z, y, x.
        num_channels: copies of the values.
    """
    info = {"type": "image", "data_type": scales[0][1].dtype.name, "num_channels": num_channels}
    listed = []
    for key, values, size, corner in scales:
        (path / key).mkdir(parents=True)
        array, first = values.T, np.array(corner[::-1])
        listed.append(
            {
                "key": key,
                "size": array.shape,
                "resolution": list(size[::-1]),
                "voxel_offset": first.tolist(),
                "chunk_sizes": [BLOCK],
                "encoding": "raw",
            }
        )
        for start in product(*(range(0, n, b) for n, b in zip(array.shape, BLOCK, strict=True))):
            part = array[tuple(slice(s, s + b) for s, b in zip(start, BLOCK, strict=True))]
            ends = zip(first + start, first + start + part.shape, strict=True)
            name = "_".join(f"{a}-{b}" for a, b in ends)
            (path / key / name).write_bytes(part.tobytes("F") * num_channels)
    (path / "info").write_text(json.dumps({**info, "scales": listed}))
    return path


def corner_of(size: Sequence[float], offset: Sequence[float]) -> list[int]:
    """An offset in whole voxels."""
    return [round(o / s) for o, s in zip(offset, size, strict=True)]


def write_nrrd(path: Path, values: NDArray[Any] = VALUES, **header: Any) -> Path:
    """An NRRD written by pynrrd, x varies fastest."""
    nrrd.write(str(path), values.T, header, index_order="F")
    return path


def affine_of(size_nm: Sequence[float], offset_nm: Sequence[float]) -> NDArray[np.float64]:
    """NIfTI's affine in micrometres, x first."""
    affine = np.diag([*(s / 1000 for s in size_nm[::-1]), 1.0])
    affine[:3, 3] = [o / 1000 for o in offset_nm[::-1]]
    return affine


def write_nifti(
    path: Path,
    affine: NDArray[np.float64] | None,
    unit: str | None = None,
    values: NDArray[Any] = VALUES,
) -> Path:
    """A NIfTI written by nibabel, x varies fastest."""
    image = nibabel.Nifti1Image(values.T, affine)
    if unit is not None:
        image.header.set_xyzt_units(unit)
    nibabel.save(image, path)
    return path
