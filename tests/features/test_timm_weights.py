"""Weights in timm's form, compared with what timm itself made of them (see timm_golden.py)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from custom.errors import InputError
from custom.features.backbone import load_backbone
from tests.features.timm_golden import CONVNEXTS, GOLDEN, KEPT_CHANNELS, VITS, image, weight

MODELS: dict[str, Any] = json.loads(GOLDEN.read_text())["models"]
STATISTICS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def timm_folder(folder: Path, architecture: str, **more: Any) -> Path:
    """What timm publishes for a model: its config and its weights."""
    model = MODELS[architecture]
    config = {
        "architecture": architecture,
        "num_features": 64,
        "model_args": model["model_args"],
        "pretrained_cfg": {"tag": "dinov3_lvd1689m", **STATISTICS, **more},
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    weights = {n: torch.from_numpy(weight(n, shape)) for n, shape in model["shapes"].items()}
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("final_norm", [False, True])
@pytest.mark.parametrize("architecture", [*VITS, *CONVNEXTS])
def test_features_are_those_that_timm_gives(
    architecture: str, final_norm: bool, tmp_path: Path
) -> None:
    layers = [-1] if final_norm else [1]
    backbone = load_backbone(timm_folder(tmp_path / "m", architecture), layers, final_norm)
    model = MODELS[architecture]
    features = backbone(torch.from_numpy(image(*model["image"])))[0, :KEPT_CHANNELS]
    expected = np.array(model["features"]["normed" if final_norm else "first"])
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(features.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("architecture", [*VITS, *CONVNEXTS])
def test_the_digest_is_that_of_the_same_weights_in_hugging_faces_form(
    architecture: str, tmp_path: Path
) -> None:
    theirs = load_backbone(timm_folder(tmp_path / "timm", architecture))
    if hasattr(theirs.model, "embeddings"):  # published there; timm does not keep it
        theirs.model.embeddings.mask_token += 1
    theirs.model.save_pretrained(tmp_path / "ours")
    ours = load_backbone(tmp_path / "ours")
    assert ours.digest == theirs.digest
    x = torch.from_numpy(image(*MODELS[architecture]["image"]))
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("architecture", "biased"),
    [("vit_small_patch16_dinov3", True), ("vit_7b_patch16_dinov3", False)],
)
def test_biases_that_timm_leaves_out_are_zero_but_in_the_7b_which_has_none(
    architecture: str, biased: bool, tmp_path: Path
) -> None:
    model = load_backbone(timm_folder(tmp_path / "m", architecture)).model
    assert (model.config.query_bias, model.config.value_bias) == (biased, biased)
    found = [v for k, v in model.state_dict().items() if k.endswith(("q_proj.bias", "v_proj.bias"))]
    assert len(found) == (2 * 3 if biased else 0)
    assert not any(value.any() for value in found)
    assert not model.config.key_bias


def test_shards_and_half_precision_are_the_same_weights(tmp_path: Path) -> None:
    whole = timm_folder(tmp_path / "whole", "vit_small_patch16_dinov3")
    shards = timm_folder(tmp_path / "shards", "vit_small_patch16_dinov3")
    weights = load_file(whole / "model.safetensors")
    halves = {name: value.half() for name, value in weights.items()}
    save_file({n: v.float() for n, v in halves.items()}, whole / "model.safetensors")
    (shards / "model.safetensors").unlink()
    for number, names in enumerate((list(halves)[::2], list(halves)[1::2]), start=1):
        part = {name: halves[name] for name in names}
        save_file(part, shards / f"model-0000{number}-of-00002.safetensors")
    assert load_backbone(shards).digest == load_backbone(whole).digest


def test_the_statistics_are_those_of_timms_config(tmp_path: Path) -> None:
    satellite = {"mean": [0.430, 0.411, 0.296], "std": [0.213, 0.156, 0.143]}
    folder = timm_folder(tmp_path / "m", "vit_small_patch16_dinov3", **satellite)
    backbone = load_backbone(folder)
    assert backbone.image_mean == (0.430, 0.411, 0.296)
    assert backbone.image_std == (0.213, 0.156, 0.143)


@pytest.mark.parametrize("architecture", ["vit_small_patch16_224", "resnet50", "vit_giant_dinov3"])
def test_other_models_of_timm_are_refused_by_name(architecture: str, tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "m", "vit_small_patch16_dinov3")
    (folder / "config.json").write_text(json.dumps({"architecture": architecture}))
    with pytest.raises(InputError, match=f"only DINOv3's are read .* this is '{architecture}'"):
        load_backbone(folder)


def test_a_convnext_that_is_not_dinov3s_is_refused(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "m", "convnext_tiny", tag="fb_in22k")
    with pytest.raises(InputError, match="'convnext_tiny' fb_in22k: take one of them"):
        load_backbone(folder)


@pytest.mark.parametrize(
    ("architecture", "damage", "message"),
    [
        ("vit_small_patch16_dinov3", {"blocks.0.attn.qkv.weight": None}, "lack 3 of the tensors"),
        ("vit_small_patch16_dinov3", {"cls_token": None}, "get a complete copy"),
        ("vit_small_patch16_dinov3", {"blocks.1.norm1.bias": torch.zeros(2)}, "do not fit"),
        ("vit_small_patch16_dinov3", {"head.weight": torch.zeros(2, 64)}, "unknown weight head"),
        ("convnext_tiny", {"head.norm.bias": None}, "lack 1 of the tensors"),
        ("convnext_tiny", {"stages.1.blocks.0.gamma": None}, "get a complete copy"),
    ],
)
def test_weights_that_are_not_the_architectures_are_refused(
    architecture: str, damage: dict[str, torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    folder = timm_folder(tmp_path / "m", architecture)
    weights = load_file(folder / "model.safetensors")
    kept = {n: v for n, v in {**weights, **damage}.items() if v is not None}
    save_file(kept, folder / "model.safetensors")
    with pytest.raises(InputError, match=message):
        load_backbone(folder)


def test_a_torn_file_of_weights_is_refused(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "m", "convnext_tiny")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        load_backbone(folder)
