"""Frozen DINO backbones: normalised images in, patch features out."""

import copy
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import huggingface_hub
import torch
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from custom.errors import InputError
from custom.features.pca import PcaBasis
from custom.json_fields import hint

logger = logging.getLogger(__name__)

MODEL_TYPES = ("dinov3_vit", "dinov3_convnext", "dinov2", "dinov2_with_registers")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_FINAL_NORM = {
    "dinov3_vit": "norm",
    "dinov3_convnext": "layer_norm",
    "dinov2": "layernorm",
    "dinov2_with_registers": "layernorm",
}
_UNUSED_WEIGHTS = ("mask_token",)  # pre-training only; some published checkpoints leave it out

BackboneSource = str | Path | Mapping[str, Any]
RGB = tuple[float, float, float]


class Backbone(nn.Module):
    """A frozen vision model that maps images to one feature vector per patch.

    Class and register tokens are dropped by the configuration's own counts; the outputs of the
    chosen blocks are concatenated along the channels, in the order of ``layers``.

    Args:
        model: a transformers model of one of ``MODEL_TYPES``, float32; it is frozen.
        name: what the user called it: a hub id, a folder or "random <model_type>".
        layers: blocks (stages of a ConvNeXt) whose output is used: 1 to n, or -1 to -n from the
            end.
        final_norm: apply the model's last layer norm to the output of every chosen block.
        amp: compute in bfloat16 by autocast; the features are float32 all the same.
        image_mean: per channel, of images in [0, 1].
        image_std: per channel, of images in [0, 1].
        seed: seed of random weights, ``None`` for trained ones.

    Raises:
        InputError: a layer that the model does not have, or that does not fit the others or the
            norm.

    Source:
        DINOv3 (Simeoni et al. 2025), DINOv2 (Oquab et al. 2023), as implemented in transformers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        name: str,
        layers: Sequence[int] = (-1,),
        final_norm: bool = True,
        amp: bool = False,
        image_mean: RGB = IMAGENET_MEAN,
        image_std: RGB = IMAGENET_STD,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        config = model.config
        self.name = name
        self.model_type: str = config.model_type
        self.amp = amp
        self.image_mean = image_mean
        self.image_std = image_std
        self.seed = seed
        self.final_norm = final_norm
        self.num_layers = _num_layers(config)
        self.layers = resolve_layers(layers, self.num_layers, name)
        self.patch_size, self.channels = _output_geometry(config, self.layers, final_norm)
        self.least_window = _least_window(config)
        self.digest = weights_digest(model)
        self.basis: PcaBasis | None = None
        self.upsampler: nn.Module | None = None  # of the features, see ``load_backbone_and_spec``
        self._num_special = 1 + (getattr(config, "num_register_tokens", None) or 0)
        self.model = model.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in evaluation mode: a frozen backbone has no other."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Patch features of images.

        Args:
            images: (B, 3, H, W) float, in [0, 1] then normalised by ``image_mean`` and
                ``image_std``; H and W are multiples of ``patch_size``.

        Returns:
            (B, C, H / patch_size, W / patch_size) float32, without gradient.

        Raises:
            ValueError: the images do not consist of whole patches.
        """
        size = self.patch_size
        if (
            images.ndim != 4
            or images.shape[1] != 3
            or images.shape[2] % size
            or images.shape[3] % size
        ):
            raise ValueError(
                f"images must be (B, 3, H, W) with H and W multiples of {size}, got "
                f"{tuple(images.shape)}"
            )
        grid = (images.shape[2] // size, images.shape[3] // size)
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, self.amp):
            maps = [self._to_map(hidden, grid) for hidden in self._hidden_states(images)]
        # Outside inference mode: its tensors could not be saved for a trainable layer's backward.
        with torch.no_grad():
            features = torch.cat(maps, dim=1).float()
            return features if self.basis is None else self.basis.project(features)

    def reduced(self, basis: PcaBasis) -> "Backbone":
        """The same model, whose features are their coordinates in a basis."""
        reduced = copy.copy(self)  # shares the weights
        reduced.basis, reduced.channels = basis, basis.size
        return reduced

    def _hidden_states(self, images: Tensor) -> list[Tensor]:
        """Output of the chosen blocks, normalised where asked for, as the model shapes it."""
        only_last = self.layers == (self.num_layers,) and self.final_norm
        output = self.model(pixel_values=images, output_hidden_states=not only_last)
        if only_last:
            return [output.last_hidden_state]
        chosen = [output.hidden_states[layer] for layer in self.layers]
        if not self.final_norm:
            return chosen
        norm = self.model.get_submodule(_FINAL_NORM[self.model_type])
        if self.model_type == "dinov3_convnext":  # maps (B, C, h, w); the norm wants channels last
            return [norm(hidden.movedim(1, -1)).movedim(-1, 1) for hidden in chosen]
        return [norm(hidden) for hidden in chosen]

    def _to_map(self, hidden: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, special + h * w, C) or a map (B, C, h, w) to (B, C, h, w)."""
        if hidden.ndim == 4:
            return hidden
        expected = self._num_special + grid[0] * grid[1]
        if hidden.shape[1] != expected:
            raise ValueError(
                f"{self.name} gave {hidden.shape[1]} tokens for {grid[0]} x {grid[1]} patches, "
                f"expected {expected}: its config counts {self._num_special} class and register "
                "tokens"
            )
        return hidden[:, self._num_special :].mT.reshape(len(hidden), -1, *grid)


def load_backbone(
    source: BackboneSource,
    layers: Sequence[int] = (-1,),
    final_norm: bool = True,
    device: str | torch.device = "cpu",
    amp: bool = False,
) -> Backbone:
    """Load a frozen backbone from the hub or a folder, or make one with random weights.

    Args:
        source: a Hugging Face id (``facebook/dinov3-vits16-pretrain-lvd1689m``), a folder with
            ``config.json`` and weights, or a configuration: a mapping with ``model_type`` (one of
            ``MODEL_TYPES``), that configuration's own keys, and optionally ``seed`` (default 0). A
            configuration alone gives random weights.
        layers: blocks (stages of a ConvNeXt), 1 to n, or negative from the end; their outputs are
            concatenated along the channels.
        final_norm: apply the model's last layer norm to each of them.
        device: where it computes.
        amp: bfloat16 autocast.

    Raises:
        InputError: the source cannot be reached, is gated, is not there, holds no weights or is of
            another kind of model; a layer does not exist; the device is absent.
    """
    for setting, value in (("amp", amp), ("features.final_norm", final_norm)):
        if value not in (True, False):
            raise InputError(f"{setting} must be true or false, got {value!r}.")
    device = _available_device(device)
    if isinstance(source, Mapping):
        model, name, mean, std = *_random_model(source), IMAGENET_MEAN, IMAGENET_STD
        seed: int | None = int(source.get("seed", 0))
    else:
        folder = _folder_of(source)
        model, name, seed = _trained_model(folder, str(source)), str(source), None
        mean, std = _image_statistics(folder)
    backbone = Backbone(model, name, layers, final_norm, amp, mean, std, seed)
    logger.info(
        "backbone %s: %s, %d channels, patches of %d pixels, layers %s of %d, digest %s",
        name, backbone.model_type, backbone.channels, backbone.patch_size,
        list(backbone.layers), backbone.num_layers, backbone.digest,
    )  # fmt: skip
    return backbone.to(device)


def resolve_layers(layers: Sequence[int], num_layers: int, name: str) -> tuple[int, ...]:
    """Layer numbers as 1 to n: negative ones count from the end.

    Raises:
        InputError: no layer, one that does not exist, or one named twice.
    """
    if isinstance(layers, (str, int)) or not layers:
        raise InputError(
            f"features.layers must be a list of block numbers such as [-1], got {layers!r}."
        )
    for layer in layers:
        if (
            isinstance(layer, bool)
            or not isinstance(layer, int)
            or not 1 <= abs(layer) <= num_layers
        ):
            raise InputError(
                f"features.layers: {layer!r} does not exist in {name}; its blocks are 1 to "
                f"{num_layers}, or -1 to -{num_layers} from the end."
            )
    resolved = tuple(layer if layer > 0 else num_layers + 1 + layer for layer in layers)
    if len(set(resolved)) < len(resolved):
        raise InputError(f"features.layers names a block of {name} twice: {list(layers)}.")
    return resolved


def weights_digest(model: nn.Module) -> str:
    """First 16 hexadecimal digits of SHA-256 over the weights as float32.

    The same for the same weights, whatever file they came from. Hashed in the order of their
    names: name, shape, then the little-endian bytes.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().astype("<f4").tobytes())
    return digest.hexdigest()[:16]


