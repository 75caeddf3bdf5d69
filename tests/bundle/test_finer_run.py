"""A trained model on raw that is finer than what it was trained on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from custom.volumes import create_ome_zarr_array, open_volume
from tests.bundle import tiny

pytestmark = pytest.mark.slow

FINE = (16.0, 8.0, 8.0)


def write_finer(project: Path, **fields: Any) -> None:
    """The test volume, every section enlarged twice; it has no labels."""
    path = project / "data" / "datalist.json"
    content = json.loads(path.read_text())
    raw = open_volume(project / "data" / content["test"][0]["raw"])
    finer = project / "data" / "finer.zarr"
    if not finer.exists():
        values = raw.read(raw.metadata.roi).repeat(2, 1).repeat(2, 2)
        create_ome_zarr_array(
            finer, "raw", values.shape, values.dtype, "zyx", FINE, (0.0, -4.0, -4.0), (32,) * 3, {}
        ).write(values).result()
    content["test"] = [{"id": "bare", "raw": "finer.zarr/raw", **fields}]
    path.write_text(json.dumps(content))


def segments(project: Path) -> Any:
    return open_volume(project / "output" / "bare.zarr" / "labels" / "segmentation")


def test_finer_raw_is_segmented_at_the_models_voxel_size_when_asked(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    original = open_volume(project / "data" / "synthetic.zarr" / "raw").metadata
    write_finer(project)
    tiny.run("inference", project, region="volume")
    way_out = "bare has voxels of [16.0, 8.0, 8.0] nm, the model was trained on [16.0, 16.0, 16.0]"
    assert way_out in caplog.text
    assert segments(project).metadata.voxel_size_nm == FINE
    caplog.clear()
    write_finer(project, voxel_size_nm={"labels": list(tiny.VOXEL_SIZE)})
    tiny.run("inference", project, region="volume")
    assert "was trained on" not in caplog.text
    found = segments(project).metadata
    assert (found.shape, found.voxel_size_nm) == (original.shape, original.voxel_size_nm)
    np.testing.assert_allclose(found.offset_nm, original.offset_nm)
