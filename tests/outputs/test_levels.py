import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import ome_zarr.io
import ome_zarr.reader
import ome_zarr_models
import pytest
import tensorstore
import zarr
from ome_zarr_models.v05.labels import LabelsAttrs

from custom.errors import InputError
from custom.outputs.images import create, finish, image_names, is_complete, is_result, levels
from custom.outputs.levels import passes, write_levels
from custom.outputs.objects import measured
from custom.outputs.pyramids import levels_of, shrunk
from custom.outputs.settings import OutputSettings
from custom.volumes import open_array, open_volume
from tests.outputs.written import OFFSET, SHAPE, SIZE, write, write_result

LEVELS = 4  # of what write_result writes

FORMATS = [
    pytest.param(OutputSettings(), id="0.4"),
    pytest.param(OutputSettings("0.5"), id="0.5"),
    pytest.param(OutputSettings("0.5", shards=128), id="0.5 with shards"),
]


def finished(store: Path, settings: OutputSettings) -> dict[str, Any]:
    """A result with its pyramids; the voxels of the finest levels."""
    images = write_result(store, settings)
    for name in images:
        write_levels(store, name, settings)
    finish(store)
    return images


@pytest.fixture(scope="module", params=FORMATS)
def result(request: Any, tmp_path_factory: Any) -> tuple[Path, OutputSettings]:
    """A finished result."""
    store = tmp_path_factory.mktemp("result") / "cube.zarr"
    finished(store, request.param)
    return store, request.param


