"""Weights of DINOv3 in timm's form, onto the models of Hugging Face transformers."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from custom.errors import InputError

Weights = dict[str, Tensor]

HEADS = {  # attention heads cannot be read off the weights
    "tiny": 3,
    "small": 6,
    "small_plus": 6,
    "base": 12,
    "large": 16,
    "huge_plus": 20,
    "7b": 32,
}
# timm's 7B has no bias of queries and values, and neither has Hugging Face's; the smaller ones' are
# zero, so that timm leaves them out unless the name says "qkvb", while Hugging Face keeps them.
WITHOUT_BIAS = ("7b",)

_VIT = re.compile(r"vit_(?P<size>\w+?)_patch\d+_dinov3(?:_qkvb)?$")
_CONVNEXT = re.compile(r"convnext_(?:tiny|small|base|large)$")

# timm's names and ours, as in the published checkpoints; a group is kept as it is
_VIT_NAMES = (
    (r"cls_token", "embeddings.cls_token"),
    (r"reg_token", "embeddings.register_tokens"),
    (r"patch_embed\.proj\.(\w+)", r"embeddings.patch_embeddings.\1"),
    (r"norm\.(\w+)", r"norm.\1"),
    (r"blocks\.(\d+)\.(norm[12]\.\w+)", r"layer.\1.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(\w+)", r"layer.\1.attention.o_proj.\2"),
    (r"blocks\.(\d+)\.gamma_([12])", r"layer.\1.layer_scale\2.lambda1"),
    (r"blocks\.(\d+)\.mlp\.fc1_g\.(\w+)", r"layer.\1.mlp.gate_proj.\2"),
    (r"blocks\.(\d+)\.mlp\.fc1(?:_x)?\.(\w+)", r"layer.\1.mlp.up_proj.\2"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(\w+)", r"layer.\1.mlp.down_proj.\2"),
)
_CONVNEXT_NAMES = (
    (r"stem\.(\d)\.(\w+)", r"stages.0.downsample_layers.\1.\2"),
    (r"stages\.(\d)\.downsample\.(\d)\.(\w+)", r"stages.\1.downsample_layers.\2.\3"),
    (r"stages\.(\d)\.blocks\.(\d+)\.conv_dw\.(\w+)", r"stages.\1.layers.\2.depthwise_conv.\3"),
    (r"stages\.(\d)\.blocks\.(\d+)\.norm\.(\w+)", r"stages.\1.layers.\2.layer_norm.\3"),
    (
        r"stages\.(\d)\.blocks\.(\d+)\.mlp\.fc(\d)\.(\w+)",
        r"stages.\1.layers.\2.pointwise_conv\3.\4",
    ),
    (r"stages\.(\d)\.blocks\.(\d+)\.gamma", r"stages.\1.layers.\2.gamma"),
    (r"head\.norm\.(\w+)", r"layer_norm.\1"),
)


def is_timm(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is one of timm's."""
    return "architecture" in config and "model_type" not in config


def check_architecture(config: Mapping[str, Any], name: str) -> str:
    """Model type of timm's architecture.

    Raises:
        InputError: not one of DINOv3's.
    """
    architecture = str(config["architecture"])
    vit = _VIT.match(architecture)
    if vit and vit["size"] in HEADS:
        return "dinov3_vit"
    tag = str((config.get("pretrained_cfg") or {}).get("tag", ""))
    if _CONVNEXT.match(architecture) and "dinov3" in f"{tag} {name}":
        return "dinov3_convnext"
    raise InputError(
        f"backbone {name}: of timm's models only DINOv3's are read (vit_*_patch16_dinov3 and "
        f"convnext_*.dinov3_lvd1689m), this is {architecture!r} {tag}: take one of them, or a "
        "backbone in the format of Hugging Face transformers."
    )


