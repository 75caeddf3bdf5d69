"""MONAI dictionary transforms that compute training targets."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform
from numpy.typing import NDArray

from custom.targets.affinities import valid_affinities
from custom.targets.blocks import restored
from custom.targets.halo import affinity_reach, counted_reach, weight_reach
from custom.targets.masks import eroded
from custom.targets.parts import affinity_part, lsd_part, weight_part
from custom.targets.settings import TargetSettings

Box = tuple[slice, slice, slice]

CONSUMED = ("labels", "mask", "target", "boundary_weights")


class LabelsToTargetsd(Transform):
    """Targets of a crop from labels with a halo; the last transform, after every augmentation.

    Reads ``labels`` and ``mask`` (1, D + 2 hz, H + 2 hy, W + 2 hx), ``image`` (1, D, H, W) and
    ``voxel_size_nm`` (3,); removes the first two and adds ``label``, the float32 target tensor
    (T, D, H, W) of ``ChannelLayout``.

    Where the sample has ``target`` (K + L, D, H, W) and ``boundary_weights`` (1, D, H, W) from a
    cache, these are taken instead of computed; a halo as wide as the offsets is enough then.
    With classes, ``labels`` are class ids.

    Args:
        targets: settings of the targets.
    """

    def __init__(self, targets: TargetSettings) -> None:
        self.targets = targets
        self.layout = targets.layout

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace labels and mask by the target tensor."""
        sample = {key: value for key, value in data.items() if key not in CONSUMED}
        labels, mask = data["labels"][0].numpy(), data["mask"][0].numpy()
        inner = inner_box(labels.shape, data["image"].shape[1:])
        target = np.empty((self.layout.num_targets, *labels[inner].shape), dtype=np.float32)
        self._count_(target, labels, mask, inner)
        if "target" in data:
            target[: self.layout.num_outputs] = restored(data["target"].numpy())
            target[self.layout.weight] = data["boundary_weights"].numpy()
        else:
            voxel_size = tuple(float(size) for size in data["voxel_size_nm"])
            self._compute_(target, labels, mask, inner, voxel_size)
        sample["label"] = torch.from_numpy(target)
        return sample

    def _count_(
        self,
        target: NDArray[np.float32],
        labels: NDArray[np.integer],
        mask: NDArray[np.bool_],
        inner: Box,
    ) -> None:
        """Fill the channels that say what counts."""
        near, part = _neighbourhood(inner, counted_reach(self.targets), labels.shape)
        counts = eroded(mask[near], self.targets.mask_erosion)
        if self.targets.classes:
            target[self.layout.valid] = counts[part]
            return
        valid = valid_affinities(counts, self.targets.affinity_offsets)
        target[self.layout.valid] = valid[:, *part]
        target[self.layout.lsd_mask] = counts[part] & (labels[inner] != 0)

    def _compute_(
        self,
        target: NDArray[np.float32],
        labels: NDArray[np.integer],
        mask: NDArray[np.bool_],
        inner: Box,
        voxel_size_nm: tuple[float, ...],
    ) -> None:
        """Fill the channels that a cache may have."""
        settings, layout = self.targets, self.layout
        if settings.classes:
            target[layout.class_id] = labels[inner]
        else:
            near, part = _neighbourhood(inner, affinity_reach(settings), labels.shape)
            target[layout.affinities] = affinity_part(labels[near], settings)[:, *part]
        if layout.num_lsds:
            target[layout.lsds] = lsd_part(labels, voxel_size_nm, settings, inner)
        reach = weight_reach(settings, voxel_size_nm)
        near, part = _neighbourhood(inner, reach, labels.shape)
        target[layout.weight] = weight_part(labels[near], mask[near], voxel_size_nm, settings)[part]


def inner_box(outer: Sequence[int], inner: Sequence[int]) -> Box:
    """The centre of ``outer`` that has the shape ``inner``."""
    z, y, x = (slice((o - i) // 2, (o - i) // 2 + i) for o, i in zip(outer, inner, strict=True))
    return z, y, x


def _neighbourhood(inner: Box, reach: Sequence[int], shape: Sequence[int]) -> tuple[Box, Box]:
    """The part of an array within ``reach`` of ``inner``, and ``inner`` in it."""
    near, part = [], []
    for box, distance, size in zip(inner, reach, shape, strict=True):
        start = max(0, box.start - distance)
        near.append(slice(start, min(size, box.stop + distance)))
        part.append(slice(box.start - start, box.stop - start))
    return (near[0], near[1], near[2]), (part[0], part[1], part[2])
