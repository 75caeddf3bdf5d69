"""The runs with many settings at once: what is trained on a cache is applied to raw alike."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from custom.features.cache import open_cache
from custom.features.pca import BASIS_FILE
from custom.volumes import create_ome_zarr_array, open_volume
from tests.bundle import tiny

pytestmark = pytest.mark.slow

STAGES = {
    "backbone": {
        "model_type": "dinov3_convnext",
        "hidden_sizes": [4, 6, 8, 10],
        "depths": [1, 1, 1, 1],
    },
    "features#layers": [2, 3],
    "features#final_norm": False,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "dense": {"features#layout": "dense", "features#dtype": "int8", "features#overlap": 16},
    "stages": {**STAGES, "features#dtype": "float32", "features#slice_step": 2},
}
REDUCED = {"features#pca": 5, "features#precision": "float32"}
TARGETS = {
    "affinity_offsets": tiny.NETWORK["affinity_offsets"],
    "lsd_sigma_nm": tiny.NETWORK["lsd_sigma_nm"],
    "boundary_power": 1.0,
}
SAMPLES = {
    "cached_targets": True,
    "symmetry": "none",
    "boundary_power": 1.0,
    "feature_dtype": "float32",
    "pool_gib": 0.5,
    "num_workers": 2,
    "workers": "threads",
    "epochs": 1,
}


def write_finer_classes(folder: Path) -> None:
    """The tiny project with raw of half the edge in y and x, and labels as two classes."""
    tiny.write_data(folder)
    group = folder / "data" / "synthetic.zarr"
    raw, labels = open_volume(group / "raw"), open_volume(group / "labels" / "cells")
    fine, ids = raw.read(raw.metadata.roi), labels.read(labels.metadata.roi)
    fine = fine.repeat(2, 1).repeat(2, 2)
    edge = tiny.VOXEL_SIZE
    written = {
        "fine": (fine, (edge[0], edge[1] / 2, edge[2] / 2), (0.0, -edge[1] / 4, -edge[2] / 4)),
        "odd": ((ids % 2 == 1).astype(np.uint8), edge, labels.metadata.offset_nm),
        "even": (((ids % 2 == 0) & (ids > 0)).astype(np.uint8), edge, labels.metadata.offset_nm),
    }
    for name, (values, size, offset) in written.items():
        create_ome_zarr_array(
            group, name, values.shape, values.dtype, "zyx", size, offset, (16,) * 3, {}
        ).write(values).result()
    path = folder / "data" / "datalist.json"
    content = json.loads(path.read_text())
    for section in ("training", "validation", "test"):
        (entry,) = content[section]
        del entry["labels"]
        classes = {name: f"synthetic.zarr/{name}" for name in ("even", "odd")}
        entry |= {"raw": "synthetic.zarr/fine", "classes": classes}
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_model_of_cached_targets_and_copies_predicts_the_same_from_raw_and_from_the_cache(
    kind: str, tmp_path: Path
) -> None:
    write_finer_classes(tmp_path)
    features = {**REDUCED, **SETTINGS[kind]}
    network = {**features, "token_channels": 5}
    tiny.run("preprocessing", tmp_path, **features, targets=TARGETS, augmented_copies=1)
    volumes = open_cache(tmp_path / "cache", copies=True)
    assert [(v.section, v.copy) for v in volumes] == [
        ("training", 0),
        ("validation", 0),
        ("training", 1),
    ]
    tiny.run("training", tmp_path, **network, **SAMPLES)
    model = json.loads((tmp_path / "model" / "model.json").read_text())
    assert model["classes"] == {"even": 1, "odd": 2}
    assert len(model["split"]["training"]) == 1
    assert model["features"] == volumes[0].spec.to_json()
    (tmp_path / "cache" / BASIS_FILE).rename(tmp_path / "cache" / "aside")  # raw needs no cache
    found = []
    for source in ("raw", "cache"):
        output = tmp_path / f"from_{source}"
        places = {"output_dir": str(output), "source": source, "section": "validation"}
        tiny.run("inference", tmp_path, **network, **places)
        (group,) = output.glob("*.zarr")
        found.append(zarr.open_array(group / "affinities" / "s0", mode="r")[:].astype(int))
        if source == "raw":
            (tmp_path / "cache" / "aside").rename(tmp_path / "cache" / BASIS_FILE)
    assert found[0].std() > 0
    assert np.abs(found[0] - found[1]).max() <= 2
