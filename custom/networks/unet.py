"""UNet for volumes, in three dimensions or section by section."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from monai.networks.layers.factories import Conv, Pool
from torch import Tensor, nn

from custom.errors import InputError
from custom.json_fields import flag, per_axis
from custom.networks.any_size import (
    checked_dimensions,
    from_sections,
    on_any_size,
    to_sections,
)
from custom.networks.blocks import ResidualBlock, conv_block, up_layer
from custom.networks.checkpointing import checkpointed
from custom.networks.norms import Norm

FuseLevel = Callable[[int, Tensor], Tensor]


class UNet(nn.Module):
    """UNet with one convolution block per level and skip connections by concatenation.

    Inputs of any size are padded at their far ends to a multiple of the strides by repeating the
    border, and the output is cropped back.

    With ``dimensions`` 2 every section (plane yx) is an image of its own, for convolutions, norms
    and dropout alike: the prediction of a volume is that of its sections. Kernels and strides are 1
    along z then, whatever is given there.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output (logits, no activation).
        channels: channels per level, finest first; at least two levels.
        strides: step from each level to the next, one number or three (zyx), one fewer than
            ``channels``; default 2. Anisotropic data want (1, 2, 2) until voxels are about cubic.
        kernels: size of the convolutions of each level, one odd number or three, as many as
            ``channels``; default 3. Anisotropic data want (1, 3, 3) until voxels are about cubic.
        norm: as in ``normalization``.
        residual: add a block's input to its output.
        dropout: probability with which a block's channel is set to 0 in training.
        upsampling: "transposed" or "interpolation", as in ``up_layer``.
        dimensions: 3 or 2.
        checkpointing: keep only what goes from block to block, and compute the rest again for the
            gradient: half the memory, a quarter more time, the same gradients (``checkpointed``).

    Raises:
        InputError: fewer than two levels; strides or kernels that are not as above; unknown norm or
            upsampling; ``dropout``, ``dimensions`` or a switch out of range.

    Source:
        Ronneberger et al. 2015, MICCAI; Cicek et al. 2016, MICCAI.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (16, 32, 64),
        strides: Sequence[int | Sequence[int]] | None = None,
        kernels: Sequence[int | Sequence[int]] | None = None,
        norm: Norm = "group",
        residual: bool = False,
        dropout: float = 0.0,
        upsampling: str = "transposed",
        dimensions: int = 3,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.dimensions = checked_dimensions(dimensions)
        self.checkpointing = flag(checkpointing, "checkpointing")
        if type(dropout) not in (int, float) or not 0 <= dropout < 1:
            raise InputError(f"unet_dropout must be a number from 0 to below 1, got {dropout!r}.")
        levels = _checked_channels(channels)
        self.strides = checked_strides(strides, levels - 1)
        steps = [stride[3 - dimensions :] for stride in self.strides]
        sizes = [kernel[3 - dimensions :] for kernel in checked_kernels(kernels, levels)]
        block = ResidualBlock if flag(residual, "unet_residual") else conv_block
        self.down = nn.ModuleList(
            block(a, b, size, norm, dropout)
            for (a, b), size in zip(pairwise((in_channels, *channels)), sizes, strict=True)
        )
        self.pools = nn.ModuleList(Pool[Pool.MAX, dimensions](s, s) for s in steps)
        self.up = nn.ModuleList(
            up_layer(b, a, s, upsampling)
            for (a, b), s in zip(pairwise(channels), steps, strict=True)
        )
        self.merge = nn.ModuleList(
            block(2 * a, a, size, norm, dropout)
            for a, size in zip(channels[:-1], sizes[:-1], strict=True)
        )
        self.head = Conv[Conv.CONV, dimensions](channels[0], out_channels, 1)

    def forward(self, x: Tensor, fuse_level: FuseLevel | None = None) -> Tensor:
        """Logits of a batch.

        Args:
            x: (B, in_channels, D, H, W).
            fuse_level: called with the number of every level on the way down, 0 is the finest, and
                its features (B, channels, d, h, w) of the padded input; what it returns, of the
                same shape, goes to the decoder and to the next level.

        Returns:
            (B, out_channels, D, H, W).
        """
        multiple = [math.prod(stride[axis] for stride in self.strides) for axis in range(3)]
        fuse = self._fuse_as_seen(fuse_level, x.shape[0])

        def logits(padded: Tensor) -> Tensor:
            found: Tensor = self.head(self._decode(self._encode(padded, fuse)))
            return found

        return on_any_size(logits, x, multiple, self.dimensions)

    def _fuse_as_seen(self, fuse_level: FuseLevel | None, batch: int) -> FuseLevel:
        """``fuse_level`` for features as the network has them; without, they stay as they are."""
        if fuse_level is None:
            return lambda _, features: features
        if self.dimensions == 3:
            return fuse_level
        return lambda level, x: to_sections(fuse_level(level, from_sections(x, batch)))

    def _encode(self, x: Tensor, fuse: FuseLevel) -> list[Tensor]:
        """Output of every level's first block, fused, finest first."""
        found = [fuse(0, self._run(self.down[0], x))]
        for level, (block, pool) in enumerate(zip(self.down[1:], self.pools, strict=True), 1):
            found.append(fuse(level, self._run(block, pool(found[-1]))))
        return found

    def _decode(self, levels: list[Tensor]) -> Tensor:
        """Output of the finest level's second block."""
        *skips, x = levels
        for up, merge in zip(reversed(self.up), reversed(self.merge), strict=True):
            x = self._run(merge, torch.cat([skips.pop(), up(x)], dim=1))
        return x

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpointed(block, x)
        found: Tensor = block(x)
        return found


def _checked_channels(channels: Sequence[int]) -> int:
    """Number of levels."""
    if len(channels) < 2 or any(type(c) is not int or c < 1 for c in channels):
        raise InputError(
            f"unet_channels must name at least two levels, whole numbers from 1 on, got "
            f"{list(channels)}."
        )
    return len(channels)


def checked_strides(
    strides: Sequence[int | Sequence[int]] | None, steps: int
) -> list[tuple[int, int, int]]:
    """One stride for each step from level to level, zyx; 2 everywhere where none are given.

    Raises:
        InputError: not so many, or not whole numbers from 1 on.
    """
    what = (
        f"unet_strides (one or three numbers for each of the {steps} steps between the "
        f"{steps + 1} levels of unet_channels)"
    )
    return _per_level([2] * steps if strides is None else strides, steps, what)


def checked_kernels(
    kernels: Sequence[int | Sequence[int]] | None, levels: int
) -> list[tuple[int, int, int]]:
    """One kernel for each level, zyx; 3 everywhere where none are given.

    Raises:
        InputError: not so many, or not odd numbers from 1 on.
    """
    what = (
        f"unet_kernels (one or three odd numbers for each of the {levels} levels of unet_channels)"
    )
    found = _per_level([3] * levels if kernels is None else kernels, levels, what)
    if any(size % 2 == 0 for kernel in found for size in kernel):
        raise InputError(f"{what} must be odd, got {kernels}.")
    return found


def _per_level(
    values: Sequence[int | Sequence[int]], count: int, what: str
) -> list[tuple[int, int, int]]:
    """So many whole numbers from 1 on per axis."""
    if not isinstance(values, Sequence) or len(values) != count:
        raise InputError(f"{what} must be a list of {count}, got {values!r}")
    return [(z, y, x) for z, y, x in (per_axis(value, what) for value in values)]
