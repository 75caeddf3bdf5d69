"""Where a backbone's weights come from: a seed, a folder, the hub; in whose form."""

import json
import logging
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PretrainedConfig,
    PreTrainedModel,
)

from custom.errors import InputError
from custom.features.hub import download
from custom.features.image_statistics import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    RGB,
    image_statistics,
)
from custom.features.timm_weights import check_architecture, from_timm, is_timm
from custom.json_fields import hint

logger = logging.getLogger(__name__)

MODEL_TYPES = ("dinov3_vit", "dinov3_convnext", "dinov2", "dinov2_with_registers")

BackboneSource = str | Path | Mapping[str, Any]

_UNUSED_WEIGHTS = ("mask_token",)  # pre-training only; some published checkpoints leave it out
_TIMM_MODELS: Mapping[str, tuple[Any, Any]] = {
    "dinov3_vit": (DINOv3ViTConfig, DINOv3ViTModel),
    "dinov3_convnext": (DINOv3ConvNextConfig, DINOv3ConvNextModel),
}
_UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, UnpicklingError, SafetensorError)


@dataclass(frozen=True)
class FoundModel:
    """A model with its weights, and what its source says about it.

    Args:
        model: float32.
        name: what the user called it: a hub id, a folder or "random <model_type>".
        image_mean: per channel, of images in [0, 1].
        image_std: per channel, of images in [0, 1].
        seed: seed of random weights, ``None`` for trained ones.
    """

    model: PreTrainedModel
    name: str
    image_mean: RGB = IMAGENET_MEAN
    image_std: RGB = IMAGENET_STD
    seed: int | None = None


def find_model(source: BackboneSource) -> FoundModel:
    """The model that a config's ``backbone`` names.

    Args:
        source: as in ``load_backbone``.

    Raises:
        InputError: the source cannot be reached, is gated, is not there, holds no weights or is of
            another kind of model.
    """
    if isinstance(source, Mapping):
        return _random_model(source)
    folder, name = _folder_of(source), str(source)
    config = _read_config(folder, name)
    _refuse_without_weights(folder, name, timm=is_timm(config))
    model = _timm_model(folder, config, name) if is_timm(config) else _trained_model(folder, name)
    return FoundModel(model, name, *image_statistics(folder, name))


def _attention(model_type: str) -> str | None:
    """Attention is computed by torch's own function; a ConvNeXt has none."""
    return None if model_type == "dinov3_convnext" else "sdpa"


def _new_model(config: PretrainedConfig) -> PreTrainedModel:
    """A model without trained weights, float32."""
    attention = _attention(config.model_type)
    return cast(
        PreTrainedModel,
        AutoModel.from_config(config, dtype=torch.float32, attn_implementation=attention),  # type: ignore[no-untyped-call]
    )


def _checked_model_type(config: Mapping[str, Any], where: str) -> str:
    """The configuration's ``model_type``, if it is supported."""
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise InputError(
            f"{where}: model_type {model_type!r} is not supported; use a backbone of type "
            f"{', '.join(MODEL_TYPES)} in the format of Hugging Face transformers."
        )
    return str(model_type)


# --- random weights ---


def _random_model(source: Mapping[str, Any]) -> FoundModel:
    """Model with seeded random weights; torch's random state is left as it was."""
    model_type = _checked_model_type(source, "backbone")
    settings = {k: v for k, v in source.items() if k not in ("model_type", "seed")}
    known = AutoConfig.for_model(model_type)
    for key in settings:
        if not hasattr(known, key):
            raise InputError(
                f"backbone: {model_type} has no setting '{key}'{hint(key, list(known.to_dict()))}"
            )
    seed = source.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InputError(f"backbone.seed must be an integer, got {seed!r}.")
    config = AutoConfig.for_model(model_type, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = _new_model(config)
    logger.warning(
        "backbone %s has RANDOM weights (seed %d): good for trying things out, not for results",
        model_type, seed,
    )  # fmt: skip
    return FoundModel(model, f"random {model_type}", seed=seed)


# --- trained weights ---


def _folder_of(source: str | Path) -> Path:
    """Folder that holds a backbone: the one that was named, or the hub's local copy."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    text = str(source)
    if path.exists():
        raise InputError(
            f"backbone {text} is a file: give the folder that holds config.json and weights."
        )
    if isinstance(source, Path) or text.startswith((".", "~", "/")) or text.count("/") != 1:
        raise InputError(
            f"backbone {text} is neither a folder that exists nor a Hugging Face id (owner/name)."
        )
    return download(text, lambda folder: _read_config(folder, text))


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    """The folder's ``config.json``, of a supported type; Hugging Face's or timm's."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError as error:
        raise InputError(
            f"backbone {name} has no config.json: give a folder in the format of Hugging Face "
            "transformers or of timm, with config.json and model.safetensors."
        ) from error
    except ValueError as error:
        raise InputError(f"backbone {name}: config.json is not valid JSON ({error}).") from error
    config = config if isinstance(config, dict) else {}
    if is_timm(config):
        check_architecture(config, name)
    else:
        _checked_model_type(config, f"backbone {name}: config.json")
    return cast(dict[str, Any], config)


def _refuse_without_weights(folder: Path, name: str, timm: bool) -> None:
    """There must be a file of weights, whole or in shards; of timm's, a safe one."""
    files = ("model*.safetensors",) if timm else ("model*.safetensors", "pytorch_model*.bin")
    if not any(any(folder.glob(file)) for file in files):
        raise InputError(
            f"backbone {name} has no weights: {folder} needs model.safetensors beside config.json."
        )


def _trained_model(folder: Path, name: str) -> PreTrainedModel:
    """Model with the folder's weights, as float32."""
    attention = _attention(_read_config(folder, name)["model_type"])
    with _reading(folder, name):
        model, info = AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
            attn_implementation=attention,
        )
    _refuse_incomplete(info["missing_keys"], folder, name)
    return cast(PreTrainedModel, model)


def _timm_model(folder: Path, config: Mapping[str, Any], name: str) -> PreTrainedModel:
    """Model with weights that lie there in timm's form, as float32."""
    weights: dict[str, torch.Tensor] = {}
    with _reading(folder, name):
        for file in sorted(folder.glob("model*.safetensors")):
            weights.update(load_file(file))
    settings, named = from_timm(weights, config, name)
    config_class, model_class = _TIMM_MODELS[settings["model_type"]]
    attention = _attention(settings["model_type"])
    with _reading(folder, name):
        model, info = model_class.from_pretrained(
            None,
            config=config_class(**settings),
            state_dict=named,
            dtype=torch.float32,
            output_loading_info=True,
            attn_implementation=attention,
        )
    _refuse_incomplete(info["missing_keys"], folder, name)
    return cast(PreTrainedModel, model)


@contextmanager
def _reading(folder: Path, name: str) -> Any:
    """Weights that cannot be read end in one sentence."""
    try:
        yield
    except _UNREADABLE as error:
        raise InputError(
            f"backbone {name}: the weights in {folder} cannot be read, or do not fit its "
            f"config.json ({str(error).strip().splitlines()[0]})."
        ) from error


def _refuse_incomplete(missing: Any, folder: Path, name: str) -> None:
    """Every weight that is used must be there."""
    wanted = sorted(key for key in missing if not key.endswith(_UNUSED_WEIGHTS))
    if wanted:
        raise InputError(
            f"backbone {name}: the weights in {folder} lack {len(wanted)} of the tensors that its "
            f"config.json asks for, such as {wanted[0]}; get a complete copy."
        )