def from_timm(
    weights: Mapping[str, Tensor], config: Mapping[str, Any], name: str
) -> tuple[dict[str, Any], Weights]:
    """A DINOv3 model of timm in the form of Hugging Face transformers.

    Args:
        weights: of ``model.safetensors``, by timm's names.
        config: timm's ``config.json``.
        name: of the backbone, for messages.

    Returns:
        settings of the model's configuration, ``model_type`` among them; and weights by the names
        of Hugging Face's published checkpoints, those that timm leaves out as zeros.

    Raises:
        InputError: not a DINOv3, or weights that are missing, unknown or of odd shapes.

    Source:
        timm 1.0.31, ``models/eva.py`` and ``models/convnext.py`` (Apache-2.0).
    """
    vit = check_architecture(config, name) == "dinov3_vit"
    try:
        return _vit(weights, config) if vit else _convnext(weights)
    except (KeyError, ValueError, RuntimeError, IndexError) as error:
        raise InputError(
            f"backbone {name}: its weights are not those of timm's {config['architecture']} "
            f"({error}); get a complete copy."
        ) from error


def _vit(
    weights: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[dict[str, Any], Weights]:
    match = _VIT.match(str(config["architecture"]))
    assert match is not None
    size = match["size"]
    named: Weights = {}
    for key, value in weights.items():
        block = re.fullmatch(r"blocks\.(\d+)\.attn\.(qkv\.weight|q_bias|v_bias)", key)
        if block is None:
            named[_renamed(key, _VIT_NAMES)] = value
        else:
            named.update(_attention(f"layer.{block[1]}.attention", block[2], value))
    gated = "layer.0.mlp.gate_proj.weight" in named
    hidden = named["embeddings.cls_token"].shape[-1]
    depth = len({key.split(".")[1] for key in named if key.startswith("layer.")})
    biased = size not in WITHOUT_BIAS or "layer.0.attention.q_proj.bias" in named
    named.update(_missing(named, depth, hidden, biased))
    heads = (config.get("model_args") or {}).get("num_heads", HEADS[size])
    settings = {
        "model_type": "dinov3_vit",
        "hidden_size": hidden,
        "intermediate_size": named["layer.0.mlp.up_proj.weight"].shape[0],
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_register_tokens": named["embeddings.register_tokens"].shape[1],
        "patch_size": named["embeddings.patch_embeddings.weight"].shape[-1],
        "use_gated_mlp": gated,
        "hidden_act": "silu" if gated else "gelu",
        "query_bias": biased,
        "value_bias": biased,
    }
    return settings, named


def _attention(prefix: str, part: str, value: Tensor) -> Weights:
    """There, queries, keys and values are one matrix with two biases."""
    if part == "qkv.weight":
        parts = zip("qkv", value.chunk(3), strict=True)
        return {f"{prefix}.{which}_proj.weight": w.contiguous() for which, w in parts}
    return {f"{prefix}.{part[0]}_proj.bias": value}


def _missing(named: Weights, depth: int, hidden: int, biased: bool) -> Weights:
    """What Hugging Face's checkpoints have and timm's do not: a mask token, biases that are 0."""
    zeros = {"embeddings.mask_token": torch.zeros(1, 1, hidden)}
    for layer in range(depth if biased else 0):
        for which in "qv":
            zeros[f"layer.{layer}.attention.{which}_proj.bias"] = torch.zeros(hidden)
    return {key: value for key, value in zeros.items() if key not in named}


def _convnext(weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], Weights]:
    named = {_renamed(key, _CONVNEXT_NAMES): value for key, value in weights.items()}
    keys = [key.split(".") for key in named]
    stages = sorted({int(key[1]) for key in keys if key[0] == "stages"})
    blocks = {s: {k[3] for k in keys if k[:3] == ["stages", str(s), "layers"]} for s in stages}
    settings = {
        "model_type": "dinov3_convnext",
        "hidden_sizes": [named[f"stages.{s}.layers.0.gamma"].shape[0] for s in stages],
        "depths": [len(blocks[s]) for s in stages],
    }
    return settings, named


def _renamed(key: str, names: tuple[tuple[str, str], ...]) -> str:
    """Our name of one of timm's weights."""
    for pattern, ours in names:
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(ours)
    raise KeyError(f"unknown weight {key}")
