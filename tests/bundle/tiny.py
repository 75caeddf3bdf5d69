"""The four bundle runs on a tiny synthetic volume, in this process or in one of its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
from scripts.synthetic import write_demo_data

from custom.errors import InputError
from custom.preflight import user_mistake

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundle"
CONFIGS = BUNDLE / "configs"

SHAPE = (24, 64, 32)  # split along y: training 35, gap 10, validation 19
VOXEL_SIZE = (16.0, 16.0, 16.0)
BACKBONE = {
    "model_type": "dinov3_vit",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 8,
    "image_size": 64,
    "num_register_tokens": 1,
}
FEATURES = {"backbone": BACKBONE, "features#window": 64, "features#pixels_per_voxel": 1.0}
NETWORK = {
    "token_channels": 16,
    "fused_channels": 2,
    "unet_channels": [4, 8],
    "unet_strides": [[2, 2, 2]],
    "crop_size": [16, 16, 16],
    "affinity_offsets": [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 5, 0]],
    "lsd_sigma_nm": 32.0,
    "amp": False,
    "segmenter#min_size": 5,
}
TRAINING = {
    "epochs": 2,
    "iterations_per_epoch": 2,
    "val_interval": 1,
    "num_workers": 0,
    "segmentation_grid": [{"bias": -0.5, "threshold": 0.9}, {"bias": -0.5, "threshold": 0.5}],
}
CONFIG_OF = {
    "preprocessing": "preprocess",
    "training": "train",
    "inference": "inference",
    "evaluating": "evaluate",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "preprocessing": FEATURES,
    "training": {**FEATURES, **NETWORK, **TRAINING},
    "inference": {**FEATURES, **NETWORK, "region": "roi"},
    "evaluating": {},
}
FOLDERS: dict[str, tuple[str, ...]] = {
    "preprocessing": ("cache",),
    "training": ("cache", "model", "eval"),
    "inference": ("cache", "model", "output"),
    "evaluating": ("output", "eval"),
}
RUNS = tuple(CONFIG_OF)


def settings(name: str, folder: Path) -> dict[str, Any]:
    """Everything that a tiny run overrides; it reads and writes inside ``folder``.

    A copy: MONAI changes nested settings in place.
    """
    places = {f"{place}_dir": str(folder / place) for place in FOLDERS[name]}
    datalist = str(folder / "data" / "datalist.json")
    return {"datalist": datalist, **places, **deepcopy(SETTINGS[name])}


def run(name: str, folder: Path, **changes: Any) -> None:
    """A bundle run in this process."""
    given = {
        "run_id": name,
        "config_file": str(CONFIGS / f"{CONFIG_OF[name]}.json"),
        "meta_file": str(CONFIGS / "metadata.json"),
        "logging_file": False,
        "bundle_root": str(BUNDLE),
    }
    monai.bundle.run(**{**given, **settings(name, folder), **changes})


def mistake(action: Callable[[], None]) -> str:
    """The sentence that a run would end with; fails when the error is not the user's mistake."""
    with pytest.raises(Exception) as caught:  # wrapped by whoever met it first
        action()
    found = user_mistake(caught.value)
    assert isinstance(found, InputError), repr(caught.value)
    assert "\n" not in str(found)
    return str(found)


def arguments(name: str, folder: Path, bundle_root: str = ".", **changes: Any) -> list[str]:
    """Command line of a bundle run; its configuration lies in ``bundle_root``."""
    given = {**settings(name, folder), **changes}
    if bundle_root != ".":
        given["bundle_root"] = bundle_root
    config = os.path.join(bundle_root, "configs", f"{CONFIG_OF[name]}.json").removeprefix("./")
    options = [part for key, value in given.items() for part in (f"--{key}", str(value))]
    return ["-m", "monai.bundle", "run", name, "--config_file", config, *options]


def command(
    parts: Sequence[str], cwd: Path = BUNDLE, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """A Python process that finds ``custom`` by the configuration's own means or as installed."""
    return subprocess.run(
        [sys.executable, *parts],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def environment() -> dict[str, str]:
    """This process's environment, one thread, and no way to ``custom``."""
    hidden = ("PYTHONPATH", "PYTHONWARNINGS")
    kept = {key: value for key, value in os.environ.items() if key not in hidden}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def files(folder: Path) -> set[str]:
    """Relative paths of all files."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def write_data(folder: Path) -> None:
    """The synthetic volume and its datalist in ``folder/data``."""
    write_demo_data(folder / "data", SHAPE, 0, VOXEL_SIZE)
