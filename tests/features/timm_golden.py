"""Features that timm itself gives for tiny DINOv3 models, to check our reading of its weights.

timm is no dependency of this project, so its figures lie in a file. To make them anew, run this
file, from the repository's root, in an environment with numpy, torch and timm:

    python -m tests.features.timm_golden
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "timm_golden.json"

TINY = {"embed_dim": 64, "depth": 3, "num_heads": 2}
VITS: Mapping[str, Mapping[str, Any]] = {
    "vit_small_patch16_dinov3": TINY,
    "vit_small_plus_patch16_dinov3": TINY,
    "vit_base_patch16_dinov3_qkvb": TINY,
    "vit_huge_plus_patch16_dinov3": {"embed_dim": 60, "depth": 2, "num_heads": 3},
    "vit_7b_patch16_dinov3": {**TINY, "num_heads": 1},
}
CONVNEXTS: Mapping[str, Mapping[str, Any]] = {
    "convnext_tiny": {"depths": [1, 2, 1, 1], "dims": [8, 12, 16, 20]},
}
KEPT_CHANNELS = 6


def noise(name: str, shape: Sequence[int]) -> NDArray[np.float64]:
    """Numbers in [-1, 1) that follow from a name, the same on every machine."""
    count = np.arange(int(np.prod(shape)), dtype=np.float64)
    waves = np.sin(count * 12.9898 + zlib.crc32(name.encode()) % 10007) * 43758.5453
    return ((waves - np.floor(waves)) * 2 - 1).reshape(shape)


def weight(name: str, shape: Sequence[int]) -> NDArray[np.float32]:
    """A weight of one of timm's models: gains near 1, matrices that keep their input's scale."""
    values = noise(name, shape)
    if "gamma" in name or (name.endswith("weight") and len(shape) == 1):
        return (1 + 0.3 * values).astype(np.float32)
    fan_in = int(np.prod(shape[1:])) if name.endswith("weight") else 9
    return (values * (3 / fan_in) ** 0.5).astype(np.float32)


def image(height: int, width: int) -> NDArray[np.float32]:
    """One image (1, 3, height, width)."""
    return noise("image", (1, 3, height, width)).astype(np.float32)


def _make() -> dict[str, Any]:
    """Figures of every model."""
    import torch

    timm = import_module("timm")  # not a dependency
    models: dict[str, Any] = {}
    for architecture, settings in {**VITS, **CONVNEXTS}.items():
        model = timm.create_model(architecture, num_classes=0, **settings).eval()
        shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
        weights = {n: torch.from_numpy(weight(n, shape)) for n, shape in shapes.items()}
        model.load_state_dict(weights)
        size = (48, 32) if architecture in VITS else (96, 64)
        with torch.inference_mode():
            maps = _vit_maps(model, size) if architecture in VITS else _convnext_maps(model, size)
        models[architecture] = {
            "model_args": settings,
            "image": size,
            "shapes": shapes,
            "features": {
                name: np.round(values[0, :KEPT_CHANNELS].double().numpy(), 6).tolist()
                for name, values in maps.items()
            },
        }
    return {"timm": timm.__version__, "torch": torch.__version__, "models": models}


def _vit_maps(model: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Patches of the first block as they are, and of the last one with the final norm."""
    import torch

    x = torch.from_numpy(image(*size))
    grid = [s // 16 for s in size]
    first = model.forward_intermediates(x, indices=[0], intermediates_only=True)[0]
    last = model.forward_features(x)[:, model.num_prefix_tokens :]
    return {"first": first, "normed": last.mT.reshape(1, -1, *grid)}


def _convnext_maps(model: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Map of the first stage, and of the last one with the head's norm."""
    import torch

    x = torch.from_numpy(image(*size))
    first = model.forward_intermediates(x, indices=[0], intermediates_only=True)[0]
    return {"first": first, "normed": model.head.norm(model.forward_features(x))}


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(_make()) + "\n")
