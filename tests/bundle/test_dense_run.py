"""The runs in the dense layout: unequal edges, unequal voxels, linear and guided upsampling."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from scripts.synthetic import write_demo_data

from custom.features.cache import open_cache
from tests.bundle import tiny
from tests.features.guided import HUBCONF, write_hub

pytestmark = pytest.mark.slow

SHAPE = (20, 58, 28)
VOXEL_SIZE = (20.0, 16.0, 12.5)
SCALE = [1.25, 1.0, 1.6]


def predicted(output: Path) -> Any:
    (group,) = output.glob("*.zarr")
    assert (group / "labels" / "segmentation").is_dir()
    return zarr.open_array(group / "affinities" / "s0", mode="r")[:].astype(int)


@pytest.mark.parametrize("guided", [False, True], ids=["linear", "guided"])
def test_the_runs_lead_from_raw_to_segments(tmp_path: Path, guided: bool) -> None:
    """Inference gives the same from the cache and from raw; another upsampler is refused."""
    write_demo_data(tmp_path / "data", SHAPE, 0, VOXEL_SIZE)
    features = {
        "features#layout": "dense",
        "features#upsampler": write_hub(tmp_path / "hub") if guided else None,
        "features#pixels_per_voxel": SCALE,
        "features#precision": "float32",
    }
    tiny.run("preprocessing", tmp_path, **features)
    shapes = [v.metadata["arrays"]["features"]["shape"] for v in open_cache(tmp_path / "cache")]
    assert [shape[:2] for shape in shapes] == [[16, 20], [16, 20]]
    tiny.run("training", tmp_path, **features, epochs=1)
    described = json.loads((tmp_path / "model" / "model.json").read_text())["features"]
    assert (described["layout"], bool(described["upsampler"])) == ("dense", guided)
    found = []
    for source in ("raw", "cache"):
        output = tmp_path / f"from_{source}"
        places = {"output_dir": str(output), "source": source, "section": "validation"}
        tiny.run("inference", tmp_path, **features, **places)
        found.append(predicted(output))
    assert np.abs(found[0] - found[1]).max() <= 1 and found[0].std() > 0
    other = write_hub(tmp_path / "other", HUBCONF.replace("0.25", "0.5"))
    changed = {**features, "features#upsampler": other}
    sentence = tiny.mistake(lambda: tiny.run("inference", tmp_path, **changed))
    assert "upsampler_digest" in sentence or "upsampler (" in sentence
