import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from funlib.geometry import Roi
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from custom import working_grid
from custom.errors import InputError
from custom.volumes import Volume, open_volume
from custom.voxel_grid import Triple
from custom.working_grid import RawAxes, RawAxis, axes_of, on_working_grid, source_of

SIZE = (10.0, 4.0, 6.0)
SHAPE = (14, 11, 16)
RATIO = (2.0, 1.5, 3.0)
WHERE = "entry 'a', labels"


def volume(folder: Path, values: NDArray[Any], size: Sequence[float] = SIZE) -> Volume:
    np.save(folder / "raw.npy", values)
    return open_volume(folder / "raw.npy", size)


def coarser(ratio: Sequence[float], size: Sequence[float] = SIZE) -> Triple:
    z, y, x = (r * s for r, s in zip(ratio, size, strict=True))
    return z, y, x


def on_grid(
    raw: Volume, size: Triple, start: Triple | None, where: str = WHERE
) -> tuple[Volume, RawAxes]:
    found = on_working_grid(raw, size, start, where)
    assert source_of(found) is raw
    return found, axes_of(found)


@pytest.fixture
def raw(tmp_path: Path) -> Volume:
    return volume(tmp_path, np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8))


@given(
    size=st.integers(1, 40),
    ratio=st.sampled_from([1.0, 1.5, 2.0, 3.0, 2.62, 5.0]),
    start=st.floats(-30, 30),
)
def test_the_grid_is_that_of_labels_extended_over_raw(
    tmp_path_factory: pytest.TempPathFactory, size: int, ratio: float, start: float
) -> None:
    start = round(start) if ratio == 1 else round(start, 3)
    raw = volume(tmp_path_factory.mktemp("raw"), np.zeros((size, 9, 9), np.uint8))
    try:
        found, axes = on_grid(raw, coarser((ratio, 3, 3)), (start, 0, 0))
    except InputError:
        assert size < ratio
        return
    axis, count = axes[0], found.metadata.shape[0]
    number = (start - axis.edge(0)) / ratio
    assert abs(number - round(number)) < 0.02, "a corner of labels is the corner of a voxel"

    def centre(voxel: int) -> float:
        return (axis.edge(voxel) + axis.edge(voxel + 1)) / 2

    assert centre(-1) < 0.1 and centre(0) > -0.1
    assert centre(count - 1) < size + 0.1 and centre(count) > size - 0.1


def slow(values: NDArray[Any], places: Sequence[float], reach: float, axis: int) -> NDArray[Any]:
    """One weighted sum of a reflected copy after the other."""
    moved = np.moveaxis(values.astype(np.float64), axis, 0)
    pad = 3 * len(moved)
    padded = np.pad(moved, [(pad, pad), (0, 0), (0, 0)], mode="reflect")
    result = []
    for place in places:
        weights = np.maximum(0, 1 - np.abs(np.arange(len(padded)) - pad - place) / reach)
        result.append(np.tensordot(weights / weights.sum(), padded, 1))
    return np.moveaxis(np.array(result), 0, axis)


@pytest.mark.parametrize("start", [(0, 0, 0), (3.25, -1, 100)], ids=str)
def test_raw_is_resampled_by_a_triangle_and_reflected(
    raw: Volume, start: tuple[float, float, float]
) -> None:
    found, axes = on_grid(raw, coarser(RATIO), start)
    expected = raw.read(raw.metadata.roi).astype(np.float64)
    for axis, ratio in enumerate(RATIO):
        first = start[axis] + (ratio - 1) / 2
        first += np.ceil(-(start[axis] + ratio / 2) / ratio - 1e-9) * ratio
        places = [first + i * ratio for i in range(found.metadata.shape[axis])]
        assert axes[axis].origin == pytest.approx(places[0])
        expected = slow(expected, places, ratio, axis)
    values = found.read(found.metadata.roi)
    assert values.dtype == np.uint8
    assert np.abs(values - expected).max() <= 0.5 + 1e-4


