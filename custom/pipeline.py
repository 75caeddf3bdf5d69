"""Raw in, prediction out: a frozen backbone and a network as one module."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from funlib.geometry import Roi
from monai.bundle import ConfigParser
from monai.inferers import Inferer
from monai.networks import eval_mode
from numpy.typing import NDArray
from torch import Tensor, nn

from custom.channels import ChannelLayout
from custom.context import context_factor_of, whole_contexts
from custom.errors import InputError
from custom.features.backbone import Backbone
from custom.features.batching import checked_windows_at_once
from custom.features.extraction import extract_planes
from custom.features.intensity import IntensityWindow
from custom.features.reduced import load_reduced
from custom.features.spec import FeatureSpec
from custom.inferers import PrepareTokenBatch, as_probabilities
from custom.json_fields import voxel_size
from custom.model_files import load_weights, read_description, refuse_other_features
from custom.samples import Sample, add_extracted, image_of
from custom.volume_segmenter import VolumeSegmenter, stored_segmenter

NEEDED = ("network_def", "token_channels", "validate", "segmenter")  # of the configuration
BACKBONE = "backbone."  # how its entries in a state dict begin


class Pipeline(nn.Module):
    """A backbone and a network as one module, on volumes or, with plane xy alone, on sections.

    Raw is grey values, brought to [-1, 1] and given features as inference from raw does it; every
    volume of a batch is taken for a whole one, its windows begin at its first voxel. Only the
    network is trained, and only its weights are in the state dict.

    Args:
        network: takes the image and, by name, tokens and their placements or dense features, as
            ``TokenUNet`` does.
        intensity_window: grey values that are mapped to the ends of the image's range.
        backbone: makes the features, with its basis and upsampler where the spec has them; None for
            a network on raw alone.
        spec: how it makes them.
        inferer: of ``predict``: a window after the other, with an activation; None for ``forward``
            on whole volumes and the activation that ``layout`` asks for.
        windows_at_once: batch size of the backbone; None for as many as fit into memory.
        save_backbone: whether the state dict holds the backbone's weights, too.
        context_factor: of the network's context, which ``forward`` takes from the volume itself;
            None without. An inferer has its own.
        layout: of the network's channels, for ``predict`` without an inferer, which has its own:
            classes get a softmax; None for affinities, with or without LSDs.
        segmenter: of ``segment``.

    Raises:
        ValueError: a backbone without a spec or the reverse, or one that the spec is not of; the
            intensity window is empty.
    """

    def __init__(
        self,
        network: nn.Module,
        intensity_window: IntensityWindow,
        backbone: Backbone | None = None,
        spec: FeatureSpec | None = None,
        inferer: Inferer | None = None,
        windows_at_once: int | None = None,
        save_backbone: bool = False,
        context_factor: int | Sequence[int] | None = None,
        layout: ChannelLayout | None = None,
        segmenter: VolumeSegmenter | None = None,
    ) -> None:
        super().__init__()
        if (backbone is None) != (spec is None):
            raise ValueError("a backbone needs the spec of its features, and a spec its backbone")
        if backbone is not None and spec is not None and not spec.made_with(backbone):
            raise ValueError(
                f"the spec was made with another backbone or basis than {backbone.name}"
            )
        low, high = intensity_window
        if not low < high:
            raise ValueError(f"intensity_window must be (low, high), got {intensity_window}")
        self.network = network
        self.intensity_window = (float(low), float(high))
        self.backbone = None if backbone is None else backbone.requires_grad_(False)
        self.spec = spec
        self.inferer = inferer
        self.windows_at_once = checked_windows_at_once(windows_at_once)
        self.save_backbone = save_backbone
        self.context_factor = context_factor_of(context_factor)
        self.layout = layout
        self.segmenter = segmenter
        for register, hook in (
            (self.register_state_dict_post_hook, _leave_backbone_out),
            (self.register_load_state_dict_pre_hook, _keep_backbone),
        ):
            register(hook)  # type: ignore[no-untyped-call]  # torch does not type these

    def forward(self, raw: Tensor) -> Tensor:
        """Logits of a batch of volumes or sections.

        Args:
            raw: (B, 1, D, H, W) grey values of any type and device; sections (B, 1, H, W).

        Returns:
            (B, C, D, H, W) float32 on the network's device; of sections (B, C, H, W).

        Raises:
            ValueError: raw has another form, or sections are given where the spec has planes other
                than xy.
            InputError: raw holds NaN or infinite values.
        """
        image, features = self._inputs(raw)
        if self.context_factor is not None:
            features |= whole_contexts(image, features, self.context_factor)
        logits: Tensor = self.network(image, **features).float()
        return logits.squeeze(2) if raw.ndim == 4 else logits

    def predict(self, raw: Tensor) -> Tensor:
        """Probabilities, as inference gives them: without gradient, in evaluation mode.

        Arguments, result and errors as of ``forward``.
        """
        with eval_mode(self.network):
            if self.inferer is None:
                return as_probabilities(self.forward(raw), self.layout)
            parts = []
            for volume in raw:
                image, features = self._inputs(volume[None])
                parts.append(self.inferer(image, self.network, **features).float())
        probabilities = torch.cat(parts)
        return probabilities.squeeze(2) if raw.ndim == 4 else probabilities

    def segment(self, raw: NDArray[Any], voxel_size_nm: Sequence[float]) -> NDArray[np.uint64]:
        """Segments of one volume, or its classes, as inference writes them.

        Args:
            raw: (D, H, W) grey values of any type.
            voxel_size_nm: of raw, zyx; one that training has not seen is logged.

        Returns:
            (D, H, W), 0 is background.

        Raises:
            ValueError: raw has another form, or there is no segmenter.
            InputError: raw holds NaN or infinite values, or voxel_size_nm is no size.
        """
        if self.segmenter is None:
            raise ValueError("to segment, a pipeline needs a segmenter; load_pipeline gives it one")
        if raw.ndim != 3:
            raise ValueError(f"raw must be (D, H, W), got shape {raw.shape}")
        size = voxel_size(list(voxel_size_nm), "voxel_size_nm")
        native = raw.astype(raw.dtype.newbyteorder("="))  # all that torch takes
        return self.segmenter(self.predict(torch.from_numpy(native)[None, None])[0], size)

    def _inputs(self, raw: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Image (B, 1, D, H, W) and features by the network's argument names, on its device."""
        volumes = self._volumes(raw)
        with torch.no_grad():
            samples = [self._sample(volume) for volume in volumes]
        batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
        device = next(self.network.parameters()).device
        image, _, _, features = PrepareTokenBatch()(batch, device)
        return image, features

    def _volumes(self, raw: Tensor) -> Sequence[np.ndarray[Any, Any]]:
        if raw.ndim not in (4, 5) or raw.shape[1] != 1 or not raw.numel():
            raise ValueError(f"raw must be (B, 1, D, H, W) or (B, 1, H, W), got {tuple(raw.shape)}")
        if raw.ndim == 4 and self.spec is not None and self.spec.planes != ("xy",):
            raise ValueError(
                f"sections have plane xy alone, but the features are of {list(self.spec.planes)}: "
                "give volumes (B, 1, D, H, W), or train with features.planes ['xy']"
            )
        values = raw.detach().cpu().numpy()
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise InputError("raw holds NaN or infinite values; replace them first.")
        return [volume[0] if raw.ndim == 5 else volume for volume in values]

    def _sample(self, raw: np.ndarray[Any, Any]) -> Sample:
        """What inference makes of one volume (D, H, W)."""
        sample: Sample = {"image": image_of(raw, self.intensity_window)}
        if self.backbone is not None and self.spec is not None:
            grids = extract_planes(
                lambda box: raw[box.to_slices()],
                raw.shape,
                Roi((0, 0, 0), raw.shape),
                self.backbone,
                self.spec,
                self.intensity_window,
                self.windows_at_once,
            )
            add_extracted(sample, self.spec, grids)
        return sample


