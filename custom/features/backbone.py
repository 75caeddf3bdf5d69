"""Frozen DINO backbones: normalised images in, patch features out."""

import copy
import hashlib
import logging
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel

from custom.errors import InputError
from custom.features.backbone_weights import BackboneSource as BackboneSource  # also found here
from custom.features.backbone_weights import find_model
from custom.features.image_statistics import IMAGENET_MEAN, IMAGENET_STD, RGB
from custom.features.pca import PcaBasis

logger = logging.getLogger(__name__)

BLOCKS = ("DINOv3ViTLayer", "DINOv3ConvNextLayer", "Dinov2Layer", "Dinov2WithRegistersLayer")
_FINAL_NORM = {
    "dinov3_vit": "norm",
    "dinov3_convnext": "layer_norm",
    "dinov2": "layernorm",
    "dinov2_with_registers": "layernorm",
}


class Backbone(nn.Module):
    """A frozen vision model that maps images to one feature vector per patch.

    Class and register tokens are dropped by the configuration's own counts; the outputs of the
    chosen blocks are concatenated along the channels, in the order of ``layers``. Stages of a
    ConvNeXt differ in resolution: coarser maps are linearly upsampled to the finest chosen one.

    Args:
        model: a transformers model of one of ``MODEL_TYPES``, float32; it is frozen.
        name: what the user called it: a hub id, a folder or "random <model_type>".
        layers: blocks (stages of a ConvNeXt) whose output is used: 1 to n, or -1 to -n from the
            end.
        final_norm: apply the model's last layer norm to the output of every chosen block; that of a
            ConvNeXt fits its last stage alone, and the others stay as they are.
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
        self.image_multiple = _whole(config, self.layers, self.patch_size)
        self.own_channels = self.channels  # also where ``channels`` are those of a basis
        self.digest = weights_digest(model)
        self.basis: PcaBasis | None = None
        self.upsampler: nn.Module | None = None  # of the features, see ``load_backbone_and_spec``
        self._num_special = 1 + (getattr(config, "num_register_tokens", None) or 0)
        self.model = model.requires_grad_(False)
        self.compiled = False
        self.eval()

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in evaluation mode: a frozen backbone has no other."""
        return super().train(False)

    def compile_blocks(self) -> None:
        """Let torch.compile translate every block when it first runs; the features stay the same.

        Blocks, not the whole model: they are alike, so that one translation serves all of them.
        """
        for module in self.model.modules():
            if type(module).__name__ in BLOCKS:
                module.compile()
        self.compiled = True

    def forward(self, images: Tensor) -> Tensor:
        """Patch features of images.

        Args:
            images: (B, 3, H, W) float, in [0, 1] then normalised by ``image_mean`` and
                ``image_std``; H and W are multiples of ``image_multiple``.

        Returns:
            (B, C, H / patch_size, W / patch_size) float32, without gradient.

        Raises:
            ValueError: the images do not consist of whole patches.
            InputError: compiling fails.
        """
        size = self.image_multiple
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
        grid = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size)
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, self.amp):
            states = self._compiled_states(images) if self.compiled else self._hidden_states(images)
            maps = [self._to_map(hidden, grid) for hidden in states]
        # Outside inference mode: its tensors could not be saved for a trainable layer's backward.
        with torch.no_grad():
            features = torch.cat([_upsampled(part.float(), grid) for part in maps], dim=1)
            return features if self.basis is None else self.basis.project(features)

    def reduced(self, basis: PcaBasis) -> "Backbone":
        """The same model, whose features are their coordinates in a basis."""
        reduced = copy.copy(self)  # shares the weights
        reduced.basis, reduced.channels = basis, basis.size
        return reduced

    def _compiled_states(self, images: Tensor) -> list[Tensor]:
        """As ``_hidden_states``; blocks are compiled when they first run."""
        from torch._dynamo.exc import TorchDynamoException  # takes a second to import

        try:
            return self._hidden_states(images)
        except TorchDynamoException as error:
            raise InputError(
                f"compile is true, but torch.compile fails for {self.name} on {images.device} "
                f"({str(error).strip().splitlines()[0]}): install a C++ compiler (for CUDA, "
                "Triton comes with torch), or set compile to false."
            ) from error

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
        if self.model_type != "dinov3_convnext":
            return [norm(hidden) for hidden in chosen]
        return [  # maps (B, C, h, w); the norm is the last stage's and wants channels last
            norm(hidden.movedim(1, -1)).movedim(-1, 1) if layer == self.num_layers else hidden
            for layer, hidden in zip(self.layers, chosen, strict=True)
        ]

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


