"""Backbones whose features are reduced to principal components, and the specs of these."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from custom.errors import InputError
from custom.features.backbone import Backbone, BackboneSource
from custom.features.pca import BASIS_FILE, PcaBasis, read_basis
from custom.features.settings import load_backbone_and_spec
from custom.features.spec import FeatureSpec


def load_reduced(
    source: BackboneSource,
    settings: Mapping[str, Any],
    device: str | torch.device,
    folder: str | Path,
    advice: str,
    compile: bool = False,
) -> tuple[Backbone, FeatureSpec]:
    """As ``load_backbone_and_spec``; where the settings ask for ``pca``, with a stored basis.

    Args:
        source: as in ``load_backbone``.
        settings: as in ``make_spec``.
        device: where the backbone computes.
        folder: that holds the basis.
        advice: what to do if it does not.
        compile: as in ``load_backbone``.

    Raises:
        InputError: as ``load_backbone_and_spec``, ``read_basis`` and ``with_basis``.
    """
    backbone, spec = load_backbone_and_spec(source, settings, device, compile)
    if spec.pca is None:
        return backbone, spec
    return with_basis(backbone, spec, read_basis(folder, advice), folder)


def with_basis(
    backbone: Backbone, spec: FeatureSpec, basis: PcaBasis, folder: str | Path
) -> tuple[Backbone, FeatureSpec]:
    """Backbone and spec whose features are reduced to the components of a basis.

    Args:
        backbone: not reduced.
        spec: with ``pca``, made with the backbone.
        basis: fitted to the backbone's features.
        folder: that holds the basis, for the message.

    Raises:
        InputError: the basis was fitted to other features, or has another number of components.
    """
    fitted = FeatureSpec.from_json(basis.fitted_on["features"])
    difference = fitted.difference(unreduced(spec, backbone))
    if basis.size != spec.pca:
        difference.append(f"pca ({basis.size}, not {spec.pca})")
    if difference:
        raise InputError(
            f"'{Path(folder) / BASIS_FILE}' was fitted to features that differ from the request "
            f"in: {', '.join(difference)}. Change features, or take another folder."
        )
    return backbone.reduced(basis), replace(spec, pca_digest=basis.digest)


def unreduced(spec: FeatureSpec, backbone: Backbone) -> FeatureSpec:
    """The spec of the backbone's own features: all channels, in patches."""
    return replace(
        spec,
        channels=backbone.own_channels,
        layout="tokens",
        upsampler=None,
        upsampler_digest=None,
        pca=None,
        pca_digest=None,
    )
