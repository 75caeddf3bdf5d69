import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from funlib.geometry import Roi
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from custom.viewing.pyramid import FIRST, LARGEST, MEAN, Level, Pyramid, open_channels, open_pyramid
from custom.volumes import VolumeMetadata, create_ome_zarr_array
from tests.viewing import planted_output

SHAPE = (7, 10, 13)
VALUES = np.random.default_rng(0).integers(0, 255, SHAPE).astype(np.uint8)


def pyramid_of(values: NDArray[np.uint8], *coarser: tuple[int, int, int]) -> Pyramid:
    """A pyramid whose coarser levels hold 255 minus what they should: one sees who was read."""

    def level(factors: tuple[int, int, int]) -> Level:
        z, y, x = factors
        held = values if factors == (1, 1, 1) else 255 - values[::z, ::y, ::x]
        return Level(factors, held.shape, lambda roi: held[roi.to_slices()])

    metadata = VolumeMetadata(values.shape, "uint8", (8.0, 4.0, 2.0))
    return Pyramid(metadata, tuple(level(f) for f in ((1, 1, 1), *coarser)))


@given(st.data(), st.tuples(*[st.integers(1, 4)] * 3))
def test_any_box_at_any_factors_is_the_mean_the_first_or_the_largest_of_its_voxels(
    data: st.DataObject, factors: tuple[int, int, int]
) -> None:
    whole = [-(-n // f) for n, f in zip(SHAPE, factors, strict=True)]
    begin = [data.draw(st.integers(0, n - 1)) for n in whole]
    end = [data.draw(st.integers(b + 1, n)) for b, n in zip(begin, whole, strict=True)]
    pyramid = pyramid_of(VALUES)
    mean = pyramid.read(begin, end, factors, MEAN)
    first = pyramid.read(begin, end, factors, FIRST)
    largest = pyramid.read(begin, end, factors, LARGEST)
    assert mean.shape == first.shape == tuple(np.subtract(end, begin))
    for voxel in np.ndindex(mean.shape):
        corner = [(b + v) * f for b, v, f in zip(begin, voxel, factors, strict=True)]
        box = VALUES[tuple(slice(c, c + f) for c, f in zip(corner, factors, strict=True))]
        assert abs(float(mean[voxel]) - box.mean()) < 1.001
        assert first[voxel] == VALUES[tuple(corner)]
        assert largest[voxel] == box.max()


def test_the_coarsest_level_that_divides_the_request_is_read() -> None:
    pyramid = pyramid_of(VALUES, (1, 2, 2), (2, 4, 4))
    for asked, read in [
        ((1, 1, 1), (1, 1, 1)),
        ((1, 2, 2), (1, 2, 2)),
        ((2, 2, 2), (1, 2, 2)),
        ((4, 4, 8), (2, 4, 4)),
        ((2, 1, 4), (1, 1, 1)),
    ]:
        assert pyramid.level_for(asked).factors == read
    coarse = pyramid.read((0, 0, 0), (4, 3, 4), (2, 4, 4), FIRST)
    np.testing.assert_array_equal(coarse, 255 - VALUES[::2, ::4, ::4])


def test_a_level_that_was_rounded_down_is_repeated_at_its_end() -> None:
    pyramid = pyramid_of(VALUES)
    short = VALUES[:6:2, ::2, :12:2]
    level = Level((2, 2, 2), short.shape, lambda roi: short[roi.to_slices()])
    both = replace(pyramid, levels=(*pyramid.levels, level))
    found = both.read((0, 0, 0), (4, 5, 7), (2, 2, 2), FIRST)
    np.testing.assert_array_equal(found[:3, :, :6], short)
    np.testing.assert_array_equal(found[3, :, :6], short[-1])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_levels_of_multiscales_are_found(tmp_path: Path, version: str) -> None:
    planted_output.write(tmp_path, version)
    path = tmp_path / "data.zarr" / "raw"
    add_level(path, version)
    pyramid = open_pyramid(str(path))
    assert [level.factors for level in pyramid.levels] == [(1, 1, 1), (1, 2, 4)]
    assert pyramid.metadata.voxel_size_nm == planted_output.RAW_SIZE
    assert pyramid.levels[1].read(Roi((0, 0, 0), (1, 1, 1))).item() == 99
    given_size = open_pyramid(str(path), (35.0, 8.25, 6.5))
    assert given_size.metadata.voxel_size_nm == (35.0, 8.25, 6.5)
    assert [level.factors for level in given_size.levels] == [(1, 1, 1), (1, 2, 4)]


def add_level(path: Path, version: str) -> None:
    """A level of 99s whose voxels are 1 x 2 x 4 of the finest."""
    depth, height, width = planted_output.SHAPE[0], 20, 14
    size = (17.5, 8.25, 13.0)
    array = create_ome_zarr_array(
        path.parent, "other", (depth, height, width), "uint8", "zyx", size,
        planted_output.RAW_CENTRE, (8, 8, 8), {}, version,
    )  # fmt: skip
    array[...] = 99
    (path.parent / "other" / "s0").rename(path / "s1")
    name = ".zattrs" if version == "0.4" else "zarr.json"
    found = json.loads((path / name).read_text())
    holder = found if version == "0.4" else found["attributes"]["ome"]
    scale = [{"type": "scale", "scale": list(size)}]
    holder["multiscales"][0]["datasets"].append({"path": "s1", "coordinateTransformations": scale})
    (path / name).write_text(json.dumps(found))


def test_channels_are_read_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    output = planted_output.write(tmp_path)
    pyramid = open_channels(str(output / "affinities"), [1, 2, 0], "affinities")
    assert pyramid.channels == 3
    box = Roi([s.start for s in planted_output.OBJECT], (1, 2, 3))
    values = pyramid.levels[0].read(box)
    assert values.shape == (3, 1, 2, 3)
    assert values[:, 0, 0, 0].tolist() == [120, 180, 60]