@given(data=st.data(), limit=st.sampled_from([1, 60, 2**25]))
def test_a_part_is_read_as_of_the_whole_whatever_the_memory(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, limit: int
) -> None:
    values = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    raw = volume(tmp_path_factory.mktemp("raw"), values)
    found, _ = on_grid(raw, coarser(RATIO), (0.7, 0.4, 1))
    shape = found.metadata.shape
    whole = found.read(found.metadata.roi)
    offset = [data.draw(st.integers(0, n - 1)) for n in shape]
    extent = [data.draw(st.integers(1, n - o)) for n, o in zip(shape, offset, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(working_grid, "FINE_VOXELS", limit)
        part = found.read(Roi(offset, extent))
    np.testing.assert_array_equal(part, whole[Roi(offset, extent).to_slices()])


def test_the_memory_for_a_box_is_bounded(raw: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    read, sizes = raw.read, []
    monkeypatch.setattr(raw, "read", lambda roi: sizes.append(roi.size) or read(roi))
    found, _ = on_grid(raw, coarser(RATIO), None)
    found.read(found.metadata.roi)
    monkeypatch.setattr(working_grid, "FINE_VOXELS", 50)
    whole = sizes.pop()
    found.read(found.metadata.roi)
    assert max(sizes) < whole / 4


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
def test_values_keep_their_type_and_constants_their_value(tmp_path: Path, dtype: str) -> None:
    value = {"uint8": 255, "uint16": 65535, "int16": -32768}.get(dtype, -0.25)
    raw = volume(tmp_path, np.full(SHAPE, value, dtype))
    found, _ = on_grid(raw, coarser((1.7, 2.3, 3.1)), None)
    values = found.read(found.metadata.roi)
    assert values.dtype == dtype == found.metadata.dtype
    np.testing.assert_allclose(values, value, rtol=1e-6)


def test_axes_that_are_not_finer_stay_as_they_are(tmp_path: Path) -> None:
    values = np.random.default_rng(2).normal(size=SHAPE).astype(np.float32)
    raw = volume(tmp_path, values)
    found, axes = on_grid(raw, coarser((1, 2, 1)), (-3, 2, 5))
    assert [axis.is_raw for axis in axes] == [True, False, True]
    assert found.metadata.shape == (14, 6, 16)  # 5.5 voxels: the last is half in raw
    expected = slow(values, [0.5 + 2 * i for i in range(6)], 2, 1)
    np.testing.assert_allclose(found.read(found.metadata.roi), expected, atol=1e-5)


def test_raw_of_the_same_voxel_size_is_left_alone(raw: Volume) -> None:
    found, axes = on_grid(raw, coarser((1.00005, 1, 0.99995)), (0.3, 0, 0))
    assert found is raw
    assert axes == (RawAxis(14), RawAxis(11), RawAxis(16))


def test_sizes_that_are_nearly_multiples_are_multiples(raw: Volume) -> None:
    _, axes = on_grid(raw, coarser((2.0001, 1, 2.9999)), (0.009, 0, -0.009))
    assert axes == (RawAxis(14, 2, 0.5), RawAxis(11), RawAxis(16, 3, 1))


@pytest.mark.parametrize("centre", [(41.0, 37.0, 44.0), (38.5, 42.2, 39.9)], ids=str)
@pytest.mark.parametrize("ratio", [(2, 3, 4), (1.5, 2.62, 5), (1, 2, 1.2)], ids=str)
@pytest.mark.parametrize("start", [(0, 0, 0), (-1, 1.3, 3.7)], ids=str)
def test_a_blob_stays_where_it_is(
    tmp_path: Path,
    ratio: tuple[float, float, float],
    centre: tuple[float, float, float],
    start: tuple[float, float, float],
) -> None:
    if ratio[0] == 1:
        start = (round(start[0]), start[1], start[2])
    size = (5.0, 4.0, 3.0)
    axes = np.meshgrid(*(np.arange(80.0) for _ in range(3)), indexing="ij", sparse=True)
    squares = sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True))
    raw = volume(tmp_path, (1000 * np.exp(-squares / 50)).astype(np.float32), size)
    found, _ = on_grid(raw, coarser(ratio, size), start)
    values = found.read(found.metadata.roi)
    for axis in range(3):
        along = values.sum(tuple(a for a in range(3) if a != axis))
        voxel = (along * np.arange(len(along))).sum() / along.sum()
        position = found.metadata.offset_nm[axis] + voxel * found.metadata.voxel_size_nm[axis]
        assert abs(position - centre[axis] * size[axis]) < 0.02 * size[axis]


def test_it_is_pickled(raw: Volume) -> None:
    found, _ = on_grid(raw, coarser(RATIO), None)
    again = pickle.loads(pickle.dumps(found))
    roi = Roi((1, 2, 0), (3, 4, 2))
    np.testing.assert_array_equal(again.read(roi), found.read(roi))


@pytest.mark.parametrize(
    ("ratio", "start", "message"),
    [
        (
            (2, 0.5, 1),
            (0, 0, 0),
            "entry 'a', labels has voxels of .* finer than raw's of .* not co",
        ),
        ((2, 1, 1), (0, 0.5, 0), "starts at voxel 0.500 of raw along y, where both have equal vox"),
        ((40, 1, 1), (0, 0, 0), "none has its centre in raw, which has 14 of 10 nm along z"),
    ],
)
def test_grids_that_raw_cannot_fill_are_refused(
    raw: Volume, ratio: Triple, start: Triple, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        on_working_grid(raw, coarser(ratio), start, WHERE)
