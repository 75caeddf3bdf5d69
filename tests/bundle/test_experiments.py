"""Every overlay trains ten steps, validates, infers and evaluates on the demo's kind of volume."""

import json
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import pytest

from custom.volumes import open_volume
from tests.bundle import tiny
from tests.bundle.overlays import EXPERIMENTS, FOLDER, config, content, runs_of
from tests.bundle.tiny import BUNDLE, CONFIGS
from tests.features.guided import write_hub

pytestmark = pytest.mark.slow

TABLE = BUNDLE / "docs" / "experiments.md"
FEATURE_KEYS = ("backbone", "features")
TEN_STEPS = {"epochs": 2, "iterations_per_epoch": 5, "val_interval": 2}
SMALLER: dict[str, dict[str, Any]] = {"two_dimensions": {"crop_size": [1, 16, 16]}}
"""What makes an overlay fit the tiny volume and network: sizes, nothing else."""


def run(name: str, overlay: str, folder: Path, **changes: Any) -> None:
    """A bundle run on tiny settings, with the overlay over them."""
    sizes = folder / f"{name}.json"
    sizes.write_text(json.dumps(tiny.settings(name, folder)))
    files = [CONFIGS / f"{tiny.CONFIG_OF[name]}.json", sizes]
    if name in runs_of(overlay):
        files.append(FOLDER / f"{overlay}.json")
    monai.bundle.run(
        run_id=name,
        config_file=[str(path) for path in files],
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        bundle_root=str(BUNDLE),
        **{key: value for key, value in changes.items() if _has(name, key)},
    )


def _has(name: str, key: str) -> bool:
    return key.split("#")[0] in config(name)


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A project with a cache of the features that an overlay asks for; made once for each kind."""

    @cache
    def project(features: str) -> Path:
        folder = tmp_path_factory.mktemp("features")
        tiny.write_data(folder)
        names = [o for o in EXPERIMENTS if features_of(o) == features]
        run("preprocessing", names[0], folder, **smaller(names[0], tmp_path_factory))
        return folder

    return lambda name: project(features_of(name))


def features_of(name: str) -> str:
    """What an overlay changes of the features, as a word that can be compared."""
    return json.dumps(
        {k: v for k, v in content(name).items() if k.split("#")[0] in FEATURE_KEYS}, sort_keys=True
    )


def smaller(name: str, folders: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings that fit the tiny volume, and a stand-in for AnyUp, which is on GitHub."""
    if content(name).get("features#upsampler") == "anyup":
        return {**SMALLER.get(name, {}), "features#upsampler": write_hub(folders.mktemp("hub"))}
    return SMALLER.get(name, {})


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_overlay_goes_through_all_runs(
    name: str, cached: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = shutil.copytree(cached(name), tmp_path / "project")
    changes = smaller(name, tmp_path_factory)
    run("training", name, folder, **{**TEN_STEPS, **changes})
    history = json.loads((folder / "eval" / "history.json").read_text())
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert all(np.isfinite(entry["train_loss"]) for entry in history)
    run("inference", name, folder, **changes)
    written = folder / "output" / "synthetic.zarr" / "labels" / "segmentation"
    volume = open_volume(str(written))
    assert volume.metadata.voxel_size_nm == tiny.VOXEL_SIZE
    run("evaluating", name, folder)
    (scores,) = json.loads((folder / "eval" / "scores.json").read_text())["entries"]
    assert all(np.isfinite(value) for value in scores.values() if isinstance(value, float))


def test_the_table_names_every_overlay_its_runs_and_nothing_else() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([a-z, ]+) \|$", TABLE.read_text(), flags=re.M)
    expected = {name: ", ".join(runs_of(name)) for name in EXPERIMENTS}
    assert dict(rows) == expected
    assert len(rows) == len(expected)
