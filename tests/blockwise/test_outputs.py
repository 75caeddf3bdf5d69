import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from custom.blockwise.objects import object_tasks, write_object_table
from custom.blockwise.pyramid import Pyramid, drop_pyramids, pyramid_tasks
from custom.blockwise.runs import run_tasks
from custom.blockwise.tracked import Tracked
from custom.outputs.images import finish, image_names, levels, remove
from custom.outputs.levels import write_levels
from custom.outputs.objects import measured, object_table, read_table
from custom.outputs.settings import OutputSettings
from custom.volumes import open_array, open_volume
from tests.outputs.written import OFFSET, SHAPE, SIZE, write_result

IMAGES = ["affinities", "labels/segmentation"]
ALL = OutputSettings("0.5", shards=64, object_table="parquet")


def chain(store: Path, settings: OutputSettings, **common: Any) -> list[Tracked]:
    """What follows the segmentation."""
    state = store.parent / "state"
    return [
        *pyramid_tasks(store, state, IMAGES, SHAPE, SIZE, settings, **common),
        *object_tasks(store, state, SHAPE, settings, **common),
    ]


def run(store: Path, settings: OutputSettings, workers: int | None = None, **common: Any) -> None:
    run_tasks(chain(store, settings, **common), store.parent / "state", workers)
    write_object_table(store, store.parent / "state", settings)
    finish(store)


@pytest.mark.parametrize("workers", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_blocks_make_what_a_run_without_blocks_makes(tmp_path: Path, workers: int | None) -> None:
    stores = [tmp_path / "blocks" / "cube.zarr", tmp_path / "whole" / "cube.zarr"]
    for store in stores:
        write_result(store, ALL)
    run(stores[0], ALL, workers, threads=2)
    for name in IMAGES:
        write_levels(stores[1], name, ALL)
        for number in range(len(levels(stores[0], name))):
            one, other = (
                open_array(store / name / f"s{number}").read().result() for store in stores
            )
            assert one.any()
            np.testing.assert_array_equal(one, other)
    volume = open_volume(stores[1] / "labels" / "segmentation")
    table = read_table(stores[0])
    assert table is not None
    assert table.equals(object_table(measured(volume), SIZE, OFFSET))


def test_small_blocks_make_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 64 voxels at every level: many more than one."""
    stores = [tmp_path / "small" / "cube.zarr", tmp_path / "large" / "cube.zarr"]
    for store in stores:
        write_result(store)
    run(stores[1], OutputSettings())
    monkeypatch.setattr("custom.outputs.levels.MAX_BLOCK", 1)
    assert len(chain(stores[0], OutputSettings())) == len(levels(stores[0], IMAGES[0])) - 1
    run(stores[0], OutputSettings())
    for name in IMAGES:
        for number in range(len(levels(stores[0], name))):
            one, other = (
                open_array(store / name / f"s{number}").read().result() for store in stores
            )
            np.testing.assert_array_equal(one, other)


def test_a_volume_of_one_chunk_and_settings_without_need_no_tasks(tmp_path: Path) -> None:
    settings = OutputSettings(pyramid=False)
    assert chain(tmp_path / "cube.zarr", settings) == []
    assert write_object_table(tmp_path / "cube.zarr", tmp_path / "state", settings) is None
    small = pyramid_tasks(
        tmp_path / "cube.zarr", tmp_path, IMAGES, (64, 64, 10), SIZE, OutputSettings()
    )
    assert small == []


def test_dropped_levels_are_not_listed_any_more(tmp_path: Path) -> None:
    store = tmp_path / "cube.zarr"
    write_result(store)
    run(store, OutputSettings())
    for task in chain(store, OutputSettings()):
        assert isinstance(task, Pyramid)
        task.drop()
    assert_flat(store)


def test_a_pyramid_that_is_not_wanted_any_more_goes_and_comes_again(tmp_path: Path) -> None:
    store = tmp_path / "cube.zarr"
    write_result(store)
    run(store, OutputSettings())
    drop_pyramids(store, [*IMAGES, "not there"])
    assert_flat(store)
    run(store, OutputSettings())
    for name in IMAGES:
        assert open_array(store / name / "s1").read().result().any()


def assert_flat(store: Path) -> None:
    """No image has a level but the finest, and none is listed."""
    for name in IMAGES:
        assert [path.name for path in sorted((store / name).glob("s*"))] == ["s0"]
        (multiscale,) = json.loads((store / name / ".zattrs").read_text())["multiscales"]
        assert [level["path"] for level in multiscale["datasets"]] == ["s0"]


def test_an_image_that_is_gone_has_no_levels_to_drop(tmp_path: Path) -> None:
    store = tmp_path / "cube.zarr"
    write_result(store)
    run(store, OutputSettings())
    for name in IMAGES:
        remove(store, name)
    assert image_names(store) == []
    for task in chain(store, OutputSettings()):
        task.drop()
    assert image_names(store) == []


@pytest.mark.parametrize("lost", ["affinities/s1", "state/objects/parts"])
def test_what_is_lost_is_made_again(tmp_path: Path, lost: str) -> None:
    store = tmp_path / "cube.zarr"
    write_result(store)
    settings = OutputSettings(object_table="csv")
    run(store, settings)
    before = read_table(store)
    shutil.rmtree(tmp_path / lost if "state" in lost else store / lost)
    run(store, settings)
    again = read_table(store)
    assert before is not None
    assert again is not None
    assert again.equals(before)
    assert open_array(store / "affinities" / "s1").read().result().any()
