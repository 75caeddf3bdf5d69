"""MONAI dictionary transforms that compute training targets."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform
from numpy.typing import NDArray

from custom.channels import ChannelLayout
from custom.json_fields import per_axis
from custom.targets.affinities import affinities, valid_affinities
from custom.targets.blocks import restored
from custom.targets.boundary_weights import boundary_weights
from custom.targets.lsds import local_shape_descriptors

Box = tuple[slice, slice, slice]

CONSUMED = ("labels", "mask", "target", "boundary_weights")


class LabelsToTargetsd(Transform):
    """Targets of a crop from labels with a halo; the last transform, after every augmentation.

    Reads ``labels`` and ``mask`` (1, D + 2 hz, H + 2 hy, W + 2 hx), ``image`` (1, D, H, W) and
    ``voxel_size_nm`` (3,); removes the first two and adds ``label``, the float32 target tensor
    (T, D, H, W) of ``ChannelLayout``.

    Where the sample has ``target`` (K + L, D, H, W) and ``boundary_weights`` (1, D, H, W) from a
    cache, these are taken instead of computed; a halo as wide as the offsets is enough then.

    Args:
        affinity_offsets: K offsets, voxels, zyx.
        lsd_sigma_nm: sigma of the LSDs in nm; None for affinities alone.
        lsd_downsample: as in ``local_shape_descriptors``.
        boundary_power: weights are ``1 / (1 + distance) ** boundary_power``, the distance to the
            nearest boundary inside the halo; 0 weighs all voxels alike.

    Raises:
        InputError: ``lsd_downsample`` is not one or three whole numbers from 1 on.
    """

    def __init__(
        self,
        affinity_offsets: Sequence[Sequence[int]],
        lsd_sigma_nm: float | None,
        boundary_power: float = 1.0,
        lsd_downsample: int | Sequence[int] = 1,
    ) -> None:
        self.offsets = [(int(z), int(y), int(x)) for z, y, x in affinity_offsets]
        self.lsd_sigma_nm = lsd_sigma_nm
        self.boundary_power = boundary_power
        self.lsd_downsample = per_axis(lsd_downsample, "lsd_downsample")
        self.layout = ChannelLayout(len(self.offsets), 10 if lsd_sigma_nm else 0)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace labels and mask by the target tensor."""
        sample = {key: value for key, value in data.items() if key not in CONSUMED}
        labels, mask = data["labels"][0].numpy(), data["mask"][0].numpy()
        inner = _inner_box(labels.shape, data["image"].shape[1:])
        if "target" in data:
            stored = data["target"].numpy(), data["boundary_weights"].numpy()
            target = self._cached(labels, mask, inner, *stored)
        else:
            voxel_size = tuple(float(size) for size in data["voxel_size_nm"])
            target = self._targets(labels, mask, inner, voxel_size)
        sample["label"] = torch.from_numpy(target)
        return sample

    def _cached(
        self,
        labels: NDArray[np.integer],
        mask: NDArray[np.bool_],
        inner: Box,
        stored: NDArray[np.uint8],
        weights: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        target = np.empty((self.layout.num_targets, *labels[inner].shape), dtype=np.float32)
        near, part = _neighbourhood(inner, self.offsets, labels.shape)
        target[: self.layout.num_outputs] = restored(stored)
        target[self.layout.valid] = valid_affinities(mask[near], self.offsets)[:, *part]
        target[self.layout.lsd_mask] = mask[inner] & (labels[inner] != 0)
        target[self.layout.weight] = weights
        return target

    def _targets(
        self,
        labels: NDArray[np.integer],
        mask: NDArray[np.bool_],
        inner: Box,
        voxel_size_nm: tuple[float, ...],
    ) -> NDArray[np.float32]:
        shape = labels[inner].shape
        target = np.ones((self.layout.num_targets, *shape), dtype=np.float32)
        near, part = _neighbourhood(inner, self.offsets, labels.shape)
        affinity, valid = affinities(labels[near], self.offsets, mask=mask[near])
        target[self.layout.affinities] = affinity[:, *part]
        target[self.layout.valid] = valid[:, *part]
        target[self.layout.lsd_mask] = mask[inner] & (labels[inner] != 0)
        if self.lsd_sigma_nm:
            target[self.layout.lsds] = local_shape_descriptors(
                labels, self.lsd_sigma_nm, voxel_size_nm, inner, self.lsd_downsample
            )
        if self.boundary_power:
            weights = boundary_weights(
                labels, power=self.boundary_power, voxel_size=voxel_size_nm, mask=mask
            )
            target[self.layout.weight] = weights[inner]
        return target


def _inner_box(outer: Sequence[int], inner: Sequence[int]) -> Box:
    """The centre of ``outer`` that has the shape ``inner``."""
    z, y, x = (slice((o - i) // 2, (o - i) // 2 + i) for o, i in zip(outer, inner, strict=True))
    return z, y, x


def _neighbourhood(
    inner: Box, offsets: Sequence[Sequence[int]], shape: Sequence[int]
) -> tuple[Box, Box]:
    """The part of an array that the affinities in ``inner`` depend on, and ``inner`` in it."""
    near, part = [], []
    for axis, box in enumerate(inner):
        reach = max(abs(offset[axis]) for offset in offsets)
        start = max(0, box.start - reach)
        near.append(slice(start, min(shape[axis], box.stop + reach)))
        part.append(slice(box.start - start, box.stop - start))
    return (near[0], near[1], near[2]), (part[0], part[1], part[2])
