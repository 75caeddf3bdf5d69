"""Meshes of single objects of a segmentation, in nm."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zmesh
from funlib.geometry import Coordinate, Roi
from numpy.typing import NDArray

from custom.files import write_atomically
from custom.outputs.objects import tiles
from custom.volumes import Volume

BLOCK = 256  # edge in voxels of what is read at a time
FORMATS = ("obj", "ply", "precomputed")


@dataclass(frozen=True)
class Mesh:
    """A closed surface.

    Args:
        vertices: (n, 3) float64, x, y, z (unlike all arrays of voxels, as files of meshes have it).
        faces: (m, 3) int64, numbers of vertices, counter-clockwise seen from outside.
    """

    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]

    @property
    def volume(self) -> float:
        """What it encloses, in its vertices' unit to the third."""
        a, b, c = np.moveaxis((self.vertices - self.vertices[:1])[self.faces], 1, 0)
        return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


def object_mesh(volume: Volume, label: int, box: Roi, block: int = BLOCK) -> Mesh:
    """Surface of an object, halfway between its voxels and those of others, by marching cubes.

    It is closed where the object ends at the border of the volume, too. Only the object's box is
    read, a block at a time; blocks share a layer of voxels, so that their surfaces meet::

        |  a  |  b  |  c  |  d  |  e  |    voxels
           |-----------------|             first block: cubes from centre to centre
                             |-----|       second block

    Args:
        volume: of ids.
        label: id of the object.
        box: bounding box of the object, or a larger one, in voxels, zyx.
        block: edge in voxels of what is read at a time.

    Returns:
        In nm, where the volume is.
    """
    cubes = Roi(box.offset - 1, box.shape + 1)  # from the centre of a voxel to that of the next
    (d, h, w), first = cubes.shape, np.asarray(cubes.offset)
    grid = (2 * d + 1, 2 * h + 1, 2 * w + 1)  # where vertices can lie
    keys, faces, count = [], [], 0
    for tile in tiles((d, h, w), block):
        part = _surface(volume, label, tile + cubes.offset)
        corners = np.rint(2 * part.vertices).astype(np.int64) + 2 * np.asarray(tile.offset)
        keys.append(np.ravel_multi_index(tuple(corners.T), grid))
        faces.append(part.faces.astype(np.int64) + count)
        count += len(corners)
    unique, index = np.unique(np.concatenate(keys), return_inverse=True)
    halves = np.stack(np.unravel_index(unique, grid), axis=1)
    metadata = volume.metadata
    zyx = (halves / 2 + first) * metadata.voxel_size_nm + metadata.offset_nm
    return Mesh(zyx[:, ::-1], index[np.concatenate(faces)][:, ::-1])


def _surface(volume: Volume, label: int, cubes: Roi) -> zmesh.Mesh:
    """Surface in some cubes, in voxels from the centre of the first, zyx."""
    wanted = Roi(cubes.offset, cubes.shape + 1)
    inside = wanted.intersect(volume.metadata.roi)
    mask = np.zeros(tuple(wanted.shape), dtype=np.uint8)
    mask[(inside - wanted.offset).to_slices()] = volume.read(inside) == label
    mesher = zmesh.Mesher((1.0, 1.0, 1.0))
    mesher.mesh(mask)
    return mesher.get(1) if 1 in mesher.ids() else zmesh.Mesh()


def simplified(mesh: Mesh, factor: float) -> Mesh:
    """A mesh with fewer triangles, by quadric errors; its topology may change in small places.

    Args:
        mesh: in nm.
        factor: how many triangles one shall stand for.
    """
    corner = mesh.vertices.min(axis=0)  # numbers of 32 bits are exact enough near 0
    near = zmesh.Mesh((mesh.vertices - corner).astype(np.float32), mesh.faces.astype(np.uint32))
    found = zmesh.simplify_fqmr(near, target_count=max(4, round(len(mesh.faces) / factor)))
    return Mesh(found.vertices.astype(np.float64) + corner, found.faces.astype(np.int64))


def write_mesh(folder: Path, label: int, mesh: Mesh, kind: str) -> Path:
    """Write a mesh as ``<folder>/<id>.obj`` or ``.ply``, or as Neuroglancer's legacy format has it.

    The latter is a folder that Neuroglancer opens as ``precomputed://http://.../<folder>``, beside
    the segmentation in one layer.

    Args:
        folder: of the meshes.
        label: id of the object.
        mesh: in nm.
        kind: "obj", "ply" or "precomputed".

    Returns:
        The file that was written.
    """
    encoded = zmesh.Mesh(mesh.vertices.astype(np.float32), mesh.faces.astype(np.uint32))
    encoders: dict[str, Callable[[], bytes]] = {"obj": encoded.to_obj, "ply": encoded.to_ply}
    if kind in encoders:
        path = folder / f"{label}.{kind}"
        write_atomically(path, bytes(encoders[kind]()))
        return path
    path = folder / str(label)
    write_atomically(path, encoded.to_precomputed())
    write_atomically(folder / f"{label}:0", json.dumps({"fragments": [path.name]}).encode())
    write_atomically(folder / "info", b'{"@type": "neuroglancer_legacy_mesh"}')
    return path


def box_of(row: dict[str, int]) -> Roi:
    """Bounding box of a row of the table of objects."""
    begin = Coordinate(row[f"{axis}_begin"] for axis in "zyx")
    return Roi(begin, Coordinate(row[f"{axis}_end"] for axis in "zyx") - begin)
