"""Project the tokens of three planes, fuse them, and join them with raw."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from custom.errors import InputError
from custom.networks.upsampling import LearnedUpsampling
from custom.planes import PLANES, upsample_batch

logger = logging.getLogger(__name__)


class TokenFusion(nn.Module):
    """Mean over planes of projected, bilinearly upsampled tokens.

    Projection (per token, linear) comes first, on patches: upsampling and averaging are linear too,
    so the result is that of projecting the dense average, whose C x D x H x W values never exist.
    Learned upsampling, which is not linear, comes between the two.

    Args:
        in_channels: channels C of a token.
        out_channels: channels of the result.
        upsampling_steps: learned doublings of the in-plane resolution (``LearnedUpsampling``).

    Source:
        The dense average is that of dinov3_playground; the order of the operations is ours.
    """

    def __init__(self, in_channels: int, out_channels: int, upsampling_steps: int = 0) -> None:
        super().__init__()
        self.project = nn.Linear(in_channels, out_channels)
        self.refine = LearnedUpsampling(out_channels, upsampling_steps)

    def forward(
        self, tokens: dict[str, Tensor], placements: dict[str, Tensor], shape: Sequence[int]
    ) -> Tensor:
        """Fuse plane grids to voxels.

        Args:
            tokens: by plane, (B, C, d, h, w), zyx, see ``PlaneGrid``.
            placements: by plane, (B, 2, 3) start and step in voxels.
            shape: (D, H, W) of the crop.

        Returns:
            (B, out_channels, D, H, W).

        Raises:
            ValueError: no tokens.
        """
        total: Tensor | None = None
        for plane, values in tokens.items():
            projected = self.project(values.float().movedim(1, -1)).movedim(-1, 1)
            finer, placement = self.refine(projected, placements[plane], plane)
            dense = upsample_batch(finer, placement, shape, plane)
            total = dense if total is None else total + dense
        if total is None:
            raise ValueError("no tokens to fuse")
        return total / len(tokens)

    def project_dense(self, features: Tensor) -> Tensor:
        """The same projection of features that are upsampled and averaged already.

        Args:
            features: (B, C, D, H, W).

        Returns:
            (B, out_channels, D, H, W); for linearly upsampled tokens what ``forward`` gives.

        Raises:
            InputError: the network is to upsample features, but these are upsampled already.
        """
        if self.refine.steps:
            raise InputError(
                "the network is to learn upsampling, but features of the dense layout are already "
                "upsampled: set learned_upsampling_steps to 0, or features.layout to 'tokens'."
            )
        kernel = self.project.weight[:, :, None, None, None]
        return F.conv3d(features.float(), kernel, self.project.bias)


class TokenUNet(nn.Module):
    """A network on raw and fused tokens: one tensor out, affinities first, then LSDs.

    Args:
        network: takes (B, C, D, H, W), where C is 1 for raw plus ``fused_channels`` for tokens,
            returns logits of the same size.
        token_channels: channels of a token; 0 for a raw-only network.
        fused_channels: channels that tokens are projected to; unused if ``token_channels`` is 0.
        use_raw: join the raw channel; False for tokens alone.
        upsampling_steps: learned doublings of the tokens' in-plane resolution after projection; 3
            make one entry per voxel of a patch of 8 voxels. 0 upsamples linearly.

    Raises:
        InputError: neither raw nor tokens; ``upsampling_steps`` out of range.
    """

    def __init__(
        self,
        network: nn.Module,
        token_channels: int,
        fused_channels: int = 16,
        use_raw: bool = True,
        upsampling_steps: int = 0,
    ) -> None:
        super().__init__()
        if not (use_raw or token_channels):
            raise InputError(
                "a network needs raw, tokens or both: use_raw is false and token_channels is 0."
            )
        self.network = network
        self.fusion: TokenFusion | None = None
        if token_channels:
            self.fusion = TokenFusion(token_channels, fused_channels, upsampling_steps)
        self.fused_channels = fused_channels
        self.use_raw = use_raw

    def forward(
        self,
        image: Tensor,
        tokens_xy: Tensor | None = None,
        placement_xy: Tensor | None = None,
        tokens_xz: Tensor | None = None,
        placement_xz: Tensor | None = None,
        tokens_yz: Tensor | None = None,
        placement_yz: Tensor | None = None,
        features: Tensor | None = None,
    ) -> Tensor:
        """Logits of a batch of crops.

        Args:
            image: (B, 1, D, H, W) raw in [-1, 1].
            tokens_xy: (B, C, D, h, w); likewise ``tokens_xz`` (B, C, d, H, w), ``tokens_yz``
                (B, C, d, h, W). Planes that are not given do not count in the mean. A network with
                tokens may be called without any in eval mode only (tools that check shapes call
                it so): it then sees zeros in their place.
            placement_xy: (B, 2, 3) start and step of ``tokens_xy`` in voxels; likewise the others.
            features: (B, C, D, H, W) of the dense layout, instead of tokens.

        Returns:
            (B, K + L, D, H, W) logits.

        Raises:
            InputError: tokens are missing in training.
        """
        values = dict(zip(PLANES, (tokens_xy, tokens_xz, tokens_yz), strict=True))
        places = dict(zip(PLANES, (placement_xy, placement_xz, placement_yz), strict=True))
        inputs = [image] if self.use_raw else []
        if self.fusion is not None and features is not None:
            inputs.append(self.fusion.project_dense(features))
        elif self.fusion is not None:
            tokens = {p: v for p, v in values.items() if v is not None}
            placements = {p: v for p, v in places.items() if v is not None}
            inputs.append(self._fuse(tokens, placements, image))
        logits: Tensor = self.network(torch.cat(inputs, dim=1))
        return logits

    def _fuse(
        self, tokens: dict[str, Tensor], placements: dict[str, Tensor], image: Tensor
    ) -> Tensor:
        assert self.fusion is not None
        if tokens:
            fused: Tensor = self.fusion(tokens, placements, image.shape[2:])
            return fused
        if self.training:
            raise InputError(
                "the network is to be trained with tokens, but the batch has none; set use_tokens "
                "of the training data to true, or token_channels to 0."
            )
        logger.warning("no tokens given: the network sees zeros in their place")
        return image.new_zeros(image.shape[0], self.fused_channels, *image.shape[2:])
