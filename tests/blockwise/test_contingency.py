"""Counting on disk; ``tests/test_contingency.py`` has the laws of the tables themselves."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from custom.blockwise import contingency
from custom.comparison import compared
from custom.contingency import Table, contingency_of
from custom.counting import Counting
from custom.datalist import entries_in
from custom.errors import InputError
from custom.metrics import (
    average_precisions,
    instance_scores,
    object_counts,
    precisions_of_table,
    scores_of_table,
)
from custom.volumes import create_ome_zarr_array

SHAPE, SIZE = (10, 14, 22), (40.0, 8.0, 10.0)
FIRST = (2, 0, 3)  # raw voxel of the segmentation's first one
ROI = {"offset": [1, 2, 3], "shape": [8, 11, 17]}
COMMON = (slice(2, 9), slice(2, 13), slice(3, 20))


def write(path: Path, name: str, array: NDArray[Any], first: tuple[int, int, int]) -> None:
    z, y, x = (f * s for f, s in zip(first, SIZE, strict=True))
    chunks = [4, 5, 6]
    create_ome_zarr_array(path, name, array.shape, array.dtype, "zyx", SIZE, (z, y, x), chunks, {})[
        ...
    ] = array


def labels(seed: int) -> NDArray[np.uint64]:
    """Slabs of ids beyond 32 bits and an unlabelled part."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 6, (3, 4, 5)).astype(np.uint64)
    fine = np.kron(coarse, np.ones((4, 4, 5), np.uint64))[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    return np.where(fine > 0, fine + np.uint64(2**40), 0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path / "data.zarr", "raw", np.zeros(SHAPE, np.uint8), (0, 0, 0))
    write(tmp_path / "data.zarr", "labels/cells", labels(1), (0, 0, 0))
    mask = np.ones(SHAPE, np.uint8)
    mask[3:5, :6] = 0
    write(tmp_path / "data.zarr", "mask", mask, (0, 0, 0))
    write_segmentation(tmp_path, labels(2))
    named = {"raw": "raw", "labels": "labels/cells", "mask": "mask/s0"}
    source = {field: f"data.zarr/{path}" for field, path in named.items()}
    datalist = {"name": "slabs", "test": [{"id": "cube", **source, "roi": ROI}]}
    (tmp_path / "datalist.json").write_text(json.dumps(datalist))
    return tmp_path


def write_segmentation(folder: Path, array: NDArray[Any]) -> None:
    part = array[FIRST[0] :, FIRST[1] :, FIRST[2] :]
    write(folder / "output" / "cube.zarr", "labels/segmentation", part, FIRST)


def count(folder: Path, **settings: Any) -> Table:
    (entry,) = entries_in(folder / "datalist.json", "test")
    comparison = compared(entry, folder / "output")
    eval_dir = folder / "eval"
    return Counting(**settings).table(comparison, folder / "datalist.json", "test", eval_dir)


def whole() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    truth = labels(1)
    truth[3:5, :6] = 0
    return truth[COMMON], labels(2)[COMMON]


def assert_scores(table: Table) -> None:
    counted = contingency_of(table.pairs)
    assert scores_of_table(counted) == pytest.approx(instance_scores(*whole()), abs=1e-9)
    assert precisions_of_table(counted) == pytest.approx(average_precisions(*whole()), abs=1e-9)
    assert counted.objects == object_counts(*whole())
    assert int(counted.counts.sum()) == np.count_nonzero(whole()[0])


@pytest.mark.parametrize("block_size", [None, 3, (4, 7, 20), (1, 64, 5)])
def test_any_block_size_gives_the_scores_of_the_whole_arrays(data: Path, block_size: Any) -> None:
    table = count(data, block_size=block_size)
    assert_scores(table)
    at_once = count(data, block_size=64)
    for name in ("pairs", "splits", "merges"):
        one, other = getattr(table, name), getattr(at_once, name)
        np.testing.assert_array_equal(one.keys, other.keys)
        np.testing.assert_array_equal(one.counts, other.counts)
    place = tuple((table.pairs.positions + FIRST).T)
    np.testing.assert_array_equal(labels(1)[place], table.pairs.keys[:, 1])
    np.testing.assert_array_equal(labels(2)[place], table.pairs.keys[:, 2])


@pytest.mark.slow
def test_worker_processes_count_the_same(data: Path) -> None:
    assert_scores(count(data, block_size=(4, 6, 9), workers=2))


def blocks_counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    counted: list[Path] = []
    original = contingency.save_table

    def save(path: Path, table: Table) -> None:
        counted.append(path)
        original(path, table)

    monkeypatch.setattr(contingency, "save_table", save)
    return counted


def test_counted_blocks_are_not_counted_again_and_failed_ones_are(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = blocks_counted(monkeypatch)
    original, failing = contingency.table_of, [True]

    def table_of(*arguments: Any) -> Table:
        if failing[0] and arguments[4][0] > 0:  # all blocks but those of the first sections
            raise OSError("no such disk")
        return original(*arguments)

    monkeypatch.setattr(contingency, "table_of", table_of)
    with pytest.raises(InputError, match=r"blocks of 'contingency' failed.*no such disk"):
        count(data, block_size=(4, 20, 20), retries=0)
    assert len(counted) == 1
    failing[0] = False
    assert_scores(count(data, block_size=(4, 20, 20)))
    assert len(set(counted)) == len(counted) == 2


def other_segmentation(folder: Path) -> None:
    array = labels(2)
    array[array > 0] += np.uint64(5)
    (folder / "output").rename(folder / "old")
    write_segmentation(folder, array)


def other_mask(folder: Path) -> None:
    changed = json.loads((folder / "datalist.json").read_text())
    del changed["test"][0]["mask"]
    (folder / "datalist.json").write_text(json.dumps(changed))


def moved_mask(folder: Path) -> None:
    """By a voxel along z, in the group's metadata; the array that the datalist names stays."""
    path = folder / "data.zarr" / "mask" / ".zattrs"
    content = json.loads(path.read_text())
    (dataset,) = content["multiscales"][0]["datasets"]
    (translation,) = (t for t in dataset["coordinateTransformations"] if "translation" in t)
    translation["translation"][0] += SIZE[0]
    path.write_text(json.dumps(content))


def same(folder: Path) -> None:
    """Nothing changes."""


@pytest.mark.parametrize(
    ("change", "settings", "anew"),
    [
        (other_segmentation, {}, True),
        (other_mask, {}, True),
        (moved_mask, {}, True),
        (same, {"block_size": 32}, True),
        (same, {"retries": 5}, False),
    ],
    ids=["segmentation", "mask", "place of the mask", "block size", "retries"],
)
def test_counts_begin_anew_where_what_they_are_of_changed(
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Any,
    settings: Mapping[str, Any],
    anew: bool,
) -> None:
    count(data, block_size=64)
    counted = blocks_counted(monkeypatch)
    change(data)
    count(data, **{"block_size": 64, **settings})
    assert bool(counted) == anew


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_size": 0}, "block_size must be one or three whole numbers"),
        ({"workers": 0}, "workers must be a whole number from 1 on"),
        ({"workers": "spawn"}, "workers must be a whole number from 1 on"),
        ({"cluster": "pbs", "workers": 1}, "cluster must be null, 'lsf' or 'slurm', got 'pbs'"),
        ({"cluster": "slurm"}, "cluster is 'slurm', but workers is null"),
        ({"retries": -1}, "retries must be a whole number from 0 on"),
    ],
)
def test_settings_are_checked_at_once(settings: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Counting(**settings)
