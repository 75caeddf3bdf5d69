"""Test-time augmentation: the mean prediction over the mirrorings of a window."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from custom.channels import LSD_CHANNELS, LSD_CHANNELS_3D
from custom.context import CONTEXT, context_in, mirrored, named
from custom.targets.affinities import paired_slices

SPATIAL_AXES = (0, 1, 2)
"""Axes z, y, x."""

Predict = Callable[[Tensor, dict[str, Tensor]], Tensor]


class Mirroring:
    """Mean of what a network predicts for a window and its mirror images, mirrored back.

    An affinity joins two voxels. In a mirror image it is found at the other one of the two, so the
    prediction is moved by its offset; where that voxel lies outside the window, or the mirrored
    offset is another one, the image does not count.

    Args:
        offsets: of the K affinities that come first in a prediction, voxels, zyx.
        num_lsds: LSD channels that follow, 10 or 6 (2D); further channels, or others than these,
            are classes or the like, which a mirror image shows as they are.
        axes: that are mirrored, 0 to 2 for z, y, x; eight mirrorings of all three, four of two.

    Source:
        Mirroring of nnU-Net (Isensee et al. 2021, Nature Methods 18); for affinities, of the
        long-range ones of Lee et al. 2017, arXiv:1706.00120.
    """

    def __init__(
        self,
        offsets: Sequence[Sequence[int]],
        num_lsds: int = LSD_CHANNELS_3D,
        axes: Sequence[int] = SPATIAL_AXES,
    ) -> None:
        self.offsets = [tuple(offset) for offset in offsets]
        self.num_lsds = num_lsds
        self.mirrorings = [m for n in range(1, len(axes) + 1) for m in combinations(axes, n)]

    def __call__(self, predict: Predict, windows: Tensor, tokens: dict[str, Tensor]) -> Tensor:
        """Mean prediction.

        Args:
            predict: probabilities (B, C, D, H, W) of windows and tokens.
            windows: (B, 1, D, H, W).
            tokens: by the network's argument names.

        Returns:
            (B, C, D, H, W).
        """
        total = predict(windows, tokens).clone()
        count = torch.ones_like(total)
        for axes in self.mirrorings:
            dims = [2 + axis for axis in axes]
            mirrored = mirror_tokens(tokens, axes, windows.shape[2:])
            self._add(total, count, predict(windows.flip(dims), mirrored).flip(dims), axes)
        return total / count

    def _add(self, total: Tensor, count: Tensor, values: Tensor, axes: Sequence[int]) -> None:
        """Add one mirror image's prediction, and count where it says something."""
        for k, offset in enumerate(self.offsets):
            here: tuple[slice, ...] = (slice(None),) * 4
            there = here
            if any(offset[axis] for axis in axes):
                if any(offset[axis] for axis in range(3) if axis not in axes):
                    continue
                here, there = paired_slices(values[:, k].shape, (0, *offset))
            total[:, k][here] += values[:, k][there]
            count[:, k][here] += 1
        first = len(self.offsets)
        others = values[:, first:]
        is_lsds = others.shape[1] == self.num_lsds
        total[:, first:] += _mirrored_lsds(others, axes) if is_lsds else others
        count[:, first:] += 1


def mirror_tokens(
    tokens: Mapping[str, Tensor], axes: Sequence[int], shape: Sequence[int]
) -> dict[str, Tensor]:
    """Token grids and placements of a batch of windows of ``shape``, mirrored along ``axes``.

    Dense features are mirrored, too, and so is a context, with its placement.
    """
    result = {name: value for name, value in tokens.items() if not name.startswith(CONTEXT)}
    if "features" in tokens:
        result["features"] = tokens["features"].flip([2 + axis for axis in axes])
    for name in (name for name in tokens if name.startswith("tokens_")):
        values, place = tokens[name], name.replace("tokens", "placement")
        result[name] = values.flip([2 + axis for axis in axes])
        result[place] = mirrored(tokens[place], values.shape[2:], shape, axes)
    if context := context_in(tokens):
        result |= named(_mirrored_context(context, axes, shape))
    return result


def _mirrored_context(
    context: Mapping[str, Tensor], axes: Sequence[int], shape: Sequence[int]
) -> dict[str, Tensor]:
    """Parts of the contexts of a batch of windows of ``shape``."""
    image = context["image"]
    result = mirror_tokens(context, axes, image.shape[2:])
    result["image"] = image.flip([2 + axis for axis in axes])
    result["placement"] = mirrored(context["placement"], image.shape[2:], shape, axes)
    return result


def _mirrored_lsds(lsds: Tensor, axes: Sequence[int]) -> Tensor:
    """LSDs of a mirror image as those of the image: offsets and correlations change sign.

    They are mean offsets along n axes, n variances, the correlations of two axes each, and a mass.
    """
    n = next((n for n, channels in LSD_CHANNELS.items() if channels == lsds.shape[1]), 0)
    own = [axis - (len(SPATIAL_AXES) - n) for axis in axes]  # in 2D, the LSDs' first axis is y
    pairs = combinations(range(n), 2)
    turned = [axis for axis in range(n) if axis in own]
    turned += [2 * n + c for c, (i, j) in enumerate(pairs) if (i in own) != (j in own)]
    lsds = lsds.clone()
    lsds[:, turned] = 1 - lsds[:, turned]
    return lsds
