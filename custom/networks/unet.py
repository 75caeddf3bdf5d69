"""3D UNet."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from custom.errors import InputError

Stride = tuple[int, int, int]

NORMS = ("batch", "group", "instance")


def normalization(name: str, channels: int) -> nn.Module:
    """Normalisation layer of that name for (B, channels, D, H, W)."""
    if name == "batch":
        return nn.BatchNorm3d(channels)
    if name == "instance":
        return nn.InstanceNorm3d(channels, affine=True)
    if name == "group":
        groups = next(g for g in (8, 4, 2, 1) if channels % g == 0)
        return nn.GroupNorm(groups, channels)
    raise InputError(f"norm must be one of {', '.join(NORMS)}, got {name!r}.")


def conv_block(in_channels: int, out_channels: int, norm: str) -> nn.Sequential:
    """Twice 3x3x3 convolution, normalisation, ReLU."""
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers += [
            nn.Conv3d(channels, out_channels, 3, padding=1, bias=False),
            normalization(norm, out_channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """UNet with one convolution block per level and skip connections by concatenation.

    Inputs of any size are padded at their far ends to a multiple of the strides by repeating the
    border, and the output is cropped back.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output (logits, no activation).
        channels: channels per level, finest first; at least two levels.
        strides: step from each level to the next, zyx, one fewer than ``channels``; default 2
            everywhere. Anisotropic data want (1, 2, 2) until voxels are about cubic.
        norm: "group", "instance" or "batch".

    Raises:
        InputError: fewer than two levels, strides that are not as above, unknown norm.

    Source:
        Ronneberger et al. 2015, MICCAI; Cicek et al. 2016, MICCAI.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (16, 32, 64),
        strides: Sequence[Sequence[int]] | None = None,
        norm: str = "group",
    ) -> None:
        super().__init__()
        if len(channels) < 2:
            raise InputError(f"channels must name at least two levels, got {list(channels)}.")
        self.strides = _checked_strides(strides, len(channels) - 1)
        self.down = nn.ModuleList(
            conv_block(a, b, norm) for a, b in pairwise((in_channels, *channels))
        )
        self.pools = nn.ModuleList(nn.MaxPool3d(s, s) for s in self.strides)
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(b, a, s, s)
            for (a, b), s in zip(pairwise(channels), self.strides, strict=True)
        )
        self.merge = nn.ModuleList(conv_block(2 * a, a, norm) for a in channels[:-1])
        self.head = nn.Conv3d(channels[0], out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, out_channels, D, H, W) of ``x`` (B, in_channels, D, H, W)."""
        shape = x.shape[2:]
        x = self._pad(x)
        skips = []
        for block, pool in zip(self.down[:-1], self.pools, strict=True):
            x = block(x)
            skips.append(x)
            x = pool(x)
        x = self.down[-1](x)
        for up, merge in zip(reversed(self.up), reversed(self.merge), strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], dim=1))
        logits: Tensor = self.head(x)
        return logits[..., : shape[0], : shape[1], : shape[2]]

    def _pad(self, x: Tensor) -> Tensor:
        """Repeat the far border until every level divides evenly."""
        pad: list[int] = []
        for axis in range(3):
            factor = math.prod(stride[axis] for stride in self.strides)
            pad = [0, -x.shape[2 + axis] % factor, *pad]
        return F.pad(x, pad, mode="replicate") if any(pad) else x


def _checked_strides(strides: Sequence[Sequence[int]] | None, steps: int) -> list[Stride]:
    """One stride for each step from level to level."""
    if strides is None:
        return [(2, 2, 2)] * steps
    if len(strides) != steps or any(len(s) != 3 or min(s) < 1 for s in strides):
        raise InputError(
            f"strides must be {steps} (one fewer than channels) of three numbers from 1 on, got "
            f"{[list(s) for s in strides]}."
        )
    return [(z, y, x) for z, y, x in strides]
