"""Principal components: a basis that reduces features to fewer channels, and the file it is in."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from custom.errors import InputError

BASIS_FILE = "pca.safetensors"
TENSORS = ("mean", "components", "variance", "total_variance")


@dataclass(frozen=True, eq=False)
class PcaBasis:
    """The ``n`` directions in which features of C channels vary most.

    Args:
        mean: (C,) float32, of the features.
        components: (n, C) float32, orthonormal, the one with the largest variance first; the
            largest entry of each is positive.
        variance: (n,) float32, of the features along each.
        total_variance: () float32, sum of the variances of all C channels.
        fitted_on: what it was made from, plain JSON values; ``features`` is the spec of the
            features before reduction.

    Raises:
        ValueError: the shapes do not fit, or a value is not finite.
    """

    mean: Tensor
    components: Tensor
    variance: Tensor
    total_variance: Tensor
    fitted_on: Mapping[str, Any]

    def __post_init__(self) -> None:
        n, channels = self.components.shape if self.components.ndim == 2 else (0, 0)
        shapes = ((channels,), (n, channels), (n,), ())
        if not 0 < n <= channels or tuple(tuple(t.shape) for t in self._tensors()) != shapes:
            raise ValueError("the shapes of mean, components and variances do not fit together")
        if not all(bool(torch.isfinite(t).all()) for t in self._tensors()):
            raise ValueError("a value is not finite")
        if "features" not in self.fitted_on:
            raise ValueError("what it was fitted to is not there")

    def _tensors(self) -> list[Tensor]:
        return [getattr(self, name) for name in TENSORS]

    @property
    def size(self) -> int:
        """Number of components n."""
        return len(self.components)

    @property
    def explained(self) -> float:
        """Share of the variance that the components keep, 0 to 1."""
        return float(self.variance.sum() / self.total_variance)

    @cached_property
    def digest(self) -> str:
        """Of the values."""
        content = [t.float().cpu().contiguous().numpy().tobytes() for t in self._tensors()]
        return hashlib.sha256(b"".join(content)).hexdigest()[:16]

    def project(self, features: Tensor) -> Tensor:
        """Features (B, C, ...) as their n coordinates (B, n, ...), float32."""
        mean, components = (t.to(features.device) for t in (self.mean, self.components))
        coordinates = (features.float().movedim(1, -1) - mean) @ components.mT
        return coordinates.movedim(-1, 1)

    def to_bytes(self) -> bytes:
        """Content of the file."""
        tensors = {name: getattr(self, name).contiguous() for name in TENSORS}
        return save(tensors, {"fitted_on": json.dumps(self.fitted_on)})


def basis_of_covariance(
    mean: Tensor, covariance: Tensor, n: int, fitted_on: Mapping[str, Any]
) -> PcaBasis:
    """The basis of features with this mean and covariance.

    Args:
        mean: (C,) float64.
        covariance: (C, C) float64.
        n: number of components, at most C.
        fitted_on: see ``PcaBasis``.
    """
    variances, vectors = torch.linalg.eigh(covariance)
    components = vectors.mT.flip(0)[:n]
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    return PcaBasis(
        mean.float(),
        (components * largest.sign()).float(),
        variances.flip(0)[:n].clamp(min=0).float(),
        covariance.trace().float(),
        fitted_on,
    )


def read_basis(folder: str | Path, advice: str) -> PcaBasis:
    """The basis in a folder; only tensors and JSON are ever loaded.

    Args:
        folder: of a cache or of a model.
        advice: what to do about a basis that is missing or damaged.

    Raises:
        InputError: it is.
    """
    path = Path(folder) / BASIS_FILE
    if not path.is_file():
        raise InputError(f"'{path}', the basis of the features' components, is missing: {advice}.")
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in TENSORS}
            fitted_on = json.loads((file.metadata() or {})["fitted_on"])
        return PcaBasis(**tensors, fitted_on=fitted_on)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"'{path}' is damaged or not a basis of features ({type(error).__name__}): {advice}."
        ) from error
