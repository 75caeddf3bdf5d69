"""A trained model as one module gives what its bundle's inference gives."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from custom.datalist import open_entry, parse_datalist
from custom.errors import InputError
from custom.features.intensity import entry_window
from custom.metrics import variation_of_information
from custom.pipeline import load_pipeline
from custom.scores import as_uint8
from tests.bundle import tiny

pytestmark = pytest.mark.slow

README = tiny.ROOT / "README.md"
PYTHON = tiny.BUNDLE / "docs" / "python.md"
WINDOW = (0.0, 255.0)


@pytest.mark.parametrize("changes", [{}, {"token_channels": 0}, {"mirror": True}], ids=str)
def test_a_loaded_pipeline_predicts_what_inference_writes(
    project: Path, changes: dict[str, Any]
) -> None:
    if changes:
        for path in (project / "model").iterdir():
            path.unlink()
        tiny.run("training", project, **changes)
    tiny.run("inference", project, region="volume", write_lsds=True, **changes)
    group = zarr.open_group(project / "output" / "synthetic.zarr", mode="r")
    written = [np.asarray(group[f"{name}/s0"]) for name in ("affinities", "lsds")]
    (entry,) = parse_datalist(project / "data" / "datalist.json").section("test")
    opened = open_entry(entry)
    raw = torch.from_numpy(opened.read_raw(opened.raw.metadata.roi))[None, None]
    pipeline = load_pipeline(project / "model", entry_window(opened, (0.1, 99.9)))
    found = as_uint8(pipeline.predict(raw)[0]).astype(int)
    assert np.abs(found - np.concatenate(written)).max() <= 1
    assert found.std() > 1
    assert (pipeline.backbone is None) == ("token_channels" in changes)


def blocks(document: Path) -> list[str]:
    """The Python of a document, as printed."""
    return re.findall(r"^```python\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)


def statements(block: str) -> list[str]:
    """Lines that are neither blank nor imports."""
    lines = [line for line in block.splitlines() if line.strip()]
    return [line for line in lines if not line.startswith(("import ", "from "))]


@pytest.fixture
def documented(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the documents' lines name; the current one."""
    monkeypatch.chdir(project)
    (project / "model").rename("models")
    (entry,) = parse_datalist(project / "data" / "datalist.json").section("test")
    (project / "raw.zarr").symlink_to(entry.raw)
    raw = open_entry(entry).raw
    np.save("raw.npy", raw.read(raw.metadata.roi))
    return project


def test_the_documents_lines_segment_and_predict(documented: Path) -> None:
    (shown,) = blocks(README)
    segmenting, predicting, _ = blocks(PYTHON)
    assert shown == segmenting
    assert len(statements(segmenting)) <= 5
    found: dict[str, Any] = {}
    exec(segmenting, found)
    assert (found["segments"].shape, found["segments"].dtype) == (tiny.SHAPE, np.uint64)
    assert np.unique(found["segments"]).size > 1
    exec(predicting, found)
    assert found["probabilities"].shape == (1, 14, *tiny.SHAPE)


def test_the_documents_lines_train(documented: Path) -> None:
    *_, training = blocks(PYTHON)
    assert len(statements(training)) <= 15
    found: dict[str, Any] = {}
    exec(training, found)
    assert np.isfinite(found["value"].item())
    steps = {int(state["step"]) for state in found["optimizer"].state.values()}
    assert steps == {4}
    assert len(found["optimizer"].state) == len(list(found["network"].parameters()))


def test_a_pipeline_segments_what_inference_writes(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = project / "model" / "model.json"
    content = json.loads(path.read_text())
    content["segmentation"] = {"bias": -0.45, "threshold": None}  # not the configuration's
    path.write_text(json.dumps(content))
    tiny.run("inference", project, region="volume")
    written = zarr.open_array(project / "output/synthetic.zarr/labels/segmentation/s0", mode="r")[:]
    (entry,) = parse_datalist(project / "data" / "datalist.json").section("test")
    opened = open_entry(entry)
    raw = opened.read_raw(opened.raw.metadata.roi)
    pipeline = load_pipeline(project / "model", entry_window(opened, (0.1, 99.9)))
    assert pipeline.segmenter is not None and pipeline.segmenter.segmenter is not None
    assert pipeline.segmenter.segmenter.min_size == tiny.NETWORK["segmenter#min_size"]
    split, merge = variation_of_information(
        np.asarray(written), pipeline.segment(raw, tiny.VOXEL_SIZE)
    )
    assert split + merge < 0.02  # affinities may differ by one of 255
    assert "expect a worse" not in caplog.text
    swapped = raw.astype(raw.dtype.newbyteorder())[:8, ::-1]
    assert pipeline.segment(swapped, (40.0, 16.0, 16.0)).shape == swapped.shape
    assert "voxels of [40.0, 16.0, 16.0] nm, the model was trained on [16.0, 16.0" in caplog.text


def test_what_cannot_be_segmented_is_said(project: Path) -> None:
    pipeline = load_pipeline(project / "model", WINDOW)
    raw = np.zeros((4, 8, 16), np.uint8)
    with pytest.raises(ValueError, match=r"must be \(D, H, W\), got shape \(1, 4, 8, 16\)"):
        pipeline.segment(raw[None], tiny.VOXEL_SIZE)
    with pytest.raises(InputError, match="voxel_size_nm must be a list of 3 numbers"):
        pipeline.segment(raw, (16.0, 16.0))
    with pytest.raises(InputError, match="NaN or infinite"):
        pipeline.segment(np.full(raw.shape, np.nan, np.float32), tiny.VOXEL_SIZE)
    pipeline.segmenter = None
    with pytest.raises(ValueError, match="load_pipeline gives it one"):
        pipeline.segment(raw, tiny.VOXEL_SIZE)


def described(project: Path, **changes: Any) -> Path:
    """The project's model with another description."""
    path = project / "model" / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path.parent


def test_models_that_cannot_be_loaded_say_why(project: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no trained model"):
        load_pipeline(tmp_path, WINDOW)
    config = json.loads((project / "model" / "model.json").read_text())["config"]
    features = json.loads((project / "model" / "model.json").read_text())["features"]
    with pytest.raises(InputError, match="trained without a configuration that has 'network_def'"):
        load_pipeline(described(project, config={}), WINDOW)
    other = {**config, "backbone": {**config["backbone"], "seed": 5}}
    with pytest.raises(InputError, match="trained on features that differ from the request in: "):
        load_pipeline(described(project, config=other), WINDOW)
    wider = {**config, "fused_channels": 3}
    with pytest.raises(InputError, match="is of another network than network_def"):
        load_pipeline(described(project, config=wider, features=features), WINDOW)