def load_pipeline(
    model_dir: str | Path,
    intensity_window: IntensityWindow,
    device: str | torch.device = "cpu",
    window_overlap: float = 0.5,
    windows_at_once: int | None = None,
) -> Pipeline:
    """The pipeline of a trained model; ``predict`` and ``segment`` give what inference writes.

    Evaluates the configuration that is stored in ``model.json``: it is code, like that of a bundle.

    Args:
        model_dir: folder with ``model.pt`` and ``model.json``, and ``pca.safetensors`` if its
            features are reduced.
        intensity_window: as of ``Pipeline``: those of the data set, not of a crop.
        device: where backbone and network compute.
        window_overlap: of the inferer's windows.
        windows_at_once: as of ``Pipeline``.

    Raises:
        InputError: there is no model, it was trained without a configuration, or its backbone
            cannot be loaded or has become another one.
    """
    description = read_description(model_dir)
    parser = training_parser(model_dir, description, device, window_overlap)
    network = parser.get_parsed_content("network_def")
    load_weights(model_dir, network)
    backbone, spec = None, None
    if parser.get_parsed_content("token_channels"):
        source, settings = (parser.get_parsed_content(key) for key in ("backbone", "features"))
        advice = "put back the one that training wrote there"
        backbone, spec = load_reduced(source, settings, device, model_dir, advice)
        refuse_other_features(model_dir, description, spec)
    inferer = parser.get_parsed_content("validate#inferer")
    has_factor = "context_factor" in description["config"]  # not in models from before
    factor = parser.get_parsed_content("context_factor") if has_factor else None
    pipeline = Pipeline(
        network,
        intensity_window,
        backbone,
        spec,
        inferer,
        windows_at_once,
        context_factor=factor,
        segmenter=stored_segmenter(description, parser.get_parsed_content("segmenter")),
    )
    return pipeline.to(device).eval()


def training_parser(
    model_dir: str | Path,
    description: Mapping[str, Any],
    device: str | torch.device,
    window_overlap: float,
) -> ConfigParser:
    """The configuration that a model was trained with, for another device.

    Args:
        model_dir: folder of the model, for messages.
        description: its ``model.json``.
        device: where network and backbone compute.
        window_overlap: of the inferer's windows.

    Raises:
        InputError: the model was trained without a configuration.
    """
    config = description.get("config") or {}
    missing = [key for key in NEEDED if key not in config]
    if missing:
        raise InputError(
            f"model '{model_dir}' was trained without a configuration that has '{missing[0]}': "
            "build its network and load the weights yourself, then give it to Pipeline."
        )
    parser = ConfigParser(dict(config))
    parser["bootstrap"] = None  # whoever is here has found the modules already
    parser["device"] = f"$torch.device('{device}')"
    parser["validate#inferer#overlap"] = window_overlap
    return parser


def _leave_backbone_out(
    module: Pipeline, state: dict[str, Any], prefix: str, local_metadata: Mapping[str, Any]
) -> None:
    """The backbone is frozen, and found by its name: its weights need not be kept with a model."""
    if not module.save_backbone:
        for name in [name for name in state if name.startswith(prefix + BACKBONE)]:
            del state[name]


def _keep_backbone(
    module: Pipeline, state: dict[str, Any], prefix: str, *arguments: object
) -> None:
    """A state dict without the backbone's weights leaves them as they are."""
    if module.backbone is not None:
        for name, value in module.backbone.state_dict(prefix=prefix + BACKBONE).items():
            state.setdefault(name, value)
