"""Blocks of a UNet: two convolutions, and what brings a coarse level to a fine one."""

from collections.abc import Sequence

from monai.networks.blocks import UpSample
from monai.networks.layers.factories import Conv, Dropout
from torch import Tensor, nn
from torch.nn import functional as F

from custom.errors import InputError
from custom.networks.norms import Norm, normalization

UPSAMPLINGS = ("transposed", "interpolation")


def conv_block(
    in_channels: int, out_channels: int, kernel: Sequence[int], norm: Norm, dropout: float = 0.0
) -> nn.Sequential:
    """Twice convolution, normalisation, ReLU; then dropout of whole channels.

    MONAI's ``Convolution`` takes the norms of its own factory alone, which has no Batch
    Renormalisation.

    Args:
        in_channels: of the input.
        out_channels: of the output, which has the size of the input.
        kernel: odd sizes, as many as dimensions.
        norm: as in ``normalization``.
        dropout: probability.
    """
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers += [*_conv_and_norm(channels, out_channels, kernel, norm), nn.ReLU(inplace=True)]
    if dropout:
        layers.append(Dropout[Dropout.DROPOUT, len(kernel)](dropout))
    return nn.Sequential(*layers)


class ResidualBlock(nn.Module):
    """As ``conv_block``, with the input added before the last ReLU.

    Where the number of channels changes, a convolution of size 1 brings the input there.

    Source:
        He et al. 2016, CVPR.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Sequence[int],
        norm: Norm,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv_and_norm(in_channels, out_channels, kernel, norm),
            nn.ReLU(inplace=True),
            *_conv_and_norm(out_channels, out_channels, kernel, norm),
        )
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            conv = Conv[Conv.CONV, len(kernel)]
            self.shortcut = conv(in_channels, out_channels, 1, bias=False)
        self.dropout: nn.Module = nn.Identity()
        if dropout:
            self.dropout = Dropout[Dropout.DROPOUT, len(kernel)](dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, out_channels, ...) of (B, in_channels, ...), of the same size."""
        found: Tensor = self.dropout(F.relu(self.body(x) + self.shortcut(x)))
        return found


def _conv_and_norm(
    in_channels: int, out_channels: int, kernel: Sequence[int], norm: Norm
) -> tuple[nn.Module, nn.Module]:
    conv = Conv[Conv.CONV, len(kernel)]
    padding = tuple(size // 2 for size in kernel)
    return (
        conv(in_channels, out_channels, tuple(kernel), padding=padding, bias=False),
        normalization(norm, out_channels, len(kernel)),
    )


def up_layer(
    in_channels: int, out_channels: int, stride: Sequence[int], upsampling: str
) -> nn.Module:
    """Enlarge by ``stride`` and change the number of channels.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        stride: factor per axis.
        upsampling: "transposed": a transposed convolution that gives every coarse voxel its own
            fine ones; "interpolation": a convolution of size 1, then linear interpolation.

    Raises:
        InputError: another ``upsampling``.
    """
    if upsampling == "transposed":
        conv = Conv[Conv.CONVTRANS, len(stride)]
        layer: nn.Module = conv(in_channels, out_channels, tuple(stride), tuple(stride))
        return layer
    if upsampling == "interpolation":
        return UpSample(
            len(stride),
            in_channels,
            out_channels,
            scale_factor=tuple(float(s) for s in stride),
            mode="nontrainable",
            align_corners=False,
        )
    raise InputError(
        f"unet_upsampling must be one of {', '.join(UPSAMPLINGS)}, got {upsampling!r}."
    )
