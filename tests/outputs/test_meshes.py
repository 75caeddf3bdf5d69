import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import zmesh
from funlib.geometry import Roi
from numpy.typing import NDArray
from scripts.meshes import meshes

from custom.outputs.images import begin, finish
from custom.outputs.meshes import Mesh, object_mesh, simplified, write_mesh
from custom.outputs.objects import measured, object_table, write_table
from custom.outputs.settings import OutputSettings
from custom.volumes import Volume, open_volume
from tests.outputs.written import FAR, OFFSET, SIZE, write

pytestmark = pytest.mark.slow

SHAPE = (21, 30, 26)
BALL = FAR + 5


def objects() -> NDArray[np.uint64]:
    """Noise (1), which has every shape there is, and a box (2) in a corner."""
    noise = np.random.default_rng(0).random(SHAPE) < 0.4
    values = np.where(noise, 1, 0).astype(np.uint64)
    values[-5:, -6:, -9:] = 2
    return values


def ball(shape: tuple[int, int, int], radius: float) -> NDArray[np.bool_]:
    """In voxels of ``SIZE``, in the middle."""
    middle = [(length - 1) / 2 for length in shape]
    grid = np.indices(shape).transpose(1, 2, 3, 0)
    return np.asarray((((grid - middle) * SIZE) ** 2).sum(axis=3) <= radius**2)


def written(folder: Path, values: NDArray[np.uint64], table: str | None = None) -> Volume:
    """A result with these segments."""
    store = folder / "cube.zarr"
    begin(store)
    write(store, "labels/segmentation", values, OutputSettings())
    finish(store)
    volume = open_volume(store / "labels" / "segmentation")
    if table is not None:
        write_table(store, table, object_table(measured(volume), SIZE, OFFSET))
    return volume


def assert_closed(mesh: Mesh) -> None:
    """Every edge is passed as often in one direction as in the other."""
    pairs = np.concatenate([mesh.faces[:, [k, (k + 1) % 3]] for k in range(3)])
    edges = Counter(map(tuple, pairs.tolist()))
    assert all(edges[b, a] == count for (a, b), count in edges.items())
    assert len(np.unique(mesh.vertices, axis=0)) == len(mesh.vertices)


def same_surface(one: Mesh, other: Mesh) -> bool:
    """Whether two meshes have the same triangles, however they are ordered."""

    def triangles(mesh: Mesh) -> set[tuple[tuple[float, ...], ...]]:
        turned = (np.roll(t, -int(np.lexsort(t.T)[0]), axis=0) for t in mesh.vertices[mesh.faces])
        return {tuple(map(tuple, t.round(6).tolist())) for t in turned}

    return triangles(one) == triangles(other)


@pytest.mark.parametrize("label", [1, 2])
def test_surfaces_are_closed_and_do_not_depend_on_blocks(tmp_path: Path, label: int) -> None:
    volume = written(tmp_path, objects())
    whole = object_mesh(volume, label, volume.metadata.roi)
    assert_closed(whole)
    for block in (5, 8):
        cut = object_mesh(volume, label, volume.metadata.roi, block)
        assert_closed(cut)
        assert same_surface(cut, whole)


def test_a_box_in_the_corner_of_a_volume_has_its_place_and_size(tmp_path: Path) -> None:
    volume = written(tmp_path, objects())
    mesh = object_mesh(volume, 2, Roi((16, 24, 17), (5, 6, 9)))
    for axis in range(3):
        xyz = mesh.vertices[:, 2 - axis]
        first = SHAPE[axis] - (5, 6, 9)[axis]
        edges = [OFFSET[axis] + SIZE[axis] * (v - 0.5) for v in (first, SHAPE[axis])]
        assert [xyz.min(), xyz.max()] == pytest.approx(edges)
    assert 0.8 < mesh.volume / (5 * 6 * 9 * np.prod(SIZE)) < 1  # edges are cut


@pytest.mark.parametrize("factor", [1, 8])
def test_a_ball_has_its_volume_and_centre(tmp_path: Path, factor: int) -> None:
    shape, radius = (19, 82, 56), 320.0
    volume = written(tmp_path, np.where(ball(shape, radius), BALL, 0).astype(np.uint64))
    mesh = object_mesh(volume, BALL, volume.metadata.roi)
    if factor > 1:
        full, mesh = mesh, simplified(mesh, factor)
        assert len(mesh.faces) == pytest.approx(len(full.faces) / factor, rel=0.1)
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.04)
    middle = [o + s * (n - 1) / 2 for o, s, n in zip(OFFSET, SIZE, shape, strict=True)]
    bounds = (mesh.vertices.min(axis=0) + mesh.vertices.max(axis=0)) / 2
    np.testing.assert_allclose(bounds, middle[::-1], atol=max(SIZE))


