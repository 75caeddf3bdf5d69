from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
from funlib.geometry import Roi
from numpy.typing import NDArray
from skimage.measure import regionprops

from custom.errors import InputError
from custom.outputs.objects import (
    joined,
    measured,
    object_sums,
    object_table,
    read_table,
    table_path,
    tiles,
    write_table,
)
from custom.volumes import open_volume
from tests.outputs.written import OFFSET, SHAPE, SIZE, labels, write_result

VOXEL_UM3 = np.prod(SIZE) / 1e9


def by_skimage(values: NDArray[Any]) -> dict[int, Any]:
    """What scikit-image measures of every object, by its id."""
    ids, dense = np.unique(values, return_inverse=True)
    regions = regionprops(dense.reshape(values.shape) + int(ids[0] != 0))
    known = ids[ids != 0]
    return {int(known[region.label - 1]): region for region in regions}


@pytest.mark.parametrize("block", [17, 64, 1000])
def test_the_table_is_what_skimage_measures_of_the_whole(tmp_path: Path, block: int) -> None:
    write_result(tmp_path / "cube.zarr")
    volume = open_volume(tmp_path / "cube.zarr" / "labels" / "segmentation")
    table = object_table(measured(volume, block), SIZE, OFFSET)
    expected = by_skimage(labels())
    assert table["id"].dtype == polars.UInt64
    assert table["id"].to_list() == sorted(expected)
    assert max(expected) > 1 << 32
    for row in table.to_dicts():
        region = expected[row["id"]]
        assert row["voxels"] == region.num_pixels
        assert row["volume_um3"] == pytest.approx(region.num_pixels * VOXEL_UM3)
        low, high = region.bbox[:3], region.bbox[3:]
        for k, axis in enumerate("zyx"):
            assert (row[f"{axis}_begin"], row[f"{axis}_end"]) == (low[k], high[k])
            edges = [OFFSET[k] + (edge - 0.5) * SIZE[k] for edge in (low[k], high[k])]
            assert [row[f"{axis}_begin_nm"], row[f"{axis}_end_nm"]] == pytest.approx(edges)
            centre = OFFSET[k] + region.centroid[k] * SIZE[k]
            assert row[f"{axis}_nm"] == pytest.approx(centre)


def test_sums_do_not_depend_on_how_a_volume_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    values = labels()
    whole = object_sums(values, (0, 0, 0))
    monkeypatch.setattr("custom.outputs.objects.MANY_ROWS", 30)  # joined many times
    parts = [object_sums(values[roi.to_slices()], tuple(roi.offset)) for roi in tiles(SHAPE, 20)]
    again = joined(parts)
    for name in ("ids", "voxels", "sums", "begins", "ends"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name), strict=True)


def test_tiles_cover_every_voxel_once() -> None:
    counts = np.zeros(SHAPE, dtype=int)
    for roi in tiles(SHAPE, 50):
        assert Roi((0, 0, 0), SHAPE).contains(roi)
        counts[roi.to_slices()] += 1
    assert (counts == 1).all()


@pytest.mark.parametrize("kind", ["parquet", "csv"])
@pytest.mark.parametrize("empty", [False, True], ids=["objects", "none"])
def test_a_table_is_read_as_it_was_written(tmp_path: Path, kind: str, empty: bool) -> None:
    store = tmp_path / "left.cube.zarr"
    values = np.zeros((3, 4, 5), dtype=np.uint64) if empty else labels()
    values[values == values.max()] *= 1 << 23  # beyond 63 bits
    table = object_table(object_sums(values, (0, 0, 0)), SIZE, OFFSET)
    assert read_table(store) is None
    write_table(store, kind, table)
    assert [path.name for path in tmp_path.iterdir()] == [f"left.cube_objects.{kind}"]
    again = read_table(store)
    assert again is not None
    assert again.equals(table)
    assert again.schema == table.schema
    assert len(table.columns) == 18
    assert len(table) == (0 if empty else len(by_skimage(values)))


def test_a_table_that_is_none_is_named(tmp_path: Path) -> None:
    path = table_path(tmp_path / "cube.zarr", "parquet")
    path.write_bytes(b"no table")
    with pytest.raises(InputError, match=r"cube_objects\.parquet' cannot be read"):
        read_table(tmp_path / "cube.zarr")
