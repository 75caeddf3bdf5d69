"""Meshes that scripts.meshes wrote, as the viewer wants them beside a volume that is served."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from custom.voxel_grid import Triple

METRES = 1e-9  # per nm; the server speaks of metres


def meshes_of(store: Path) -> Path | None:
    """Folder of the meshes of a result in Neuroglancer's format, if there is one."""
    folder = store.with_name(f"{store.stem}_meshes")
    return folder if (folder / "info").is_file() else None


def stored_mesh(folder: Path, object_id: int, corner_nm: Triple) -> bytes | None:
    """Mesh of an object; None where it was not written.

    Args:
        folder: of ``<id>:0``, which names files with a count of vertices, the vertices (x, y, z in
            nm, float32) and the triangles (uint32).
        object_id: of the segment.
        corner_nm: corner of the volume's first voxel, zyx, which vertices are counted from.

    Returns:
        The same form in one piece, vertices as z, y, x in metres.
    """
    manifest = folder / f"{object_id}:0"
    if not manifest.is_file():
        return None
    vertices, faces, count = [], [], 0
    for name in json.loads(manifest.read_text())["fragments"]:
        points, triangles = _fragment((folder / name).read_bytes())
        vertices.append(points[:, ::-1].astype(np.float64) - corner_nm)
        faces.append(triangles + np.uint32(count))
        count += len(points)
    placed = (np.concatenate(vertices) * METRES).astype(np.float32)
    turned = np.concatenate(faces)[:, ::-1]  # z, y, x is a mirrored frame: outside stays outside
    return np.uint32(count).tobytes() + placed.tobytes() + turned.tobytes()


def _fragment(content: bytes) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
    """Vertices (n, 3) and triangles (m, 3)."""
    count = int(np.frombuffer(content, np.uint32, 1)[0])
    end = 4 + 12 * count
    vertices = np.frombuffer(content[4:end], np.float32).reshape(-1, 3)
    return vertices, np.frombuffer(content[end:], np.uint32).reshape(-1, 3)
