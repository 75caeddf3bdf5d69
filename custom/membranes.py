"""Membranes that are thicker or thinner than in raw."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from custom.draws import RandomChanged, axis_word, whole_range
from custom.errors import InputError
from custom.targets.affinities import paired_slices
from custom.transforms import inner_box

OPERATIONS = {"erode": ndimage.minimum_filter, "dilate": ndimage.maximum_filter}


class RandMembranesd(RandomChanged):
    """Grey values eroded or dilated near the boundaries of labels; labels stay what they are.

    Erosion takes the smallest grey value of a neighbourhood: dark membranes become thicker and
    bright gaps between them thinner; dilation takes the largest. Tokens from a cache stay those of
    the unchanged raw. Reads ``labels``, ``mask`` and ``voxel_size_nm`` of the sample.

    Args:
        keys, prob: as in ``RandomChanged``.
        radius: [low, high], drawn uniformly: half of the neighbourhood, less the voxel itself, and
            how far from a boundary values change. In voxels along their shortest edge; along longer
            edges fewer, rounded down.
        operations: of "erode" and "dilate", from which one is drawn uniformly.

    Raises:
        InputError: an argument is out of range.
    """

    def __init__(
        self,
        keys: Sequence[str] | str,
        prob: float = 0.1,
        radius: Sequence[int] | int = (1, 2),
        operations: Sequence[str] = ("erode", "dilate"),
    ) -> None:
        super().__init__(keys, prob)
        self.range = whole_range(radius, self.named("radius"), 1)
        words = [operations] if isinstance(operations, str) else list(operations)
        if not words:
            raise InputError(f"{self.named('operations')} must name {' or '.join(OPERATIONS)}")
        self.operations = [
            axis_word(word, list(OPERATIONS), self.named("operations")) for word in words
        ]
        self.radius, self.operation = 0, self.operations[0]

    def randomize(self, data: Mapping[Hashable, Any]) -> None:
        """Draw whether, how far and which."""
        super().randomize(None)
        if self._do_transform:
            self.radius = self.whole(self.range)
            self.operation = self.operations[self.R.randint(len(self.operations))]

    def apply(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The sample with its membranes as drawn last."""
        shape, voxel_size_nm = self.shape_in(data), data["voxel_size_nm"].tolist()
        reach = [int(self.radius * min(voxel_size_nm) / size + 1e-6) for size in voxel_size_nm]
        near = near_boundaries(data["labels"][0].numpy(), data["mask"][0].numpy(), shape, reach)
        size = [1, *(2 * r + 1 for r in reach)]
        result = dict(data)
        for key in self.keys:
            changed = OPERATIONS[self.operation](data[key].numpy(), size=size, mode="nearest")
            result[key] = torch.where(torch.from_numpy(near), torch.from_numpy(changed), data[key])
        return result


def near_boundaries(
    labels: NDArray[np.integer],
    mask: NDArray[np.bool_],
    shape: Sequence[int],
    reach: Sequence[int],
) -> NDArray[np.bool_]:
    """Voxels of a crop that are within reach of a boundary between labels; background is a label.

    A boundary voxel has a neighbour across a face with another id, both inside ``mask``; along axes
    with no reach neighbours are not looked at.

    Args:
        labels: (D', H', W') with the crop in its centre.
        mask: where labels count, of the same shape.
        shape: (D, H, W) of the crop.
        reach: half of the box around a boundary voxel, less the voxel itself; voxels, zyx.

    Returns:
        (D, H, W) bool.
    """
    grown, cut = [], []
    for side, n, r in zip(inner_box(labels.shape, shape), labels.shape, reach, strict=True):
        start = max(0, side.start - r - 1)
        grown.append(slice(start, min(n, side.stop + r + 1)))
        cut.append(slice(side.start - start, side.stop - start))
    near, counts = labels[tuple(grown)], mask[tuple(grown)]
    boundary = np.zeros(near.shape, np.uint8)
    for axis in (axis for axis, r in enumerate(reach) if r):
        here, there = paired_slices(near.shape, [int(a == axis) for a in range(3)])
        differ = (near[here] != near[there]) & counts[here] & counts[there]
        boundary[here] |= differ
        boundary[there] |= differ
    size = [2 * r + 1 for r in reach]
    found = ndimage.maximum_filter(boundary, size=size, mode="constant")[tuple(cut)]
    return found.astype(np.bool_)
