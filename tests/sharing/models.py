"""A model as a training leaves it, without the training."""

import json
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from custom.model_files import write_model
from tests.bundle import tiny

SPEC = {
    "backbone": "random dinov3_vit",
    "digest": "0123456789abcdef",
    "patch_size": 8,
    "channels": 16,
    "layers": [1],
    "final_norm": True,
    "pixels_per_voxel": [1.0, 1.0, 1.0],
    "window": 64,
    "overlap": 0,
    "stride": 8,
    "planes": ["xy", "xz", "yz"],
    "slice_step": [1, 1, 1],
    "intensity_percentiles": [0.1, 99.9],
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.2, 0.2, 0.2],
    "precision": "bfloat16",
    "dtype": "float16",
    "layout": "tokens",
}


def config(folder: Path, **changes: Any) -> dict[str, Any]:
    """The merged configuration of a training, paths and all."""
    parser = ConfigParser()
    parser.read_config(str(tiny.CONFIGS / "train.json"))
    for key, value in {**tiny.settings("training", folder), **changes}.items():
        parser[key] = value
    parser.resolve_macro_and_relative_ids()
    found: dict[str, Any] = json.loads(json.dumps(parser.get(""), default=str))
    return {**found, "_meta_": {"version": "0.1.0"}}


def description(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "features": SPEC,
        "output_type": "affinities_lsds",
        "dimensions": 3,
        "num_classes": None,
        "channels": {"affinities": [0, 4], "lsds": [4, 14]},
        "affinity_offsets": tiny.NETWORK["affinity_offsets"],
        "lsd_sigma_nm": 32.0,
        "predicted_classes": None,
        "voxel_size_nm": [40.0, 8.0, 4.0],
        "other_voxel_sizes_nm": [],
        "classes": None,
        "split": {
            "training": [{"id": "left", "offset": [0, 1, 2], "shape": [24, 35, 32]}],
            "validation": [{"id": "right", "offset": [0, 45, 0], "shape": [24, 19, 32]}],
        },
        "config": config(folder, **changes),
        "versions": {"custom": "0.1.0", "torch": "2.13.0"},
        "notes": {"made in": f"{folder}/data", "from": [f"{folder}/data/x.zarr"]},
        "epoch": 2,
        "segmentation": {"bias": -0.5},
        "validation": {"voi": 1.5},
        "volume_scores": {"right": {"voi": 1.5}},
    }


def write_trained_model(folder: Path, **changes: Any) -> Path:
    """Write ``model`` below a folder; its network is that of the configuration."""
    found = description(folder, **changes)
    parser = ConfigParser(json.loads(json.dumps(found["config"])))
    parser["bootstrap"] = None
    torch.manual_seed(0)
    weights = parser.get_parsed_content("network_def").state_dict()
    write_model(folder / "model", weights, found, {})
    torch.save({"epoch": 2}, folder / "model" / "last.pt")
    return folder / "model"
