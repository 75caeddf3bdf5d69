"""The config's ``features``: its defaults, and the spec and the backbone that it asks for."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from custom.errors import InputError
from custom.features.backbone import Backbone, BackboneSource, load_backbone, resolve_layers
from custom.features.spec import PRECISIONS, FeatureSpec, known_setting
from custom.features.upsampling import load_upsampler
from custom.json_fields import check_keys, numbers, sequence
from custom.planes import PLANES
from custom.voxel_grid import Triple

DEFAULTS: Mapping[str, Any] = {
    "layers": [-1],
    "final_norm": True,
    "pixels_per_voxel": 1.0,
    "window": 512,
    "overlap": 0,
    "stride": None,
    "planes": list(PLANES),
    "slice_step": 1,
    "intensity_percentiles": [0.1, 99.9],
    "precision": "bfloat16",
    "dtype": "float16",
    "layout": "tokens",
    "upsampler": None,
    "pca": None,
}


def complete_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The config's ``features`` with its defaults filled in.

    Raises:
        InputError: a key that is not known.
    """
    check_keys(settings, list(DEFAULTS), "features")
    return {**DEFAULTS, **settings}


def make_spec(settings: Mapping[str, Any], backbone: Backbone) -> FeatureSpec:
    """Spec of the features that a backbone gives under the config's ``features``.

    Args:
        settings: ``layers``, ``final_norm``, ``pixels_per_voxel`` (one number, or three for z, y,
            x), ``window``, ``overlap``, ``stride`` (None for the patch size), ``planes``,
            ``slice_step`` (one number, or one per plane), ``intensity_percentiles``,
            ``precision``, ``dtype``, ``layout``, ``upsampler``, ``pca`` (None for all channels);
            ``DEFAULTS`` stand in for those that are missing.
        backbone: loaded with the settings' ``layers`` and ``final_norm``.

    Returns:
        the spec, without ``upsampler_digest``: the upsampler is not loaded here.

    Raises:
        InputError: a setting is unknown, of the wrong kind or out of range.
        ValueError: the backbone was loaded with other layers or another norm than the settings'.
    """
    chosen = complete_settings(settings)
    _refuse_other_loading(chosen, backbone)
    stride = backbone.patch_size if chosen["stride"] is None else chosen["stride"]
    planes = tuple(sequence(chosen["planes"], "features.planes"))
    pca = _components(chosen["pca"], backbone)
    return FeatureSpec(
        backbone=backbone.name,
        digest=backbone.digest,
        patch_size=backbone.patch_size,
        channels=backbone.channels if pca is None else pca,
        layers=backbone.layers,
        final_norm=backbone.final_norm,
        pixels_per_voxel=_triple(chosen["pixels_per_voxel"]),
        window=_window(chosen["window"], backbone),
        overlap=_integer("overlap", chosen["overlap"]),
        stride=_integer("stride", stride),
        planes=planes,
        slice_step=_slice_step(chosen["slice_step"], planes),
        intensity_percentiles=_pair("intensity_percentiles", chosen["intensity_percentiles"]),
        image_mean=backbone.image_mean,
        image_std=backbone.image_std,
        precision=chosen["precision"],
        dtype=chosen["dtype"],
        layout=chosen["layout"],
        upsampler=chosen["upsampler"],
        pca=pca,
    )


def asked_of(spec: FeatureSpec, settings: Mapping[str, Any]) -> FeatureSpec:
    """The spec that the config's ``features`` ask for, if the backbone is that of another spec.

    For a look before any backbone is loaded: what only the backbone can tell is taken from
    ``spec``, its weights, those of an upsampler and the number of its layers among it.

    Args:
        spec: of a cache or a model.
        settings: as in ``make_spec``.

    Raises:
        InputError: a setting is unknown, of the wrong kind or out of range.
    """
    chosen = complete_settings(settings)
    planes = tuple(sequence(chosen["planes"], "features.planes"))
    stride = spec.patch_size if chosen["stride"] is None else chosen["stride"]
    both_upsample = None not in (chosen["upsampler"], spec.upsampler)
    return replace(
        spec,
        pixels_per_voxel=_triple(chosen["pixels_per_voxel"]),
        window=_integer("window", chosen["window"]),
        overlap=_integer("overlap", chosen["overlap"]),
        stride=_integer("stride", stride),
        planes=planes,
        slice_step=_slice_step(chosen["slice_step"], planes),
        intensity_percentiles=_pair("intensity_percentiles", chosen["intensity_percentiles"]),
        final_norm=chosen["final_norm"],
        precision=chosen["precision"],
        dtype=chosen["dtype"],
        layout=chosen["layout"],
        upsampler=chosen["upsampler"],
        upsampler_digest=spec.upsampler_digest if both_upsample else None,
        pca=chosen["pca"],
        channels=spec.channels if chosen["pca"] is None else chosen["pca"],
        pca_digest=spec.pca_digest if chosen["pca"] == spec.pca else None,
    )


