"""The configurations that DINOv3 and DINOv2 were released in, and tiny ones of every family."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from custom.features import backbone as backbone_module
from custom.features.backbone import Backbone, load_backbone
from custom.features.cache import open_cache
from custom.preprocessing import Preprocessor

GATED = {"use_gated_mlp": True, "hidden_act": "silu"}


def vit(hidden: int, mlp: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "dinov3_vit",
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_register_tokens": 4,
        **more,
    }


def convnext(sizes: list[int], depths: list[int]) -> dict[str, Any]:
    return {"model_type": "dinov3_convnext", "hidden_sizes": sizes, "depths": depths}


def dinov2(hidden: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {"model_type": "dinov2", **sizes, "patch_size": 14, "image_size": 518, **more}


NO_BIAS = {"query_bias": False, "value_bias": False}
RELEASED = [  # configuration, channels, patch, layers, millions of weights as published
    pytest.param(vit(384, 1536, 12, 6), 384, 16, 12, 21.6, id="ViT-S"),
    pytest.param(vit(384, 1536, 12, 6, **GATED), 384, 16, 12, 28.7, id="ViT-S+"),
    pytest.param(vit(768, 3072, 12, 12), 768, 16, 12, 85.7, id="ViT-B"),
    pytest.param(vit(1024, 4096, 24, 16), 1024, 16, 24, 303.1, id="ViT-L"),
    pytest.param(vit(1280, 5120, 32, 20, **GATED), 1280, 16, 32, 840.5, id="ViT-H+"),
    pytest.param(vit(4096, 8192, 40, 32, **GATED, **NO_BIAS), 4096, 16, 40, 6716, id="ViT-7B"),
    pytest.param(convnext([96, 192, 384, 768], [3, 3, 9, 3]), 768, 32, 4, 27.8, id="ConvNeXt-T"),
    pytest.param(convnext([96, 192, 384, 768], [3, 3, 27, 3]), 768, 32, 4, 49.5, id="ConvNeXt-S"),
    pytest.param(
        convnext([128, 256, 512, 1024], [3, 3, 27, 3]), 1024, 32, 4, 87.6, id="ConvNeXt-B"
    ),
    pytest.param(
        convnext([192, 384, 768, 1536], [3, 3, 27, 3]), 1536, 32, 4, 196.2, id="ConvNeXt-L"
    ),
    pytest.param(dinov2(384, 12, 6), 384, 14, 12, 22.1, id="DINOv2-S"),
    pytest.param(
        dinov2(384, 12, 6, model_type="dinov2_with_registers", num_register_tokens=4),
        *(384, 14, 12, 22.1),
        id="DINOv2-S with registers",
    ),
]


@pytest.fixture
def no_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights without memory have no digest."""
    monkeypatch.setattr(backbone_module, "weights_digest", lambda model: "0")


@pytest.mark.usefixtures("no_digest")
@pytest.mark.parametrize(("config", "channels", "patch", "layers", "millions"), RELEASED)
def test_a_released_configuration_has_its_channels_patches_layers_and_size(
    config: Mapping[str, Any], channels: int, patch: int, layers: int, millions: float
) -> None:
    settings = {k: v for k, v in config.items() if k != "model_type"}
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(config["model_type"], **settings))
        backbone = Backbone(model, "released")
        tokens = model(pixel_values=torch.zeros(1, 3, 2 * patch, 3 * patch)).last_hidden_state
    assert (backbone.channels, backbone.patch_size, backbone.num_layers) == (
        channels,
        patch,
        layers,
    )
    special = 1 + config.get("num_register_tokens", 0)
    assert tokens.shape == (1, special + 2 * 3, channels)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)


TINY = {
    "ViT": vit(16, 24, 3, 2, patch_size=8),
    "gated ViT": vit(16, 24, 3, 2, patch_size=8, **GATED),
    "gated ViT without biases": vit(16, 24, 3, 2, patch_size=8, **GATED, **NO_BIAS),
    "DINOv2": dinov2(16, 3, 2, patch_size=8, image_size=32),
    "DINOv2 with registers": dinov2(
        *(16, 3, 2),
        patch_size=8,
        image_size=32,
        model_type="dinov2_with_registers",
        num_register_tokens=3,
    ),
    "ConvNeXt": convnext([4, 6, 8, 10], [1, 1, 2, 1]),
}
RUNS = [
    *((family, {}, 16, 8) for family in TINY if family != "ConvNeXt"),
    ("ViT", {"layers": [1, 2, 3]}, 48, 8),
    ("gated ViT", {"layers": [-3, -1], "final_norm": False}, 32, 8),
    ("ConvNeXt", {}, 10, 32),
    ("ConvNeXt", {"layers": [1], "final_norm": False}, 4, 4),
    ("ConvNeXt", {"layers": [2], "final_norm": False}, 6, 8),
    ("ConvNeXt", {"layers": [3], "final_norm": False}, 8, 16),
    ("ConvNeXt", {"layers": [2, 4]}, 16, 8),
]


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw of unequal edges and voxels."""
    folder = tmp_path_factory.mktemp("data")
    raw = np.random.default_rng(0).integers(0, 256, (5, 9, 14), dtype=np.uint8)
    np.save(folder / "raw.npy", raw)
    entry = {"id": "a", "raw": "raw.npy", "voxel_size_nm": {"raw": [8, 4, 5.5]}}
    path = folder / "datalist.json"
    path.write_text(json.dumps({"name": "tiny", "training": [entry]}))
    return path


@pytest.mark.parametrize(
    ("family", "settings", "channels", "patch"),
    RUNS,
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_every_family_preprocesses_a_volume(
    family: str,
    settings: dict[str, Any],
    channels: int,
    patch: int,
    datalist: Path,
    tmp_path: Path,
) -> None:
    features = {"window": 32, "pixels_per_voxel": 2.0, **settings}
    run = Preprocessor(datalist, tmp_path, TINY[family], features, show_progress=False)
    run.run()
    (volume,) = open_cache(tmp_path)
    assert (volume.spec.channels, volume.spec.patch_size) == (channels, patch)
    for plane, shape in (("xy", (5, 9, 14)), ("xz", (5, 9, 14)), ("yz", (5, 9, 14))):
        grid = volume.plane_grid(plane)
        normal = {"xy": 0, "xz": 1, "yz": 2}[plane]
        patches = [n if a == normal else -(-n * 2 // patch) for a, n in enumerate(shape)]
        assert grid.values.shape == (channels, *patches)
        assert grid.values.float().std() > 0


@pytest.mark.parametrize("family", [f for f in TINY if f != "ConvNeXt"])
def test_attention_is_torchs_own_in_every_layer(
    family: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    load_backbone(TINY[family]).model.save_pretrained(tmp_path)
    calls: list[int] = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        return attention(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    for source in (TINY[family], tmp_path):
        backbone = load_backbone(source, layers=[1, 3])
        assert backbone.model.config._attn_implementation == "sdpa"
        calls.clear()
        backbone(torch.zeros(1, 3, 16, 24))
        assert len(calls) == 3
