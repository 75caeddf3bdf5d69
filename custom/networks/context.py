"""Fuse a coarser, larger field of view into the levels of a UNet, where it lies in space."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from monai.networks.layers.factories import Pool
from torch import Tensor, nn

from custom.errors import InputError
from custom.json_fields import flag, per_axis
from custom.networks.any_size import (
    checked_dimensions,
    from_sections,
    pad_to_multiple,
    to_sections,
)
from custom.networks.blocks import conv_block
from custom.networks.checkpointing import checkpointed
from custom.networks.norms import Norm
from custom.networks.unet import checked_kernels, checked_strides
from custom.planes import upsample_batch


def sample_context(
    values: Tensor, placement: Tensor, stride: Sequence[int], shape: Sequence[int]
) -> Tensor:
    """Values of a context at the centres of the voxels of a level of the crop.

    Voxel ``i`` of the level covers the voxels ``[i * stride, (i + 1) * stride)`` of the crop, entry
    ``j`` of the context ``[start + j * step, start + (j + 1) * step)``. Interpolation is linear
    between the centres; beyond the outermost ones their values go on.

    Args:
        values: (B, C, d, h, w).
        placement: (B, 2, 3) start and step of the entries, voxels of the crop.
        stride: of the level, voxels of the crop, zyx.
        shape: of the level, (D, H, W).

    Returns:
        (B, C, D, H, W) in the dtype of ``values``.
    """
    return upsample_batch(values, placement / placement.new_tensor(list(stride)), shape, "xy")


class AttentionGate(nn.Module):
    """Adds what the context says, as far as it matters at each voxel and channel.

    ::

        features + sigmoid(conv1(relu(conv1([features, context])))) * conv1(context)

    Args:
        channels: of both inputs; the hidden layer has a quarter of them.

    Source:
        Additive attention gates: Oktay et al. 2018, MIDL. There, as in dinov3_playground, the gate
        scales what is at hand; here it lets in what only the context has seen.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 4)
        self.value = nn.Conv3d(channels, channels, 1)
        self.gate = nn.Sequential(
            nn.Conv3d(2 * channels, hidden, 1),
            nn.ReLU(inplace=True),
            nn.Conv3d(hidden, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, features: Tensor, context: Tensor) -> Tensor:
        """(B, C, D, H, W) of two of that shape."""
        gate: Tensor = self.gate(torch.cat([features, context], dim=1))
        added: Tensor = gate * self.value(context)
        return features + added


@dataclass(frozen=True)
class LevelFusion:
    """What a UNet calls at every level, with that level's features.

    Args:
        context: (B, C, d, h, w) of every level, finest first.
        placements: (B, 2, 3) of each, start and step in voxels of the crop.
        strides: of the levels, voxels of the crop, zyx.
        gates: of the levels.
    """

    context: Sequence[Tensor]
    placements: Sequence[Tensor]
    strides: Sequence[Sequence[int]]
    gates: nn.ModuleList

    def __call__(self, level: int, features: Tensor) -> Tensor:
        """Features of a level, fused with the context at the same places.

        Args:
            level: 0 is the finest.
            features: (B, C, D, H, W).

        Raises:
            InputError: the network's level has other channels than the context's.
        """
        context, stride = self.context[level], self.strides[level]
        if features.shape[1] != context.shape[1]:
            raise InputError(
                f"level {level} of the network has {features.shape[1]} channels, of its context "
                f"{context.shape[1]}: give both unet_channels."
            )
        found = sample_context(context, self.placements[level], stride, features.shape[2:])
        fused: Tensor = self.gates[level](features, found)
        return fused


class ContextFusion(nn.Module):
    """An encoder for the context, as deep as the UNet's, and a gate for every level.

    Level for level the context has ``factor`` times larger voxels than the UNet; between levels it
    is averaged over blocks of the strides, counted from its corner, so its places stay exact.
    Blocks are two convolutions, whatever those of the UNet are.

    Args:
        in_channels: channels of the context; those of the UNet's input.
        channels: of the UNet, per level.
        strides: of the UNet.
        kernels: of the UNet.
        norm: of the UNet.
        dimensions: of the UNet.
        checkpointing: of the UNet.
        factor: the config's ``context_factor``, one or three whole numbers.

    Raises:
        InputError: settings that no UNet has; a factor below 1, or with two dimensions not 1 along
            z.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        factor: int | Sequence[int],
        strides: Sequence[int | Sequence[int]] | None = None,
        kernels: Sequence[int | Sequence[int]] | None = None,
        norm: Norm = "group",
        dimensions: int = 3,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.dimensions = checked_dimensions(dimensions)
        factors = per_axis(factor, "context_factor")
        if dimensions == 2 and factors[0] != 1:
            raise InputError(
                f"with dimensions 2 the network sees one section, so context_factor must be 1 "
                f"along z: set it to [1, {factors[1]}, {factors[2]}]."
            )
        self.in_channels = in_channels
        self.checkpointing = flag(checkpointing, "checkpointing")
        self.steps = checked_strides(strides, len(channels) - 1)
        sizes = [k[3 - dimensions :] for k in checked_kernels(kernels, len(channels))]
        self.blocks = nn.ModuleList(
            conv_block(a, b, size, norm)
            for (a, b), size in zip(pairwise((in_channels, *channels)), sizes, strict=True)
        )
        steps = [step[3 - dimensions :] for step in self.steps]
        self.pools = nn.ModuleList(Pool[Pool.AVG, dimensions](step, step) for step in steps)
        self.gates = nn.ModuleList(AttentionGate(c) for c in channels)

    @property
    def strides(self) -> list[tuple[int, int, int]]:
        """Strides of the levels, voxels of the crop, zyx."""
        found = [(1, 1, 1)]
        for z, y, x in self.steps:
            last = found[-1]
            found.append((1 if self.dimensions == 2 else z * last[0], y * last[1], x * last[2]))
        return found

    def forward(self, context: Tensor, placement: Tensor) -> LevelFusion:
        """What fuses a batch's context into the levels of a UNet.

        Args:
            context: (B, in_channels, d, h, w).
            placement: (B, 2, 3) start and step of its voxels in voxels of the crop.
        """
        sections = self.dimensions == 2
        x = to_sections(context) if sections else context
        x = pad_to_multiple(x, self.strides[-1][3 - self.dimensions :])
        levels, placements = [], []
        for level, (block, stride) in enumerate(zip(self.blocks, self.strides, strict=True)):
            x = self._run(block, self.pools[level - 1](x) if level else x)
            levels.append(from_sections(x, context.shape[0]) if sections else x)
            placements.append(placement * placement.new_tensor([(1, 1, 1), stride]))
        return LevelFusion(levels, placements, self.strides, self.gates)

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpointed(block, x)
        found: Tensor = block(x)
        return found
