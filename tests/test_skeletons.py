from pathlib import Path

import numpy as np
import pytest
from funlib.geometry import Roi

from custom.errors import InputError
from custom.skeletons import parse_swc, read_skeletons, traced
from custom.volumes import create_ome_zarr_array, open_volume

SWC = """# a neuron
1 2 10 20 30 1 -1
2 2 13.5 24 30 1 1

7 2 13.5 24 42 1 2
"""


def test_an_swc_file_becomes_nodes_and_edges() -> None:
    skeleton = parse_swc(SWC, "a", "a.swc")
    np.testing.assert_array_equal(skeleton.nodes_nm, [[30, 20, 10], [30, 24, 13.5], [42, 24, 13.5]])
    np.testing.assert_array_equal(skeleton.edges, [[1, 0], [2, 1]])
    np.testing.assert_allclose(skeleton.lengths_nm, [np.hypot(4, 3.5), 12])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 10 20 30 1", r"line 1 is not SWC \(id type x y z radius parent"),
        ("1 2 ten 20 30 1 -1", "line 1 is not SWC"),
        ("1 2 nan 20 30 1 -1", "line 1 is not SWC"),
        ("1 2 1 2 3 1 -1\n1 2 1 2 3 1 -1", "line 2 has the id 1, which stands twice"),
        ("1 2 1 2 3 1 4", "names the parent 4, which is none of its nodes"),
        ("# nothing", "holds no nodes"),
    ],
)
def test_what_is_not_swc_is_said(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_swc(text, "a", "a.swc")


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.swc").write_text(SWC)
    (tmp_path / "notes.txt").write_text("no skeleton")
    assert [s.name for s in read_skeletons(str(tmp_path), "skeletons")] == ["a", "b"]
    assert [s.name for s in read_skeletons(str(tmp_path / "b.swc"), "skeletons")] == ["b"]
    for missing in (tmp_path / "c.swc", tmp_path / "empty"):
        with pytest.raises(InputError, match="neither an SWC file nor a folder with"):
            read_skeletons(str(missing), "skeletons")


def test_nodes_get_the_segment_of_their_voxel(tmp_path: Path) -> None:
    shape, size, offset = (3, 150, 5), (40.0, 8.0, 10.0), (400.0, 0.0, 80.0)
    values = np.arange(np.prod(shape), dtype=np.uint64).reshape(shape) + np.uint64(2**40)
    array = create_ome_zarr_array(tmp_path, "s", shape, np.uint64, "zyx", size, offset, shape, {})
    array[...] = values
    voxels = [(0, 1, 2), (2, 149, 4), (1, 70, 0), (1, 149, 3)]
    lines = [
        f"{i} 0 {80 + x * 10 + 4} {y * 8 - 3} {400 + z * 40} 1 {i - 1 or -1}"
        for i, (z, y, x) in enumerate(voxels, start=1)
    ]
    skeleton = parse_swc("\n".join(lines), "a", "a.swc")
    volume = open_volume(str(tmp_path / "s"))
    (whole,) = traced([skeleton], volume, Roi((0, 0, 0), shape))
    assert whole.segments.tolist() == [int(values[voxel]) for voxel in voxels]
    assert len(whole.edges) == 3
    (part,) = traced([skeleton], volume, Roi((0, 50, 0), (3, 100, 5)))
    np.testing.assert_array_equal(part.edges, skeleton.edges[1:], "one end of the first is outside")
    assert part.segments[0] == 0
    np.testing.assert_allclose(part.lengths, skeleton.lengths_nm[1:])
    assert traced([skeleton], volume, Roi((0, 30, 0), (1, 1, 1)))[0].edges.size == 0
