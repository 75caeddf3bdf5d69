"""Voxels per second of tri-plane extraction on a GPU, and the share of its bfloat16 peak.

python -m bench.gpu [--compile True]
"""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from funlib.geometry import Roi
from numpy.typing import NDArray

from bench.figures import Figure, publish
from bench.run import machine
from custom.features.backbone import Backbone
from custom.features.extraction import PlaneExtraction, RawBox
from custom.features.settings import load_backbone_and_spec
from custom.features.spec import FeatureSpec

RESULTS = Path(__file__).resolve().parent / "gpu.json"
COMMON = {"model_type": "dinov3_vit", "patch_size": 16, "num_register_tokens": 4}
BACKBONES: Mapping[str, Mapping[str, Any]] = {
    "vit_s": {
        **COMMON,
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
    },
    "vit_l": {
        **COMMON,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
}
STRIDES = (16, 8)


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Args:
        device: of the backbone.
        cube: edge of the raw volume, voxels.
        window: edge of a window, pixels; there is one pixel per voxel. A larger window than the
            cube would be filled up with reflections.
        backbones: configurations by name; their weights are random.
        strides: pixels from token to token.
        matrix: edge of the matrices whose product is the peak.
        compile: run the backbone through torch.compile.
    """

    device: str = "cuda"
    cube: int = 512
    window: int = 512
    backbones: Mapping[str, Mapping[str, Any]] | None = None
    strides: tuple[int, ...] = STRIDES
    matrix: int = 8192
    compile: bool = False


def bench(compile: bool = False) -> None:
    """Measure, write bench/gpu.json, print a table.

    Args:
        compile: run the backbones through torch.compile.
    """
    if not torch.cuda.is_available():
        sys.exit("bench.gpu needs a GPU with CUDA, and torch finds none here.")
    figures = gpu_figures(Setting(compile=compile))
    setting = {
        "machine": {**machine(), "gpu": torch.cuda.get_device_name()},
        "versions": {p: version(p) for p in ("emseg", "torch", "transformers")},
        "compile": compile,
    }
    publish(RESULTS, setting, figures)


def gpu_figures(setting: Setting) -> list[Figure]:
    """All figures: the peak, then per backbone and stride voxels per second and share of it."""
    peak = matmul_peak(setting.device, setting.matrix)
    figures = [Figure("gpu.matmul_peak", peak / 1e12, "TFLOP/s")]
    raw = np.random.default_rng(0).integers(0, 256, (setting.cube,) * 3, dtype=np.uint8)
    for name, config in (setting.backbones or BACKBONES).items():
        for stride in setting.strides:
            features = {"window": setting.window, "stride": stride}
            backbone, spec = load_backbone_and_spec(
                config, features, setting.device, setting.compile
            )
            seconds, passes = _extraction(raw, backbone, spec)
            work = passes * window_flops(config, setting.window)
            figures += rates(f"gpu.{name}_stride_{stride}", raw.size, seconds, work, peak)
    return figures


def rates(name: str, voxels: int, seconds: float, flops: float, peak: float) -> list[Figure]:
    """Voxels per second, and the share of the peak (floating-point operations per second)."""
    return [
        Figure(f"{name}.voxels_per_second", voxels / seconds, "1/s"),
        Figure(f"{name}.share_of_peak", flops / seconds / peak, "1"),
    ]


def window_flops(config: Mapping[str, Any], window: int) -> float:
    """Floating-point operations of a plain ViT on one window; a multiply-add counts as two.

    Per token and block: four projections of the attention (8 C^2), its two products with all tokens
    (4 N C) and the two layers of the MLP (4 C M). The patch embedding is a matrix, too.
    """
    width, mlp = config["hidden_size"], config["intermediate_size"]
    patches = (window // config["patch_size"]) ** 2
    tokens = patches + 1 + config["num_register_tokens"]
    block = tokens * (8 * width**2 + 4 * tokens * width + 4 * width * mlp)
    embedding = patches * 2 * 3 * config["patch_size"] ** 2 * width
    return float(config["num_hidden_layers"] * block + embedding)


def matmul_peak(device: str, edge: int) -> float:
    """Floating-point operations per second of a product of bfloat16 matrices."""
    a, b = (torch.randn(edge, edge, device=device, dtype=torch.bfloat16) for _ in range(2))
    repeats = 20
    seconds = _seconds(lambda: [a @ b for _ in range(repeats)], device)
    return repeats * 2 * edge**3 / seconds


def _extraction(raw: NDArray[np.uint8], backbone: Backbone, spec: FeatureSpec) -> tuple[float, int]:
    """Seconds of all three planes of a volume, and the windows that were computed."""
    depth, height, width = raw.shape
    whole = Roi((0, 0, 0), raw.shape)
    box = RawBox(lambda roi: raw[roi.to_slices()], (depth, height, width), whole, (0, 255))
    planes = [PlaneExtraction(box, backbone, spec, plane) for plane in spec.planes]
    device = str(next(backbone.parameters()).device)

    def extract() -> None:
        for plane in planes:
            for _ in plane.slabs():
                pass

    return _seconds(extract, device), sum(plane.num_windows for plane in planes)


def _seconds(work: Callable[[], object], device: str) -> float:
    """Wall time of the second of two runs, until the device is done."""
    seconds = 0.0
    for _ in range(2):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        seconds = time.perf_counter() - start
    return seconds


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    fire.Fire(bench)
