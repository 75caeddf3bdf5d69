import json
from pathlib import Path

import numpy as np

from custom.viewing.finished_output import find_outputs
from custom.viewing.layers import layers_of
from custom.viewing.served import SEGMENTATION, ServedVolume
from custom.viewing.stored_meshes import meshes_of
from tests.viewing import planted_output


def write_mesh(folder: Path, object_id: int, vertices: np.ndarray) -> None:
    """A mesh in two files, as Neuroglancer's legacy format has it."""
    folder.mkdir()
    (folder / "info").write_text('{"@type": "neuroglancer_legacy_mesh"}')
    for name, part in (("a", vertices[:4]), ("b", vertices[4:])):
        faces = np.array([[0, 1, 2], [1, 2, 3]], np.uint32)
        content = np.uint32(len(part)).tobytes() + part.astype(np.float32).tobytes()
        (folder / name).write_bytes(content + faces.tobytes())
    (folder / f"{object_id}:0").write_text(json.dumps({"fragments": ["a", "b"]}))


def test_a_stored_mesh_lies_where_one_that_is_made_here_does(tmp_path: Path) -> None:
    output = planted_output.write(tmp_path)
    begin, end = planted_output.object_nm()
    corners = np.array(np.meshgrid(*zip(begin, end, strict=True), indexing="ij")).reshape(3, -1).T
    assert meshes_of(output) is None
    write_mesh(tmp_path / "output" / "planted_meshes", 7, corners[:, ::-1])  # x, y, z
    (found,) = find_outputs([str(output)], "")
    (layer,) = [layer for layer in layers_of(found) if layer.name == "segmentation"]
    assert layer.meshes is not None
    stored = ServedVolume(layer.pyramid, SEGMENTATION, (0, 0, 0), layer.meshes)
    made = ServedVolume(layer.pyramid, SEGMENTATION, (0, 0, 0))
    extents = []
    for content in (stored.get_object_mesh(7), made.get_object_mesh(7)):
        count = int(np.frombuffer(content[:4], np.uint32)[0])
        vertices = np.frombuffer(content[4 : 4 + 12 * count], np.float32).reshape(-1, 3)
        faces = np.frombuffer(content[4 + 12 * count :], np.uint32)
        assert faces.max() == count - 1
        extents.append([vertices.min(0) * 1e9, vertices.max(0) * 1e9])
    np.testing.assert_allclose(extents[0], extents[1], atol=1e-3)


def test_an_object_without_a_stored_mesh_gets_one_made_here(tmp_path: Path) -> None:
    output = planted_output.write(tmp_path)
    write_mesh(tmp_path / "output" / "planted_meshes", 1, np.zeros((8, 3)))
    (found,) = find_outputs([str(output)], "")
    (layer,) = [layer for layer in layers_of(found) if layer.name == "segmentation"]
    content = ServedVolume(layer.pyramid, SEGMENTATION, (0, 0, 0), layer.meshes).get_object_mesh(7)
    assert int(np.frombuffer(content[:4], np.uint32)[0]) > 8
