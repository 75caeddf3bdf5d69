"""Guided upsampling: finer features of an image, their edges taken from the image itself."""

import logging
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from zipfile import BadZipFile

import torch
from torch import Tensor, nn

from custom.errors import InputError
from custom.features.backbone import weights_digest
from custom.features.image_statistics import IMAGENET_MEAN, IMAGENET_STD, RGB

logger = logging.getLogger(__name__)

ANYUP = "anyup"
ANYUP_REPOSITORY = "wimmerth/anyup:1551eaa16b61600de78093c510005ae59ece8866"
ENTRY_POINT = "anyup"

# Both bound memory: the finer features of a window are as large as the image, times C.
IMAGES_AT_ONCE = {"cpu": 1, "cuda": 4}
QUERIES_AT_ONCE = 4096


class GuidedUpsampler(nn.Module):
    """A frozen model in the manner of AnyUp, in float32.

    Args:
        model: called with the guide (B, 3, H, W), normalised as ImageNet is, features (B, C, h, w),
            ``output_size`` and ``q_chunk_size``; returns (B, C, *output_size).
        name: what the user called it.
        image_mean: that images were normalised with, per channel.
        image_std: likewise.

    Source:
        AnyUp (Wimmer et al. 2025), arXiv:2510.12764.
    """

    _scale: Tensor
    _shift: Tensor

    def __init__(self, model: nn.Module, name: str, image_mean: RGB, image_std: RGB) -> None:
        super().__init__()
        self.name = name
        self.digest = weights_digest(model)
        self.model = model.requires_grad_(False)
        self._same = (image_mean, image_std) == (IMAGENET_MEAN, IMAGENET_STD)
        wanted_mean, wanted_std, mean, std = (
            torch.tensor(value).view(3, 1, 1)
            for value in (IMAGENET_MEAN, IMAGENET_STD, image_mean, image_std)
        )
        self.register_buffer("_scale", std / wanted_std, persistent=False)
        self.register_buffer("_shift", (mean - wanted_mean) / wanted_std, persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> "GuidedUpsampler":
        """Stay in evaluation mode: a frozen model has no other."""
        return super().train(False)

    def pieces(
        self, images: Tensor, features: Tensor, factors: tuple[int, int]
    ) -> Iterator[tuple[int, Tensor]]:
        """Finer features of a few images at a time.

        Args:
            images: (B, 3, H, W), as the backbone saw them.
            features: (B, C, h, w) that it gave.
            factors: how many values a patch becomes along h and w.

        Yields:
            index of the first image, and (images, C, factor * h, factor * w) float32.
        """
        at_once = IMAGES_AT_ONCE.get(images.device.type, IMAGES_AT_ONCE["cpu"])
        for first in range(0, len(images), at_once):
            part = slice(first, first + at_once)
            yield first, self(images[part], features[part], factors)

    def forward(self, images: Tensor, features: Tensor, factors: tuple[int, int]) -> Tensor:
        """As ``pieces``, of all images at once.

        Raises:
            InputError: the model returns something else.
        """
        size = (factors[0] * features.shape[2], factors[1] * features.shape[3])
        guide = images if self._same else images * self._scale + self._shift
        with torch.no_grad():
            finer = self.model(guide, features, output_size=size, q_chunk_size=QUERIES_AT_ONCE)
        expected = (*features.shape[:2], *size)
        if not isinstance(finer, Tensor) or tuple(finer.shape) != expected:
            found = tuple(finer.shape) if isinstance(finer, Tensor) else type(finer).__name__
            raise InputError(
                f"features.upsampler {self.name!r} must return features of shape {expected}, it "
                f"returned {found}: give a folder whose model works as AnyUp's."
            )
        return finer.float()


def load_upsampler(source: str, image_mean: RGB, image_std: RGB) -> GuidedUpsampler:
    """AnyUp with its trained weights, or what a folder holds; a folder's code is run.

    Args:
        source: "anyup" for the authors' repository, by torch.hub at a pinned commit, or a local
            folder whose ``hubconf.py`` has an entry point ``anyup()``.
        image_mean: that images are normalised with, per channel.
        image_std: likewise.

    Raises:
        InputError: it cannot be downloaded, is not there or does not load.
    """
    model = _from_hub() if source == ANYUP else _from_folder(source)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"features.upsampler {source!r}: {ENTRY_POINT}() of its hubconf.py must return a torch "
            f"module, it returned {type(model).__name__}."
        )
    upsampler = GuidedUpsampler(model, source, image_mean, image_std)
    logger.info("upsampler %s: digest %s", source, upsampler.digest)
    return upsampler


def _from_hub() -> object:
    """AnyUp at the pinned commit, from torch.hub's folder or, the first time, from GitHub."""
    try:
        return torch.hub.load(  # type: ignore[no-untyped-call]  # torch.hub has no types
            ANYUP_REPOSITORY, ENTRY_POINT, skip_validation=True, trust_repo=True, verbose=False
        )
    except (OSError, HTTPException, BadZipFile) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"features.upsampler 'anyup' cannot be downloaded from GitHub ({reason}): connect this "
            f"machine, copy {torch.hub.get_dir()} from one that has it, give a folder with AnyUp's "
            f"hubconf.py, or set features.upsampler to null."
        ) from error


def _from_folder(source: str) -> object:
    """What the entry point of a folder's ``hubconf.py`` returns."""
    folder = Path(source).expanduser()
    if not (folder / "hubconf.py").is_file():
        raise InputError(
            f"features.upsampler {source!r} must be null, 'anyup' or a folder that holds a "
            f"hubconf.py with an entry point {ENTRY_POINT}()."
        )
    try:
        return torch.hub.load(  # type: ignore[no-untyped-call]  # torch.hub has no types
            str(folder.absolute()), ENTRY_POINT, source="local"
        )
    except Exception as error:  # the folder's own code, which raises what it likes
        reason = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
        raise InputError(
            f"features.upsampler {source!r}: {ENTRY_POINT}() of its hubconf.py failed ({reason})."
        ) from error