def load_backbone_and_spec(
    source: BackboneSource,
    settings: Mapping[str, Any],
    device: str | torch.device = "cpu",
    compile: bool = False,
) -> tuple[Backbone, FeatureSpec]:
    """The backbone that the config's ``backbone`` and ``features`` ask for, and its spec.

    With an upsampler, this is the backbone's ``upsampler``.

    Args:
        source: as in ``load_backbone``.
        settings: as in ``make_spec``.
        device: where the backbone computes.
        compile: as in ``load_backbone``; features do not depend on it.

    Raises:
        InputError: as ``load_backbone``, ``make_spec`` and ``load_upsampler``.
    """
    chosen = complete_settings(settings)
    amp = known_setting("precision", chosen["precision"], PRECISIONS) == "bfloat16"
    layers, final_norm = chosen["layers"], chosen["final_norm"]
    backbone = load_backbone(source, layers, final_norm, device, amp, compile)
    spec = make_spec(chosen, backbone)
    if spec.upsampler is None:
        return backbone, spec
    upsampler = load_upsampler(spec.upsampler, spec.image_mean, spec.image_std)
    backbone.upsampler = upsampler.to(next(backbone.parameters()).device)
    return backbone, replace(spec, upsampler_digest=upsampler.digest)


def _refuse_other_loading(chosen: Mapping[str, Any], backbone: Backbone) -> None:
    """The backbone must have been loaded as the settings say."""
    layers = resolve_layers(chosen["layers"], backbone.num_layers, backbone.name)
    if (layers, chosen["final_norm"]) != (backbone.layers, backbone.final_norm):
        raise ValueError(
            f"the backbone was loaded with layers {backbone.layers} and final_norm "
            f"{backbone.final_norm}, the settings say {layers} and {chosen['final_norm']}"
        )


def _window(value: Any, backbone: Backbone) -> int:
    """Pixels of a window that the backbone can take; ``FeatureSpec`` checks it against patches."""
    window = _integer("window", value)
    if 0 < window < backbone.least_window:
        raise InputError(
            f"features.window must be at least {backbone.least_window} pixels for {backbone.name}, "
            f"got {window}."
        )
    if window % backbone.image_multiple and window % backbone.patch_size == 0:
        raise InputError(
            f"features.window must be a multiple of {backbone.image_multiple} pixels for stages "
            f"{list(backbone.layers)} of {backbone.name}, got {window}."
        )
    return window


def _integer(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"features.{name} must be a whole number of pixels, got {value!r}.")
    return value


def _components(value: Any, backbone: Backbone) -> int | None:
    """Number of principal components, None for all of the backbone's channels as they are."""
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= backbone.channels:
        raise InputError(
            f"features.pca must be null, or a whole number from 1 to the {backbone.channels} "
            f"channels of {backbone.name} in these layers, got {value!r}."
        )
    return value


def _slice_step(value: Any, planes: Sequence[str]) -> tuple[int, int, int]:
    """One number for all planes, or one for each of them, as those of xy, xz and yz."""
    values = value if isinstance(value, list) else [value] * len(planes)
    if len(values) != len(planes) or any(type(v) is not int or v < 1 for v in values):
        raise InputError(
            "features.slice_step must be one whole number from 1 on, or one for each of "
            f"features.planes {list(planes)}, got {value!r}."
        )
    xy, xz, yz = (values[planes.index(plane)] if plane in planes else 1 for plane in PLANES)
    return xy, xz, yz


def _triple(value: Any) -> Triple:
    """One number for all axes, or three."""
    values = value if isinstance(value, list) else [value] * 3
    z, y, x = numbers(values, 3, "features.pixels_per_voxel")
    return float(z), float(y), float(x)


def _pair(name: str, value: Any) -> tuple[float, float]:
    low, high = numbers(value, 2, f"features.{name}")
    return float(low), float(high)