def _upsampled(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """A map of a coarser stage at the patches of the finest one, linearly interpolated."""
    if tuple(features.shape[2:]) == grid:
        return features
    return F.interpolate(features, size=grid, mode="bilinear", align_corners=False)


def load_backbone(
    source: BackboneSource,
    layers: Sequence[int] = (-1,),
    final_norm: bool = True,
    device: str | torch.device = "cpu",
    amp: bool = False,
    compile: bool = False,
) -> Backbone:
    """Load a frozen backbone from the hub or a folder, or make one with random weights.

    Args:
        source: a Hugging Face id (``facebook/dinov3-vits16-pretrain-lvd1689m``), one of timm's
            mirrors of DINOv3 (``timm/vit_small_patch16_dinov3.lvd1689m``), a folder with
            ``config.json`` and weights in either form, or a configuration: a mapping with
            ``model_type`` (one of ``MODEL_TYPES``), that configuration's own keys, and optionally
            ``seed`` (default 0). A configuration alone gives random weights.
        layers: blocks (stages of a ConvNeXt), 1 to n, or negative from the end; their outputs are
            concatenated along the channels.
        final_norm: apply the model's last layer norm to each of them.
        device: where it computes.
        amp: bfloat16 autocast.
        compile: translate its blocks by torch.compile when they first run.

    Raises:
        InputError: the source cannot be reached, is gated, is not there, holds no weights or is of
            another kind of model; a layer does not exist; the device is absent.
    """
    switches = {"amp": amp, "features.final_norm": final_norm, "compile": compile}
    for setting, value in switches.items():
        if value not in (True, False):
            raise InputError(f"{setting} must be true or false, got {value!r}.")
    device = available_device(device)
    found = find_model(source)
    backbone = Backbone(
        found.model, found.name, layers, final_norm, amp,
        found.image_mean, found.image_std, found.seed,
    )  # fmt: skip
    logger.info(
        "backbone %s: %s, %d channels, patches of %d pixels, layers %s of %d, digest %s",
        backbone.name, backbone.model_type, backbone.channels, backbone.patch_size,
        list(backbone.layers), backbone.num_layers, backbone.digest,
    )  # fmt: skip
    if compile:
        backbone.compile_blocks()
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
    names: name, shape, then the little-endian bytes. A mask token, which is not used and which some
    files leave out, counts as zeros.
    """
    digest = hashlib.sha256()
    # Older transformers call a DINOv3's blocks "layer.0" where newer ones say "model.layer.0".
    named = {
        re.sub(r"^(layer|stages)\.", r"model.\1.", k): v for k, v in model.state_dict().items()
    }
    for name, value in sorted(named.items()):
        value = torch.zeros_like(value) if name.endswith("mask_token") else value
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
    if final_norm and len(stages) not in layers:
        raise InputError(
            f"features.final_norm belongs to the last stage of a ConvNeXt, not to stage "
            f"{', '.join(map(str, layers))}: set it to false."
        )
    return _reduction(min(layers)), sum(int(stages[layer - 1]) for layer in layers)


def _reduction(stage: int) -> int:
    """Pixels per entry of the map that a ConvNeXt's stage gives."""
    return int(2 ** (stage + 1))


def _whole(config: PretrainedConfig, layers: tuple[int, ...], patch_size: int) -> int:
    """Edges of images are multiples of this: then the maps of all chosen stages end together."""
    return _reduction(max(layers)) if config.model_type == "dinov3_convnext" else patch_size


def _least_window(config: PretrainedConfig) -> int:
    """Smallest edge of an image, pixels: one patch, of a ConvNeXt one of its last stage."""
    if config.model_type == "dinov3_convnext":
        return _reduction(len(config.hidden_sizes))
    return int(config.patch_size)


def available_device(device: str | torch.device) -> torch.device:
    """The device, if this machine has it.

    Raises:
        InputError: it has not.
    """
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either for an absent device
        raise InputError(
            f"device {str(device)!r} is not available: use 'cpu' or 'cuda'."
        ) from error
    return device
