"""The table of the objects of a segmentation: size, place and box of each."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from funlib.geometry import Roi
from numpy.typing import NDArray

from custom.errors import InputError
from custom.files import replacing
from custom.outputs.pyramids import Shape
from custom.outputs.settings import CHUNK, TABLES
from custom.volumes import Volume
from custom.voxel_grid import Triple

if TYPE_CHECKING:
    from polars import DataFrame

MANY_ROWS = 2_000_000  # rows of parts that are gathered before they are joined
AXES = "zyx"


@dataclass(frozen=True)
class ObjectSums:
    """What is known of objects from a part of their voxels; parts can be added up.

    Args:
        ids: (n,) uint64, ascending, without 0.
        voxels: (n,) int64.
        sums: (n, 3) int64, of the voxels' indices, zyx.
        begins: (n, 3) int64, smallest index, zyx.
        ends: (n, 3) int64, largest index and 1, zyx.
    """

    ids: NDArray[np.uint64]
    voxels: NDArray[np.int64]
    sums: NDArray[np.int64]
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def to_bytes(self) -> bytes:
        """As the content of a file."""
        file = BytesIO()
        np.savez(file, **{field.name: getattr(self, field.name) for field in fields(self)})
        return file.getvalue()

    @staticmethod
    def read(path: Path) -> "ObjectSums":
        """From a file with what ``to_bytes`` gave."""
        with np.load(path) as arrays:
            return ObjectSums(**arrays)


def object_sums(labels: NDArray[np.integer], begin: tuple[int, int, int]) -> ObjectSums:
    """What is known of the objects in a box from their voxels there.

    Args:
        labels: (D, H, W); 0 is background.
        begin: index of the box's first voxel, zyx.
    """
    layers = range(0, labels.shape[0], CHUNK)  # so that memory follows a layer, not the box
    z, y, x = begin
    return joined(_of_runs(labels[low : low + CHUNK], (z + low, y, x)) for low in layers)


def _of_runs(labels: NDArray[np.integer], begin: tuple[int, int, int]) -> ObjectSums:
    """By runs along x of voxels with one id, which are a few per cent of the voxels."""
    width = labels.shape[2]
    flat = labels.reshape(-1)
    starts_run = np.empty(flat.shape, dtype=np.bool_)
    starts_run[1:] = flat[1:] != flat[:-1]
    starts_run[::width] = True
    starts = np.flatnonzero(starts_run)
    ends = np.append(starts[1:], flat.size)
    of_object = flat[starts] != 0
    starts, ends = starts[of_object], ends[of_object]
    lengths = ends - starts
    first = np.stack(np.unravel_index(starts, labels.shape), axis=1) + np.asarray(begin)
    last = first.copy()
    last[:, 2] += lengths - 1
    return _grouped(
        flat[starts].astype(np.uint64),
        lengths,
        (first + last) * lengths[:, None] // 2,  # of the numbers first..last: exact
        first,
        last + 1,
    )


def joined(parts: Iterable[ObjectSums]) -> ObjectSums:
    """Several parts as one; memory follows the number of objects, not that of parts."""
    empty = np.empty((0, 3), dtype=np.int64)
    waiting = [ObjectSums(empty[:, 0].astype(np.uint64), empty[:, 0], empty, empty, empty)]
    for part in parts:
        waiting.append(part)
        if sum(map(len, waiting[1:])) > max(MANY_ROWS, len(waiting[0])):
            waiting = [_joined(waiting)]
    return _joined(waiting)


def _joined(parts: list[ObjectSums]) -> ObjectSums:
    names = [field.name for field in fields(ObjectSums)]
    return _grouped(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _grouped(
    ids: NDArray[np.uint64],
    voxels: NDArray[np.int64],
    sums: NDArray[np.int64],
    begins: NDArray[np.int64],
    ends: NDArray[np.int64],
) -> ObjectSums:
    """Rows of one id as one."""
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    firsts = np.flatnonzero(np.append(True, ids[1:] != ids[:-1])[: len(ids)])
    if not len(firsts):
        return ObjectSums(ids, voxels, sums, begins, ends)
    return ObjectSums(
        ids[firsts],
        np.add.reduceat(voxels[order], firsts),
        np.add.reduceat(sums[order], firsts),
        np.minimum.reduceat(begins[order], firsts),
        np.maximum.reduceat(ends[order], firsts),
    )


def measured(volume: Volume, block: int = 4 * CHUNK) -> ObjectSums:
    """All objects of a segmentation, here and now.

    Args:
        volume: of ids.
        block: edge in voxels of what is read at a time.
    """
    return joined(
        object_sums(volume.read(roi), tuple(roi.offset))
        for roi in tiles(volume.metadata.shape, block)
    )


def tiles(shape: Shape, block: int) -> Iterable[Roi]:
    """Boxes that tile a volume."""
    whole = Roi((0, 0, 0), shape)
    for corner in np.ndindex(*(-(-length // block) for length in shape)):
        yield Roi([block * c for c in corner], (block,) * 3).intersect(whole)


def object_table(sums: ObjectSums, voxel_size_nm: Triple, offset_nm: Triple) -> "DataFrame":
    """One row per object, by ascending id.

    Columns: ``id``, ``voxels``, ``volume_um3``; the half-open bounding box in voxels, ``z_begin``,
    ``y_begin``, ``x_begin``, ``z_end``, ``y_end``, ``x_end``; its faces in nm, ``z_begin_nm`` and
    so on; the mean position of the voxels' centres, ``z_nm``, ``y_nm``, ``x_nm``.

    Args:
        sums: of all voxels.
        voxel_size_nm: zyx.
        offset_nm: position of the centre of voxel (0, 0, 0), zyx.
    """
    import polars  # not on the way of runs without a table

    size, offset = np.asarray(voxel_size_nm), np.asarray(offset_nm)
    means = sums.sums / sums.voxels[:, None]
    groups = {
        "{}_begin": sums.begins,
        "{}_end": sums.ends,
        "{}_begin_nm": offset + (sums.begins - 0.5) * size,
        "{}_end_nm": offset + (sums.ends - 0.5) * size,
        "{}_nm": offset + means * size,
    }
    columns: dict[str, NDArray[np.generic]] = {
        "id": sums.ids,
        "voxels": sums.voxels,
        "volume_um3": sums.voxels * (size.prod() / 1e9),
    }
    for name, values in groups.items():
        columns |= {name.format(axis): values[:, k] for k, axis in enumerate(AXES)}
    return polars.DataFrame(columns)


def table_path(store: Path, kind: str) -> Path:
    """Where the table of a result lies: ``<output_dir>/<id>_objects.parquet`` or ``.csv``."""
    return store.with_name(f"{store.stem}_objects.{kind}")


def write_table(store: Path, kind: str, table: "DataFrame") -> Path:
    """Write the table of a result; it replaces all that are there.

    Args:
        store: the OME-Zarr.
        kind: "parquet" or "csv".
        table: of ``object_table``.

    Returns:
        Path of the table.
    """
    path = table_path(store, kind)
    with replacing(path) as part:
        if kind == "csv":
            table.write_csv(part)
        else:
            table.write_parquet(part)
    remove_tables(store, but=path)
    return path


def remove_tables(store: Path, but: Path | None = None) -> None:
    """Remove the tables of a result, whose segments are about to change, where there are any."""
    for kind in TABLES:
        if (path := table_path(store, kind)) != but:
            path.unlink(missing_ok=True)


def read_table(store: Path) -> "DataFrame | None":
    """The table of a result, None where there is none.

    Raises:
        InputError: there is one, but it cannot be read.
    """
    import polars

    for kind in TABLES:
        path = table_path(store, kind)
        if path.exists():
            schema = object_table(joined([]), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)).schema
            try:
                if kind == "csv":  # whose numbers have no types, and none are there without rows
                    return polars.read_csv(path, schema_overrides=schema)
                return polars.read_parquet(path)
            except (polars.exceptions.PolarsError, OSError) as error:
                raise InputError(f"the table '{path}' cannot be read: {error}") from error
    return None