def _num_layers(config: PretrainedConfig) -> int:
    """Number of blocks, of a ConvNeXt of stages."""
    if config.model_type == "dinov3_convnext":
        return len(config.hidden_sizes)
    return int(config.num_hidden_layers)


def _output_geometry(
    config: PretrainedConfig, layers: tuple[int, ...], final_norm: bool
) -> tuple[int, int]:
    """Patch size in pixels and number of channels of the concatenated layers."""
    if config.model_type != "dinov3_convnext":
        return int(config.patch_size), int(config.hidden_size) * len(layers)
    stages = config.hidden_sizes
    if len(layers) > 1:
        raise InputError(
            f"features.layers {list(layers)}: the stages of a ConvNeXt differ in resolution, "
            "choose one."
        )
    if final_norm and layers[0] != len(stages):
        raise InputError(
            f"features.final_norm belongs to the last stage of a ConvNeXt, not to stage "
            f"{layers[0]}: set it to false."
        )
    return 2 ** (layers[0] + 1), int(stages[layers[0] - 1])


def _least_window(config: PretrainedConfig) -> int:
    """Smallest edge of an image, pixels: one patch, of a ConvNeXt one of its last stage."""
    if config.model_type == "dinov3_convnext":
        return int(2 ** (len(config.hidden_sizes) + 1))
    return int(config.patch_size)


