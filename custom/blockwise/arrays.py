"""Arrays of an output, opened by the process that reads or writes their boxes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorstore
from funlib.geometry import Roi
from numpy.typing import NDArray

from custom.locations import Location


def open_store(path: Path) -> tensorstore.TensorStore:
    """An array of Zarr v2 or v3 that exists, for reading and writing.

    Args:
        path: of the array.
    """
    driver = "zarr3" if (path / "zarr.json").exists() else "zarr"
    return tensorstore.open({"driver": driver, "kvstore": Location(str(path)).kvstore()}).result()


def write_box(
    stores: Mapping[str, tensorstore.TensorStore], roi: Roi, values: Mapping[str, NDArray[Any]]
) -> None:
    """Write a box of several arrays, all at a time; returns when all is on the disk.

    Args:
        stores: (D, H, W) or (C, D, H, W), by name.
        roi: the box, voxels, zyx.
        values: by the same names; a single value is written everywhere.
    """
    writes = []
    for name, store in stores.items():
        part: tensorstore.TensorStore = store[(..., *roi.to_slices())]  # type: ignore[index]  # funlib's slices have no type
        writes.append(part.write(values[name]))
    for write in writes:
        write.result()
