"""A small cached volume whose content is known."""

from typing import Any

import numpy as np
import torch

from custom.features.cache import RAW_KEPT
from custom.features.cache_files import VolumeFiles
from custom.features.cache_writer import VolumeWriter
from custom.features.spec import FeatureSpec
from custom.planes import NORMAL_AXIS, PLANES

SHAPE = (20, 12, 30)
STEP = {0: 4.0, 1: 2.5, 2: 3.0}
START = {0: -1.5, 1: -2.0, 2: 0.0}
SPEC = FeatureSpec(
    backbone="folder",
    digest="0123",
    patch_size=8,
    channels=3,
    layers=(2,),
    final_norm=True,
    pixels_per_voxel=(2.0, 3.2, 8 / 3),
    window=64,
    overlap=0,
    stride=8,
    planes=PLANES,
    slice_step=(1, 1, 1),
    intensity_percentiles=(0.1, 99.9),
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.2, 0.2, 0.2),
    precision="float32",
    dtype="float16",
    layout="tokens",
)


def request(index: int = 0, section: str = "training", **changes: Any) -> dict[str, Any]:
    return {
        "entry": {"id": f"cube{index}", "section": section},
        "roi": {"offset": [5, 6, 7], "shape": list(SHAPE)},
        "voxel_size_nm": [8.0, 4.0, 4.5],
        "offset_nm": [40.0, 24.0, 31.5],
        "features": {**SPEC.to_json(), **changes},
    }


def tokens(plane: str) -> torch.Tensor:
    """Grid (C, slices, h, w) with one neighbour beyond the ROI."""
    normal = NORMAL_AXIS[plane]
    sizes = [
        SHAPE[a] if a == normal else int(-(-(SHAPE[a] - START[a]) // STEP[a])) + 1 for a in range(3)
    ]
    sizes.insert(0, sizes.pop(normal))
    generator = torch.Generator().manual_seed(normal)
    return torch.randn((3, *sizes), generator=generator).half()


def voxels() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "raw": rng.integers(0, 256, SHAPE, dtype=np.uint8),
        "gt": rng.integers(0, 5, SHAPE, dtype=np.uint32),
        "mask": rng.random(SHAPE) < 0.5,
    }


IDS = np.array([0, 7, 2**40, 2**63, 2**64 - 1], np.uint64)


def write(
    files: VolumeFiles, asked: dict[str, Any], labels: bool = True, compression: str = "none"
) -> None:
    writer = VolumeWriter(files, asked, compression)
    if labels:
        writer.write_table("gt_ids", IDS)
    for name, values in voxels().items():
        if name == "raw" or labels:
            writer.create_voxels(name, SHAPE, values.dtype)
            writer.write_voxels(name, 0, values)
    for plane in PLANES:
        values = tokens(plane)
        writer.create_tokens(plane, values.shape, asked["features"]["dtype"])
        for begin in range(0, values.shape[1], 16):
            writer.write_tokens(plane, begin, values[:, begin : begin + 16])
        writer.complete_tokens(plane)
    writer.finish({"planes": placements(), "intensity_window": [0, 255], "raw_rule": RAW_KEPT})


def placements() -> dict[str, Any]:
    return {
        plane: {
            "start": [0.0 if a == NORMAL_AXIS[plane] else START[a] for a in range(3)],
            "step": [1.0 if a == NORMAL_AXIS[plane] else STEP[a] for a in range(3)],
        }
        for plane in PLANES
    }
