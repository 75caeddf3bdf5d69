"""Project the tokens of three planes, fuse them, and join them with raw."""

import inspect
import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from custom.errors import InputError
from custom.json_fields import flag
from custom.networks.context import ContextFusion, LevelFusion
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
            tokens: by plane, (B, C, d, h, w), zyx, see ``PlaneGrid``; planes that are not given do
                not count in the mean.
            placements: by plane, (B, 2, 3) start and step in voxels.
            shape: (D, H, W) of the crop.

        Returns:
            (B, out_channels, D, H, W).

        Raises:
            ValueError: no tokens.
        """
        if not tokens:
            raise ValueError("no tokens to fuse")
        shares = self._shares(list(tokens))
        total = None
        for plane, values in tokens.items():
            projected = self.project(values.float().movedim(1, -1)).movedim(-1, 1)
            finer, placement = self.refine(projected, placements[plane], plane)
            counted = finer * shares[plane].to(finer.dtype)
            dense = upsample_batch(counted, placement, shape, plane)
            total = dense if total is None else total + dense
        assert total is not None
        return total

    def _shares(self, planes: Sequence[str]) -> dict[str, Tensor]:
        """What each plane counts, (channels or 1, 1, 1, 1), one in sum."""
        share = self.project.weight.new_full((1, 1, 1, 1), 1 / len(planes))
        return dict.fromkeys(planes, share)

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


class WeightedFusion(TokenFusion):
    """As ``TokenFusion``, but every channel learns how much each plane counts.

    Weights are a softmax over the planes that are given, one for each channel of the result; they
    begin equal, so the fusion begins as the mean.

    Args:
        in_channels: as in ``TokenFusion``.
        out_channels: as in ``TokenFusion``.
        upsampling_steps: as in ``TokenFusion``.
        planes: that tokens may be given of.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        upsampling_steps: int = 0,
        planes: Sequence[str] = PLANES,
    ) -> None:
        super().__init__(in_channels, out_channels, upsampling_steps)
        self.logits = nn.ParameterDict({p: nn.Parameter(torch.zeros(out_channels)) for p in planes})

    def _shares(self, planes: Sequence[str]) -> dict[str, Tensor]:
        _refuse_planes(planes, list(self.logits))
        shares = torch.stack([self.logits[plane] for plane in planes]).softmax(0)
        return {p: share[:, None, None, None] for p, share in zip(planes, shares, strict=True)}

    def project_dense(self, features: Tensor) -> Tensor:
        """Refused: dense features are a mean already.

        Raises:
            InputError: always.
        """
        raise _no_dense("weighted")


