"""A small stand-in for AnyUp, as a folder that torch.hub loads."""

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

STRENGTH = 0.25

HUBCONF = f"""
import torch
import torch.nn.functional as F
from torch import nn

dependencies = ["torch"]


class Guided(nn.Module):
    '''Nearest features, stronger where the image is bright; refuses what AnyUp was not made for.'''

    def __init__(self):
        super().__init__()
        self.strength = nn.Parameter(torch.tensor({STRENGTH}))

    def forward(self, image, features, output_size=None, q_chunk_size=None):
        mean = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
        std = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
        unit = image * std + mean
        assert image.ndim == features.ndim == 4 and image.dtype == features.dtype == torch.float32
        assert (unit - unit.mean(1, keepdim=True)).abs().max() < 1e-5, "not grey: normalised twice?"
        assert unit.min() > -1e-5 and unit.max() < 1 + 1e-5
        assert unit.std() > 0.05, "the guide has no contrast"
        assert isinstance(q_chunk_size, int) and not torch.is_grad_enabled()
        assert not self.training
        bright = F.adaptive_avg_pool2d(unit[:, :1], output_size)
        return F.interpolate(features, output_size, mode="nearest") * (1 + self.strength * bright)


def anyup():
    return Guided()
"""


def write_hub(folder: Path, hubconf: str = HUBCONF) -> str:
    """The folder, with a hubconf.py."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hubconf.py").write_text(hubconf)
    return str(folder)


def guided(unit: Tensor, tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """What the stand-in makes of grey images (B, 1, H, W) in [0, 1] and tokens (B, C, h, w)."""
    rows, columns = (n // m for n, m in zip(size, tokens.shape[2:], strict=True))
    near = tokens.repeat_interleave(rows, 2).repeat_interleave(columns, 3)
    return near * (1 + STRENGTH * F.adaptive_avg_pool2d(unit, size))
