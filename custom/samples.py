"""What a sample of a volume holds, with the names that transforms and networks know."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from funlib.geometry import Roi
from numpy.typing import NDArray
from torch import Tensor

from custom.features.dense import dense_features
from custom.features.intensity import IntensityWindow, to_uint8, to_unit_range
from custom.features.spec import FeatureSpec
from custom.features.triplane import PlaneGrid
from custom.live import FeatureVolume
from custom.planes import PLANES

Sample = dict[str, Any]


def image_tensor(raw: NDArray[np.uint8], window: IntensityWindow) -> Tensor:
    """Raw (D, H, W) as (1, D, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(to_unit_range(raw, window) * 2 - 1)[None]


def image_of(raw: NDArray[Any], window: IntensityWindow) -> Tensor:
    """Raw (D, H, W) of any type, its intensity window on [-1, 1], in the 256 steps of a cache."""
    return image_tensor(to_uint8(raw, window), window if raw.dtype == np.uint8 else (0, 255))


def add_features(sample: Sample, volume: FeatureVolume, roi: Roi | None = None) -> None:
    """Features of a box, or of the whole volume, in the layout that the volume has."""
    if volume.spec.layout == "dense":
        add_dense(sample, volume.spec, volume.read_features(roi))
        return
    for plane in volume.spec.planes:
        add_grid(sample, plane, volume.plane_grid(plane, roi))


def add_extracted(sample: Sample, spec: FeatureSpec, grids: Mapping[str, PlaneGrid]) -> None:
    """Features of a sample's whole ``image``, in the layout of the spec."""
    if spec.layout == "dense":
        dtype = getattr(torch, spec.float_dtype)
        add_dense(sample, spec, dense_features(grids, sample["image"].shape[1:], dtype))
    else:
        for plane, grid in grids.items():
            add_grid(sample, plane, grid)


def add_dense(sample: Sample, spec: FeatureSpec, features: Tensor) -> None:
    """Features (C, D, H, W), and the steps of the tokens that they are made of."""
    sample["features"] = features
    steps = [spec.token_steps(p) if p in spec.planes else (0.0, 0.0, 0.0) for p in PLANES]
    sample["token_steps"] = torch.tensor(steps, dtype=torch.float64)


def add_grid(sample: Sample, plane: str, grid: PlaneGrid) -> None:
    """Tokens of a plane, and where they lie."""
    sample[f"tokens_{plane}"] = grid.values
    sample[f"placement_{plane}"] = grid.placement