class ConcatFusion(nn.Module):
    """Every plane has its own projection; what they say together decides, voxel by voxel.

    Tokens are projected on patches and upsampled; the results of all planes, one after the other,
    go through GELU and a 1 x 1 x 1 convolution. Without the GELU all of it would be linear: a mean
    with a projection for each plane.

    Args:
        in_channels: channels C of a token.
        out_channels: channels of the result, and of each plane's projection.
        upsampling_steps: learned doublings of the in-plane resolution; each plane has its own.
        planes: that tokens are given of, all of them always.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        upsampling_steps: int = 0,
        planes: Sequence[str] = PLANES,
    ) -> None:
        super().__init__()
        self.project = nn.ModuleDict({p: nn.Linear(in_channels, out_channels) for p in planes})
        self.refine = nn.ModuleDict(
            {p: LearnedUpsampling(out_channels, upsampling_steps) for p in planes}
        )
        self.join = nn.Conv3d(len(planes) * out_channels, out_channels, 1)

    def forward(
        self, tokens: dict[str, Tensor], placements: dict[str, Tensor], shape: Sequence[int]
    ) -> Tensor:
        """Fuse plane grids to voxels; arguments and result as in ``TokenFusion``.

        Raises:
            InputError: tokens of other planes than the fusion was made for.
        """
        _refuse_planes(list(tokens), list(self.project))
        if missing := [plane for plane in self.project if plane not in tokens]:
            raise InputError(
                f"fusion 'concat' needs tokens of every plane in features.planes, but the batch "
                f"has none of {missing[0]}: use fusion 'mean' or 'weighted' for planes that may be "
                f"missing."
            )
        dense = []
        for plane, project in self.project.items():
            projected = project(tokens[plane].float().movedim(1, -1)).movedim(-1, 1)
            finer, placement = self.refine[plane](projected, placements[plane], plane)
            dense.append(upsample_batch(finer, placement, shape, plane))
        fused: Tensor = self.join(F.gelu(torch.cat(dense, dim=1)))
        return fused

    def project_dense(self, features: Tensor) -> Tensor:
        """Refused: dense features do not say what each plane has seen.

        Raises:
            InputError: always.
        """
        raise _no_dense("concat")


def _refuse_planes(given: Sequence[str], known: Sequence[str]) -> None:
    """Tokens of a plane that there are no weights for."""
    for plane in given:
        if plane not in known:
            raise InputError(
                f"the batch has tokens of plane {plane}, which the network was not made for: name "
                f"it in features.planes."
            )


def _no_dense(fusion: str) -> InputError:
    return InputError(
        f"fusion '{fusion}' takes the tokens of each plane, but features of the dense layout are "
        f"averaged over planes already: set fusion to 'mean', or features.layout to 'tokens'."
    )


FUSIONS = ("mean", "weighted", "concat")


def token_fusion(
    name: str, in_channels: int, out_channels: int, upsampling_steps: int, planes: Sequence[str]
) -> TokenFusion | ConcatFusion:
    """A fusion by name, arguments as in ``ConcatFusion``.

    Raises:
        InputError: no such fusion.
    """
    if name == "mean":
        return TokenFusion(in_channels, out_channels, upsampling_steps)
    if name == "weighted":
        return WeightedFusion(in_channels, out_channels, upsampling_steps, planes)
    if name == "concat":
        return ConcatFusion(in_channels, out_channels, upsampling_steps, planes)
    raise InputError(f"fusion must be one of {', '.join(FUSIONS)}, got {name!r}.")


class TokenUNet(nn.Module):
    """A network on raw and fused tokens: one tensor out, affinities first, then LSDs.

    Args:
        network: takes (B, C, D, H, W), where C is 1 for raw plus ``fused_channels`` for tokens,
            returns logits of the same size.
        token_channels: channels of a token; 0 for a raw-only network.
        fused_channels: channels that tokens are projected to; a raw-only network has none.
        use_raw: join the raw channel; False for tokens alone.
        upsampling_steps: learned doublings of the tokens' in-plane resolution after projection; 3
            make one entry per voxel of a patch of 8 voxels. 0 upsamples linearly.
        fusion: of the planes: "mean" (``TokenFusion``), "weighted" (``WeightedFusion``) or "concat"
            (``ConcatFusion``).
        planes: that tokens are given of.
        context: fuses a coarser, larger field of view into the levels of ``network``, which then
            has to take it as a second argument, ``fuse_level``; None without.

    Raises:
        InputError: neither raw nor tokens; ``upsampling_steps`` out of range; no such ``fusion``; a
            raw-only network is to upsample or fuse tokens in a way of its own; a context for a
            network that cannot take one, or with other strides.
    """

    def __init__(
        self,
        network: nn.Module,
        token_channels: int,
        fused_channels: int = 16,
        use_raw: bool = True,
        upsampling_steps: int = 0,
        fusion: str = "mean",
        planes: Sequence[str] = PLANES,
        context: ContextFusion | None = None,
    ) -> None:
        super().__init__()
        if context is not None:
            _refuse_context(network, context)
        if not (flag(use_raw, "use_raw") or token_channels):
            raise InputError(
                "a network needs raw, tokens or both: use_raw is false and token_channels is 0."
            )
        if not token_channels and (upsampling_steps or fusion != "mean"):
            raise InputError(
                f"a network without tokens (token_channels is 0) has none to upsample or fuse, but "
                f"learned_upsampling_steps is {upsampling_steps} and fusion {fusion!r}: set them "
                f"to 0 and 'mean', or token_channels to the features' channels."
            )
        self.network = network
        self.fusion: TokenFusion | ConcatFusion | None = None
        if token_channels:
            self.fusion = token_fusion(
                fusion, token_channels, fused_channels, upsampling_steps, planes
            )
        self.fused_channels = fused_channels
        self.use_raw = use_raw
        self.context = context

    @property
    def inner_channels(self) -> int:
        """Channels of the inner network's input."""
        return int(self.use_raw) + (self.fused_channels if self.fusion is not None else 0)

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
        context_image: Tensor | None = None,
        context_placement: Tensor | None = None,
        context_tokens_xy: Tensor | None = None,
        context_placement_xy: Tensor | None = None,
        context_tokens_xz: Tensor | None = None,
        context_placement_xz: Tensor | None = None,
        context_tokens_yz: Tensor | None = None,
        context_placement_yz: Tensor | None = None,
        context_features: Tensor | None = None,
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
            context: ``context_image`` (B, 1, d, h, w) and ``context_placement`` (B, 2, 3), start
                and step of its voxels in voxels of the crop; its tokens or features with the prefix
                ``context_``. In eval mode only, they may be missing as tokens may.

        Returns:
            (B, K + L, D, H, W) logits.

        Raises:
            InputError: tokens or context are missing in training, or there is a context that the
                network does not take.
        """
        tokens = _given(tokens_xy, tokens_xz, tokens_yz)
        placements = _given(placement_xy, placement_xz, placement_yz)
        x = self._inputs(image, tokens, placements, features)
        tokens = _given(context_tokens_xy, context_tokens_xz, context_tokens_yz)
        placements = _given(context_placement_xy, context_placement_xz, context_placement_yz)
        of_context = context_image, context_placement, tokens, placements, context_features
        fused = self._context(image, *of_context)
        logits: Tensor = self.network(x) if fused is None else self.network(x, fused)
        return logits

    def _inputs(
        self,
        image: Tensor,
        tokens: dict[str, Tensor],
        placements: dict[str, Tensor],
        features: Tensor | None,
    ) -> Tensor:
        """Raw and fused tokens, or features, of a box as one tensor."""
        inputs = [image] if self.use_raw else []
        if self.fusion is not None and features is not None:
            inputs.append(self.fusion.project_dense(features))
        elif self.fusion is not None:
            inputs.append(self._fuse(tokens, placements, image))
        return torch.cat(inputs, dim=1)

    def _context(
        self,
        image: Tensor,
        context_image: Tensor | None,
        placement: Tensor | None,
        tokens: dict[str, Tensor],
        placements: dict[str, Tensor],
        features: Tensor | None,
    ) -> LevelFusion | None:
        """What fuses the context into the network's levels; None for a network without."""
        if self.context is None:
            if context_image is not None:
                raise InputError(
                    "the data have a context, but the network takes none: set context_factor of "
                    "both alike."
                )
            return None
        if context_image is not None:
            x = self._inputs(context_image, tokens, placements, features)
        elif self.training:
            raise InputError(
                "the network is to be trained with a context, but the batch has none: set "
                "context_factor of the training data as that of the network."
            )
        else:
            logger.warning("no context given: the network sees zeros in its place")
            x = image.new_zeros(image.shape[0], self.context.in_channels, *image.shape[2:])
            placement = image.new_tensor([[0.0] * 3, [1.0] * 3]).expand(image.shape[0], 2, 3)
        fused: LevelFusion = self.context(x, placement)
        return fused

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


def _given(*values: Tensor | None) -> dict[str, Tensor]:
    """Values of xy, xz and yz by plane, of the planes that have one."""
    planes = zip(PLANES, values, strict=True)
    return {plane: value for plane, value in planes if value is not None}


def _refuse_context(network: nn.Module, context: ContextFusion) -> None:
    """A network that cannot take a context, or whose levels are others."""
    if "fuse_level" not in inspect.signature(network.forward).parameters:
        raise InputError(
            f"{type(network).__name__} cannot take a context: set context_factor to null, or take "
            f"custom.networks.unet.UNet."
        )
    strides = getattr(network, "strides", context.steps)
    if list(strides) != context.steps:
        raise InputError(
            f"the network has strides {[list(s) for s in strides]}, its context "
            f"{[list(s) for s in context.steps]}: give both unet_strides."
        )
