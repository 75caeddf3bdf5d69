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
from custom.pipeline import load_pipeline
from custom.scores import as_uint8
from tests.bundle import tiny

README = tiny.ROOT / "README.md"
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


def test_the_readmes_lines_work(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (lines,) = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    (entry,) = parse_datalist(project / "data" / "datalist.json").section("test")
    monkeypatch.chdir(project)
    (project / "model").rename("models")
    found: dict[str, Any] = {}
    exec(lines.replace("raw.zarr", entry.raw), found)
    assert found["probabilities"].shape == (1, 14, *tiny.SHAPE)


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
