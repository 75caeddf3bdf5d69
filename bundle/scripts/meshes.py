"""Surfaces of objects that inference found, for Blender, MeshLab, or Neuroglancer.

From inside ``bundle/``: ``python -m scripts.meshes output/left.zarr --ids 12,45``
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fire
import numpy as np

from custom.errors import InputError
from custom.outputs.images import SEGMENTATION, is_complete, is_result
from custom.outputs.meshes import FORMATS, box_of, object_mesh, simplified, write_mesh
from custom.outputs.objects import measured, object_table, read_table
from custom.volumes import Volume, open_volume
from scripts.strict import strict


@strict
def meshes(
    output: str,
    ids: int | Sequence[int],
    out: str | None = None,
    format: str = "ply",
    simplify: float = 1,
) -> None:
    """Write a mesh of every chosen object, in nm, x, y, z.

    Args:
        output: a result of inference, <output_dir>/<id>.zarr.
        ids: of the objects, as 12 or 12,45; the table of objects beside the result has them.
        out: folder of the meshes; <output_dir>/<id>_meshes if left out.
        format: obj, ply, or precomputed for Neuroglancer (its legacy format, one folder).
        simplify: how many triangles become one; 1 keeps all.
    """
    chosen = _parsed_ids(ids)
    if format not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if isinstance(simplify, bool) or not isinstance(simplify, (int, float)) or simplify < 1:
        raise InputError(f"simplify must be a number from 1, got {simplify!r}")
    store = Path(str(output)).absolute()
    if is_result(store) and not is_complete(store):
        raise InputError(f"'{store}' is not finished; run inference to its end first")
    volume = open_volume(store / SEGMENTATION, field="segmentation")
    rows = _rows(store, volume, chosen)
    folder = store.with_name(f"{store.stem}_meshes") if out is None else Path(str(out))
    try:
        for label, row in rows.items():
            mesh = object_mesh(volume, label, box_of(row))
            mesh = simplified(mesh, simplify) if simplify > 1 else mesh
            path = write_mesh(folder, label, mesh, format)
            print(f"{path}: {len(mesh.faces)} triangles, {mesh.volume / 1e9:.4g} um3")
    except OSError as error:
        raise InputError(f"a mesh cannot be written: {error}") from error


def _parsed_ids(given: object) -> list[int]:
    """One id or several."""
    values = list(given) if isinstance(given, (list, tuple)) else [given]
    wrong = [v for v in values if type(v) is not int or not 0 < v < 2**64]
    if wrong or not values:
        raise InputError(f"ids must be numbers from 1, as in --ids 12,45; got {given!r}")
    return values


def _rows(store: Path, volume: Volume, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Rows of the table of objects, by id; measured here and now where there is no table."""
    table = read_table(store)
    if table is None:
        print("there is no table of objects; looking for them")
        metadata = volume.metadata
        table = object_table(measured(volume), metadata.voxel_size_nm, metadata.offset_nm)
    known = table["id"].to_numpy()
    found = {}
    for label in ids:
        place = int(np.searchsorted(known, np.uint64(label)))
        if place == len(known) or known[place] != label:
            raise InputError(_unknown(label, known, store))
        found[label] = table.row(place, named=True)
    return found


def _unknown(label: int, known: Any, store: Path) -> str:
    """Sentence on an id that is not there."""
    if not len(known):
        return f"'{store}' holds no objects at all"
    nearest = min((int(k) for k in known), key=lambda k: abs(k - label))
    return (
        f"there is no object {label} in '{store}', which holds {len(known)}, with ids from "
        f"{known[0]} to {known[-1]}; the nearest is {nearest}"
    )


if __name__ == "__main__":
    fire.Fire(meshes)