@pytest.mark.parametrize("kind", ["obj", "ply", "precomputed"])
def test_files_hold_the_mesh(tmp_path: Path, kind: str) -> None:
    volume = written(tmp_path / "data", objects())
    mesh = object_mesh(volume, 2, volume.metadata.roi)
    content = write_mesh(tmp_path / "meshes", 2, mesh, kind).read_bytes()
    read = {"obj": zmesh.Mesh.from_obj, "ply": zmesh.Mesh.from_ply}
    found = read.get(kind, zmesh.Mesh.from_precomputed)(content)
    np.testing.assert_allclose(found.vertices, mesh.vertices, atol=1e-3)
    np.testing.assert_array_equal(found.faces, mesh.faces)
    if kind == "precomputed":
        (part,) = json.loads((tmp_path / "meshes" / "2:0").read_text())["fragments"]
        assert (tmp_path / "meshes" / part).read_bytes() == content
        info = json.loads((tmp_path / "meshes" / "info").read_text())
        assert info == {"@type": "neuroglancer_legacy_mesh"}


@pytest.mark.parametrize("table", [None, "csv", "parquet"])
def test_the_command_finds_objects_with_and_without_a_table(
    tmp_path: Path, table: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    values = objects()
    values[:5, :6, :7] = BALL
    written(tmp_path, values, table)
    meshes(str(tmp_path / "cube.zarr"), (BALL, 2), format="obj")
    said = capsys.readouterr().out
    assert ("looking for them" in said) == (table is None)
    folder = tmp_path / "cube_meshes"
    assert {path.name for path in folder.iterdir()} == {"2.obj", f"{BALL}.obj"}
    mesh = zmesh.Mesh.from_obj((folder / f"{BALL}.obj").read_bytes())
    edges = [o - s / 2 for o, s in zip(OFFSET, SIZE, strict=True)]
    np.testing.assert_allclose(mesh.vertices.min(axis=0), edges[::-1], atol=1e-3)
    meshes(str(tmp_path / "cube.zarr"), 2, out=str(tmp_path / "few"), simplify=3)
    assert (tmp_path / "few" / "2.ply").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": 3}, rf"no object 3 in .* holds 2, with ids from 1 to {BALL}; the nearest is 1"),
        ({"ids": (1, BALL - 1)}, f"nearest is {BALL}"),
        ({"ids": "all"}, "ids must be numbers from 1, as in --ids 12,45; got 'all'"),
        ({"ids": 0}, "ids must be numbers"),
        ({"ids": 2**64}, "ids must be numbers"),
        ({"ids": 1, "format": "stl"}, "format must be one of obj, ply, precomputed, got 'stl'"),
        ({"ids": 1, "simplify": 0.5}, "simplify must be a number from 1"),
        ({"ids": 1, "output": "nowhere.zarr"}, "nowhere.zarr.* does not exist"),
        ({"ids": 1, "faces": 3}, "there is no option --faces"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    tmp_path: Path, arguments: dict[str, object], message: str
) -> None:
    values = np.zeros((4, 5, 6), dtype=np.uint64)
    values[1, 2, 3:5] = 1, BALL
    written(tmp_path, values, "parquet")
    given = {"output": str(tmp_path / "cube.zarr"), **arguments}
    with pytest.raises(SystemExit, match=message):
        meshes(**given)


def test_a_result_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    written(tmp_path, objects())
    begin(tmp_path / "cube.zarr")
    with pytest.raises(SystemExit, match=r"cube\.zarr' is not finished; run inference"):
        meshes(str(tmp_path / "cube.zarr"), 1)


def test_only_the_box_of_an_object_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, objects(), "parquet")
    read: list[Roi] = []
    plain = Volume.read
    monkeypatch.setattr(Volume, "read", lambda self, roi: read.append(roi) or plain(self, roi))
    meshes(str(tmp_path / "cube.zarr"), 2, format="obj")
    around = Roi((15, 23, 16), (6, 7, 10))  # and a voxel beyond, to close the surface
    assert read
    assert all(around.contains(roi) for roi in read)


def test_a_result_without_objects_says_so(tmp_path: Path) -> None:
    written(tmp_path, np.zeros((4, 5, 6), dtype=np.uint64))
    with pytest.raises(SystemExit, match="holds no objects at all"):
        meshes(str(tmp_path / "cube.zarr"), 1)