def test_every_level_is_made_from_the_one_before(result: Any) -> None:
    store, _ = result
    for name in image_names(store):
        found = levels(store, name)
        arrays = [open_array(store / name / f"s{k}").read().result() for k in range(len(found))]
        for (fine, coarse), (before, after) in zip(pairwise(found), pairwise(arrays), strict=True):
            steps = [c // f for f, c in zip(fine.factor, coarse.factor, strict=True)]
            expected = shrunk(before[0] if before.ndim == 4 else before, steps)
            np.testing.assert_array_equal(after[0] if after.ndim == 4 else after, expected)


def test_ome_zarr_models_finds_nothing_wrong(result: Any) -> None:
    store, settings = result
    for name in image_names(store):
        group = zarr.open_group(store / name, mode="r")
        model = ome_zarr_models.open_ome_zarr(group, version=settings.version)
        assert type(model).__name__ == ("ImageLabel" if name.startswith("labels/") else "Image")
        multiscale: Any = model.ome_attributes.multiscales[0]  # type: ignore[attr-defined]
        assert len(multiscale.datasets) == LEVELS
        assert {axis.unit for axis in multiscale.axes[-3:]} == {"nanometer"}


def test_ome_zarr_models_knows_the_index_of_labels(result: Any) -> None:
    store, settings = result
    group = zarr.open_group(store / "labels", mode="r")
    if settings.version == "0.4":
        assert type(ome_zarr_models.open_ome_zarr(group, version="0.4")).__name__ == "Labels"
    else:  # its Labels wants colours where it says that they are optional
        attributes: Any = group.attrs.asdict()["ome"]
        assert LabelsAttrs.model_validate(attributes).labels == ["segmentation"]


def test_ome_zarr_reads_all_levels_and_the_labels(result: Any) -> None:
    store, _ = result
    for name, kind in (("affinities", "Multiscales"), ("labels/segmentation", "Label")):
        location = ome_zarr.io.parse_url(store / name)
        assert location is not None
        node = next(iter(ome_zarr.reader.Reader(location)()))
        assert kind in {type(spec).__name__ for spec in node.specs}
        shapes = [data.shape[-3:] for data in node.data]
        assert shapes == [level.shape for level in levels(store, name)]


def test_tensorstore_knows_scale_and_place_of_our_levels(result: Any) -> None:
    """What a viewer does: the driver by its name, the metadata of the group alone."""
    store, settings = result
    group = zarr.open_group(store / "affinities", mode="r").attrs.asdict()
    driver = "zarr" if settings.version == "0.4" else "zarr3"
    for dataset in group.get("ome", group)["multiscales"][0]["datasets"]:
        path = store / "affinities" / dataset["path"]
        spec = {"driver": driver, "kvstore": {"driver": "file", "path": f"{path}/"}}
        array = tensorstore.open(spec).result()
        assert array.read().result().any()


def test_a_planted_object_is_at_its_place_at_every_level(tmp_path: Path) -> None:
    store, settings = tmp_path / "cube.zarr", OutputSettings()
    begin, end = (8, 40, 24), (24, 104, 56)  # whole voxels of every level
    values = np.zeros(SHAPE, dtype=np.uint64)
    values[tuple(slice(b, e) for b, e in zip(begin, end, strict=True))] = 7
    write(store, "labels/segmentation", values, settings)
    write_levels(store, "labels/segmentation", settings)
    finish(store)
    middle = [
        o + s * ((b + e - 1) / 2) for o, s, b, e in zip(OFFSET, SIZE, begin, end, strict=True)
    ]
    for k in range(LEVELS):
        volume = open_volume(store / "labels" / "segmentation" / f"s{k}")
        inside = np.argwhere(volume.read(volume.metadata.roi) == 7)
        centre = inside.mean(axis=0) * volume.metadata.voxel_size_nm + volume.metadata.offset_nm
        np.testing.assert_allclose(centre, middle)
        extent = (np.ptp(inside, axis=0) + 1) * volume.metadata.voxel_size_nm
        np.testing.assert_allclose(extent, np.subtract(end, begin) * SIZE)


def test_shards_are_files_of_many_chunks(tmp_path: Path) -> None:
    for name, settings in (("a", OutputSettings("0.5")), ("b", OutputSettings("0.5", 128))):
        finished(tmp_path / name, settings)
    arrays = [zarr.open_array(tmp_path / name / "affinities" / "s0", mode="r") for name in "ab"]
    assert [array.shards for array in arrays] == [None, (1, 37, 128, 128)]
    assert {array.chunks for array in arrays} == {(1, 37, 64, 64)}
    np.testing.assert_array_equal(arrays[0][:], arrays[1][:])


def test_what_is_not_finished_says_so(tmp_path: Path) -> None:
    store = tmp_path / "cube.zarr"
    write_result(store)
    assert is_result(store)
    assert not is_complete(store)
    finish(store)
    assert is_complete(store)
    assert not is_result(tmp_path)


@pytest.mark.parametrize(("before", "after"), [("0.4", "0.5"), ("0.5", "0.4")])
def test_another_version_leaves_nothing_of_the_one_before(
    tmp_path: Path, before: str, after: str
) -> None:
    store = tmp_path / "cube.zarr"
    for version in (before, after):
        finished(store, OutputSettings(version))
    wrong = {".zgroup", ".zattrs", ".zarray"} if after == "0.5" else {"zarr.json"}
    assert not wrong & {path.name for path in store.rglob("*")}
    assert is_complete(store)


def test_an_image_that_is_there_keeps_its_voxels_and_another_is_refused(tmp_path: Path) -> None:
    store, settings = tmp_path / "cube.zarr", OutputSettings()
    images = write_result(store, settings)
    path = create(store, "labels/segmentation", SHAPE, "u8", SIZE, OFFSET, settings, {})
    expected = images["labels/segmentation"]
    np.testing.assert_array_equal(open_array(path).read().result(), expected)
    for changes in (((4, 5, 6), "u8", settings), (SHAPE, "u4", settings)):
        shape, dtype, other = changes
        with pytest.raises(InputError, match="exists with another shape"):
            create(store, "labels/segmentation", shape, dtype, SIZE, OFFSET, other, {})


def test_large_files_are_made_from_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("custom.outputs.levels.READ", 32)
    settings, name = OutputSettings("0.5", shards=128), "labels/segmentation"
    values = write_result(tmp_path / "cube.zarr", settings)[name]
    write_levels(tmp_path / "cube.zarr", name, settings)
    found = open_array(tmp_path / "cube.zarr" / name / "s1").read().result()
    np.testing.assert_array_equal(found, shrunk(values, (1, 2, 2)))


@pytest.mark.parametrize("unit", [64, 256])
@pytest.mark.parametrize("size", [(8.0, 8.0, 8.0), (40.0, 8.0, 8.0)])
def test_blocks_hold_whole_files_of_every_level_that_is_made(
    unit: int, size: tuple[float, float, float]
) -> None:
    levels = levels_of((900, 3000, 5000), size, 64)
    steps = passes(levels, unit)
    made = [range(step.first + 1, step.first + step.count + 1) for step in steps]
    assert [number for numbers in made for number in numbers] == list(range(1, len(levels)))
    for step, numbers in zip(steps, made, strict=True):
        read = np.divide(step.block, levels[step.first].factor)
        assert max(read) <= max(256, 2 * unit)
        for number in numbers:
            assert not np.mod(step.block, np.multiply(unit, levels[number].factor)).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"version": "0.6"}, "ome_zarr_version must be 0.4 or 0.5, got 0.6"),
        ({"shards": 128}, 'shards need ome_zarr_version "0.5"'),
        ({"version": "0.5", "shards": 100}, "shards must be a multiple of 64"),
        ({"version": "0.5", "shards": 0}, "shards must be a multiple of 64"),
        ({"object_table": "xlsx"}, 'object_table must be "parquet", "csv" or null'),
        ({"pyramid": 1}, "pyramid must be true or false"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OutputSettings(**settings)


def peak(folder: Path, shape: tuple[int, int, int]) -> int:
    """Memory for the pyramid and the table of an empty segmentation."""
    path = create(folder, "labels/x", shape, "u8", (8, 8, 8), (0, 0, 0), OutputSettings(), {})
    tracemalloc.start()
    write_levels(folder, "labels/x", OutputSettings())
    measured(open_volume(path), block=64)
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


def test_memory_follows_the_block_not_the_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("custom.outputs.levels.MAX_BLOCK", 128)
    small, large = (70, 140, 150), (70, 280, 600)
    assert peak(tmp_path / "large", large) < 1.1 * peak(tmp_path / "small", small)


def test_a_version_may_be_a_number_as_on_a_command_line() -> None:
    number: Any = 0.5
    assert OutputSettings(number) == OutputSettings("0.5")
