"""Test-time augmentation: the mean prediction over the eight mirrorings of a window."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from custom.channels import LSD_CHANNELS_3D
from custom.targets.affinities import paired_slices

MIRRORINGS = tuple(axes for n in range(4) for axes in combinations(range(3), n))
"""Sets of mirrored axes, zyx; the first is none."""

CORRELATIONS = ((0, 1), (0, 2), (1, 2))
"""Axes of the LSDs' correlations zy, zx, yx."""

Predict = Callable[[Tensor, dict[str, Tensor]], Tensor]


class Mirroring:
    """Mean of what a network predicts for a window and its mirror images, mirrored back.

    An affinity joins two voxels. In a mirror image it is found at the other one of the two, so the
    prediction is moved by its offset; where that voxel lies outside the window, or the mirrored
    offset is another one, the image does not count.

    Args:
        offsets: of the K affinities that come first in a prediction, voxels, zyx; LSDs follow, or
            nothing.

    Source:
        Mirroring of nnU-Net (Isensee et al. 2021, Nature Methods 18); for affinities, of the
        long-range ones of Lee et al. 2017, arXiv:1706.00120.
    """

    def __init__(self, offsets: Sequence[Sequence[int]]) -> None:
        self.offsets = [tuple(offset) for offset in offsets]

    def __call__(self, predict: Predict, windows: Tensor, tokens: dict[str, Tensor]) -> Tensor:
        """Mean prediction.

        Args:
            predict: probabilities (B, K + L, D, H, W) of windows and tokens.
            windows: (B, 1, D, H, W).
            tokens: by the network's argument names.

        Returns:
            (B, K + L, D, H, W).
        """
        total = predict(windows, tokens).clone()
        count = torch.ones_like(total)
        for axes in MIRRORINGS[1:]:
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
        first_lsd = len(self.offsets)
        total[:, first_lsd:] += _mirrored_lsds(values[:, first_lsd:], axes)
        count[:, first_lsd:] += 1


def mirror_tokens(
    tokens: Mapping[str, Tensor], axes: Sequence[int], shape: Sequence[int]
) -> dict[str, Tensor]:
    """Token grids and placements of a batch of windows of ``shape``, mirrored along ``axes``.

    Dense features are mirrored, too.
    """
    result = dict(tokens)
    if "features" in tokens:
        result["features"] = tokens["features"].flip([2 + axis for axis in axes])
    for name in (name for name in tokens if name.startswith("tokens_")):
        values, place = tokens[name], name.replace("tokens", "placement")
        placement = tokens[place].clone()
        for axis in axes:
            extent = values.shape[2 + axis] * placement[:, 1, axis]
            placement[:, 0, axis] = shape[axis] - (placement[:, 0, axis] + extent)
        result[name] = values.flip([2 + axis for axis in axes])
        result[place] = placement
    return result


def _mirrored_lsds(lsds: Tensor, axes: Sequence[int]) -> Tensor:
    """LSDs of a mirror image as those of the image: offsets and correlations change sign."""
    if lsds.shape[1] != LSD_CHANNELS_3D:
        return lsds
    turned = [axis for axis in range(3) if axis in axes]
    turned += [6 + c for c, (i, j) in enumerate(CORRELATIONS) if (i in axes) != (j in axes)]
    lsds = lsds.clone()
    lsds[:, turned] = 1 - lsds[:, turned]
    return lsds
