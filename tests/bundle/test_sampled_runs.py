"""Cubes drawn from large sources, with classes or without labels, on their way through the runs."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from funlib.geometry import Roi
from scripts.cubes import cubes

from custom.datalist import open_entry, parse_datalist
from custom.features.cache import open_cache
from custom.volumes import create_ome_zarr_array, open_volume
from tests.bundle import tiny

pytestmark = pytest.mark.slow

SIZE = (12, 20, 16)


def source_of(folder: Path, section: str) -> dict[str, Any]:
    """The first entry of a section of the tiny project."""
    content = json.loads((folder / "data" / "datalist.json").read_text())
    entry: dict[str, Any] = content[section][0]
    return entry


def test_random_cubes_without_labels_are_cached_and_segmented(project: Path) -> None:
    entry = source_of(project, "test")
    sources = project / "data" / "sources.json"
    bare = {"id": "bare", "raw": entry["raw"]}
    sources.write_text(json.dumps({"name": "bare", "test": [bare]}))
    drawn = project / "data" / "cubes.json"
    cubes(str(sources), str(drawn), SIZE, count=2, section="test", seed=1)
    shutil.rmtree(project / "output")
    places = {"datalist": str(drawn), "cache_dir": str(project / "crops")}
    tiny.run("preprocessing", project, sections=["test"], **places)
    volumes = {volume.id: volume for volume in open_cache(project / "crops")}
    assert list(volumes) == ["bare-0000", "bare-0001"]
    tiny.run("inference", project, source="cache", **places)
    for given in parse_datalist(drawn).test:
        opened, volume = open_entry(given), volumes[given.id]
        assert not volume.has_labels
        np.testing.assert_array_equal(
            volume.read_raw(Roi((0, 0, 0), SIZE)), opened.read_raw(opened.roi)
        )
        found = open_volume(project / "output" / f"{given.id}.zarr" / "labels" / "segmentation")
        assert found.metadata.shape == SIZE
        assert found.metadata.offset_nm == volume.offset_nm


@pytest.fixture
def classes(project: Path) -> Path:
    """The tiny project, its labels split into two classes; one of them is not in validation."""
    group = project / "data" / "synthetic.zarr"
    labels = open_volume(group / "labels" / "cells")
    values = labels.read(labels.metadata.roi)
    for name, part in (("odd", values % 2 == 1), ("even", (values % 2 == 0) & (values > 0))):
        store = create_ome_zarr_array(
            group,
            name,
            values.shape,
            "uint8",
            "zyx",
            labels.metadata.voxel_size_nm,
            labels.metadata.offset_nm,
            (16, 16, 16),
            {},
        )
        store[...] = part.astype(np.uint8)
    content = json.loads((project / "data" / "datalist.json").read_text())
    for section in ("training", "validation", "test"):
        (entry,) = content[section]
        del entry["labels"]
        even = None if section == "validation" else "synthetic.zarr/even"
        entry["classes"] = {"even": even, "odd": "synthetic.zarr/odd"}
    (project / "data" / "datalist.json").write_text(json.dumps(content))
    for folder in ("cache", "model", "eval"):
        shutil.rmtree(project / folder)
    return project


def test_classes_go_through_all_runs_and_the_model_names_them(classes: Path) -> None:
    tiny.run("preprocessing", classes)
    tiny.run("training", classes, epochs=1)
    model = json.loads((classes / "model" / "model.json").read_text())
    assert model["classes"] == {"even": 1, "odd": 2}
    for volume in open_cache(classes / "cache"):
        gt = zarr.open_array(volume.path / "gt", mode="r")[:]
        mask = zarr.open_array(volume.path / "mask", mode="r")[:]
        cells = gt[mask]
        if volume.section == "training":
            assert mask.all() and set(np.unique(cells)) >= {1, 2}
        else:
            assert not mask.all() and set(np.unique(cells)) == {2}
    tiny.run("inference", classes)
    tiny.run("evaluating", classes)
    scores = json.loads((classes / "eval" / "scores.json").read_text())["entries"]
    assert scores[0]["truth_objects"] == 2


def test_classes_and_their_ids_are_in_the_model_of_a_training_from_raw(classes: Path) -> None:
    tiny.run("training", classes, epochs=1, source="raw")
    model = json.loads((classes / "model" / "model.json").read_text())
    assert model["classes"] == {"even": 1, "odd": 2}
