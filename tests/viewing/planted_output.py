"""An output of inference with one planted object, raw twice as fine, at fractional places."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from custom.outputs.images import MARKER
from custom.volumes import create_ome_zarr_array
from custom.zarr_metadata import update_group

SIZE = (17.5, 8.25, 6.5)  # nm, of labels and output
RAW_SIZE = (17.5, 4.125, 3.25)
RAW_CENTRE = (100.0, 40.5, -30.25)
SHAPE = (12, 20, 28)
LABELS_AT = (2, 3, 4)  # label voxels from raw's corner
LABELS_SHAPE = (8, 14, 20)
OBJECT = (slice(4, 8), slice(6, 11), slice(9, 21))  # in voxels of the output
OFFSETS = [[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 5]]
ID = "planted"


def object_nm() -> tuple[list[float], list[float]]:
    """Corners of the object, nm, zyx, where corners count."""
    origin = [c - s / 2 for c, s in zip(RAW_CENTRE, RAW_SIZE, strict=True)]
    begin = [o + b.start * s for o, b, s in zip(origin, OBJECT, SIZE, strict=True)]
    end = [o + b.stop * s for o, b, s in zip(origin, OBJECT, SIZE, strict=True)]
    return begin, end


def centre(first: tuple[int, int, int] = (0, 0, 0)) -> tuple[float, float, float]:
    """Centre of a voxel of the output's grid, nm."""
    z, y, x = (
        c - r / 2 + (f + 0.5) * s
        for c, r, s, f in zip(RAW_CENTRE, RAW_SIZE, SIZE, first, strict=True)
    )
    return z, y, x


def write(folder: Path, version: str = "0.4", segments: NDArray[np.uint64] | None = None) -> Path:
    """``output/planted.zarr``, ``data.zarr`` and ``datalist.json`` in a folder; the output."""
    inside = np.zeros(SHAPE, np.uint64)
    inside[OBJECT] = 7
    fine = inside.repeat(2, 1).repeat(2, 2)
    crop = tuple(slice(o, o + n) for o, n in zip(LABELS_AT, LABELS_SHAPE, strict=True))
    data = folder / "data.zarr"
    _write(data, "raw", np.where(fine, 200, 50).astype(np.uint8), RAW_SIZE, RAW_CENTRE, version)
    _write(data, "labels/cells", inside[crop].astype(np.uint32), SIZE, centre(LABELS_AT), version)
    output = folder / "output" / f"{ID}.zarr"
    found = inside if segments is None else segments
    _write(output, "labels/segmentation", found, SIZE, centre(), version)
    affinities = np.stack([np.where(inside, 60 * (k + 1), 0).astype(np.uint8) for k in range(4)])
    _write(output, "affinities", affinities, SIZE, centre(), version, {"offsets": OFFSETS})
    update_group(output, version, {}, {MARKER: {"version": "0.1.0", "complete": True}})
    write_datalist(folder)
    return output


def write_datalist(folder: Path, **changes: object) -> Path:
    """``datalist.json`` of the planted volume."""
    entry = {"id": ID, "raw": "data.zarr/raw", "labels": "data.zarr/labels/cells", **changes}
    kept = {key: value for key, value in entry.items() if value is not None}
    path = folder / "datalist.json"
    path.write_text(json.dumps({"name": "planted", "test": [kept]}))
    return path


def _write(
    group: Path,
    name: str,
    values: NDArray[np.generic],
    size: tuple[float, float, float],
    place: tuple[float, float, float],
    version: str,
    attributes: dict[str, object] | None = None,
) -> None:
    axes = "czyx"[-values.ndim :]
    chunks = [1, 8, 8, 8][-values.ndim :]
    array = create_ome_zarr_array(
        group,
        name,
        values.shape,
        values.dtype,
        axes,
        size,
        place,
        chunks,
        attributes or {},
        version,
    )
    array.write(values).result()