def _available_device(device: str | torch.device) -> torch.device:
    """The device, if this machine has it."""
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either for an absent device
        raise InputError(
            f"device {str(device)!r} is not available: use 'cpu' or 'cuda'."
        ) from error
    return device


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


def _random_model(source: Mapping[str, Any]) -> tuple[PreTrainedModel, str]:
    """Model with seeded random weights, and its name; torch's random state is left as it was."""
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
        model = AutoModel.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    logger.warning(
        "backbone %s has RANDOM weights (seed %d): good for trying things out, not for results",
        model_type, seed,
    )  # fmt: skip
    return cast(PreTrainedModel, model), f"random {model_type}"


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
    return _download(text)


def _download(repo_id: str) -> Path:
    """Local copy of a hub repository: its configuration, then, if supported, its weights."""
    folder = _snapshot(repo_id, ["config.json", "preprocessor_config.json"])
    _read_config(folder, repo_id)
    _snapshot(repo_id, ["*.json", "*.safetensors"])
    if not _has_weights(folder):
        _snapshot(repo_id, ["*.json", "pytorch_model*.bin"])
    return folder


def _snapshot(repo_id: str, patterns: list[str]) -> Path:
    """Download of the files that match, or the cached copy when the hub is out of reach."""
    try:
        # Unlike hf_hub_download, which retries for 20 s, this fails at once without a network.
        return Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=patterns))
    except GatedRepoError as error:
        raise InputError(
            f"backbone {repo_id} is gated: accept its licence at https://huggingface.co/{repo_id} "
            "and run `hf auth login`, or give a local folder with config.json and weights, such as "
            "a downloaded copy of an ungated mirror in the format of Hugging Face transformers."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputError(
            f"backbone {repo_id} is neither a folder here nor on the Hugging Face hub, or it is "
            "private: check the spelling, or run `hf auth login` if it is private."
        ) from error
    except OSError as error:  # every way of being offline: no network, no answer, HF_HUB_OFFLINE
        raise InputError(
            f"backbone {repo_id} is not a folder here and cannot be downloaded, the Hugging Face "
            "hub is out of reach: connect this machine, or give a local folder with config.json "
            "and weights."
        ) from error


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    """The folder's ``config.json``, of a supported type."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError as error:
        raise InputError(
            f"backbone {name} has no config.json: give a folder in the format of Hugging Face "
            "transformers, with config.json and model.safetensors."
        ) from error
    except ValueError as error:
        raise InputError(f"backbone {name}: config.json is not valid JSON ({error}).") from error
    _checked_model_type(config if isinstance(config, dict) else {}, f"backbone {name}: config.json")
    return cast(dict[str, Any], config)


def _has_weights(folder: Path) -> bool:
    """Whether there is a file of weights, whole or in shards."""
    return any(any(folder.glob(name)) for name in ("model*.safetensors", "pytorch_model*.bin"))


def _trained_model(folder: Path, name: str) -> PreTrainedModel:
    """Model with the folder's weights, as float32."""
    _read_config(folder, name)
    if not _has_weights(folder):
        raise InputError(
            f"backbone {name} has no weights: {folder} needs model.safetensors beside config.json."
        )
    try:
        model, info = AutoModel.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError, SafetensorError) as error:
        raise InputError(
            f"backbone {name}: the weights in {folder} cannot be read, or do not fit its "
            f"config.json ({str(error).strip().splitlines()[0]})."
        ) from error
    missing = [key for key in info["missing_keys"] if not key.endswith(_UNUSED_WEIGHTS)]
    if missing:
        raise InputError(
            f"backbone {name}: the weights in {folder} lack {len(missing)} of the tensors that its "
            f"config.json asks for, such as {sorted(missing)[0]}; get a complete copy."
        )
    return cast(PreTrainedModel, model)


def _image_statistics(folder: Path) -> tuple[RGB, RGB]:
    """Mean and standard deviation that the model was trained with; ImageNet's when not stated."""
    path = folder / "preprocessor_config.json"
    stated = json.loads(path.read_text()) if path.is_file() else {}
    mean = tuple(float(v) for v in stated.get("image_mean") or IMAGENET_MEAN)
    std = tuple(float(v) for v in stated.get("image_std") or IMAGENET_STD)
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise InputError(f"{path}: image_mean and image_std must be 3 numbers each, std positive.")
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
