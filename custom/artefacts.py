"""Defects of raw: streaks, and parts or sections that are missing.

Tokens from a cache were made of raw without these defects. What raw hides they can hide, too
(``hide_tokens``); beside streaks they stay those of the clean raw. So does a crop's context.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from custom.augmentation import token_grids
from custom.draws import AXES, RandomChanged, Shape, axis_word, number_range, whole_range
from custom.features.triplane import PlaneGrid
from custom.json_fields import flag
from custom.sections import Box, RandSectionsd, normals
from custom.transforms import inner_box

HALF = 0.5 - 1e-4  # of an entry; positions are rounded to float32


def hide(
    sample: Mapping[Hashable, Any],
    keys: Sequence[Hashable],
    boxes: Sequence[Box],
    values: Sequence[float],
    mask: bool,
    tokens: bool,
) -> dict[Hashable, Any]:
    """Give boxes of a crop one grey value each.

    Args:
        sample: of ``CropDataset``.
        keys: volumes (1, D, H, W) to fill.
        boxes: in voxels of the crop.
        values: one for each box.
        mask: labels in the boxes no longer count.
        tokens: what the boxes hide of the features becomes 0: voxels of dense features, or tokens
            at least half of whose extent lies in a box. A missing section so takes the tokens of
            its own slice along, and leaves those of the planes that cross it.
    """
    result = dict(sample)
    filled: list[Hashable] = [*keys, *(["mask"] if mask else [])]
    filled += ["features"] if tokens and "features" in sample else []
    for key in filled:
        result[key] = sample[key].clone()
        centre = inner_box(result[key].shape[1:], sample[keys[0]].shape[1:])
        crop = result[key][:, *centre]  # a view: the mask has a halo around the crop, raw has none
        for box, value in zip(boxes, values, strict=True):
            crop[:, *box] = value if key in keys else 0
    for plane, grid in token_grids(sample).items() if tokens else ():
        result[f"tokens_{plane}"] = _without(grid, boxes, sample[keys[0]].shape[1:])
    return result


def _without(grid: PlaneGrid, boxes: Sequence[Box], shape: Sequence[int]) -> Tensor:
    """A grid's values, 0 where at least half of an entry lies in a box."""
    values = grid.values.clone()
    for box in boxes:
        z, y, x = (covered(grid, axis, box[axis], shape[axis]) for axis in range(3))
        hidden = z[:, None, None] * y[:, None] * x >= HALF
        values[:, hidden] = 0
    return values


def covered(grid: PlaneGrid, axis: int, side: slice, size: int) -> Tensor:
    """Fraction of each of a grid's entries along an axis that lies in a side of a box.

    Entries that stick out of the crop, which has ``size`` voxels, count as moved into it.
    """
    step = min(grid.step[axis], float(size))
    places = torch.arange(grid.values.shape[1 + axis], dtype=torch.float64)
    first = (places * grid.step[axis] + grid.start[axis]).clamp(0, size - step)
    shared = (first + step).clamp(max=side.stop) - first.clamp(min=side.start)
    return shared.clamp(min=0) / step


class RandMissingSectionsd(RandSectionsd):
    """Missing sections: all of their voxels have one grey value.

    Args:
        keys, prob, sections, axis: as in ``RandSectionsd``.
        value: [low, high] of the grey value, drawn uniformly; raw is in [-1, 1].
        hide_labels: labels do not count there; else the network learns to bridge the gap.
        hide_tokens: tokens of the missing sections become 0, as in ``hide``. With tokens of the
            clean raw a network would learn to trust tokens where raw is missing, which it cannot in
            inference.

    Raises:
        InputError: an argument is out of range.
    """

    def __init__(
        self,
        keys: Sequence[str] | str,
        prob: float = 0.1,
        sections: Sequence[int] | int = (1, 1),
        axis: str = "auto",
        value: Sequence[float] | float = -1.0,
        hide_labels: bool = False,
        hide_tokens: bool = True,
    ) -> None:
        super().__init__(keys, prob, sections, axis)
        self.values = number_range(value, self.named("value"))
        self.hide_labels = flag(hide_labels, self.named("hide_labels"))
        self.hide_tokens = flag(hide_tokens, self.named("hide_tokens"))
        self.value = 0.0

    def randomize(self, data: Mapping[Hashable, Any]) -> None:
        """Draw sections and their grey value."""
        super().randomize(data)
        if self._do_transform:
            self.value = self.uniform(self.values)

    def apply(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The sample without the sections drawn last."""
        boxes = [self.sections.box(self.shape_in(data))]
        return hide(data, self.keys, boxes, [self.value], self.hide_labels, self.hide_tokens)


class RandBlackoutd(RandomChanged):
    """Boxes of one grey value each, at every place in the crop with the same probability.

    Args:
        keys, prob: as in ``RandomChanged``.
        boxes: [fewest, most], drawn uniformly; they may overlap.
        size: [low, high] of a box's edge as a fraction of the crop's, drawn for every axis;
            rounded, at least one voxel.
        value: [low, high] of the grey value of each.
        hide_labels: labels do not count there.
        hide_tokens: so do tokens, as in ``hide``.

    Raises:
        InputError: an argument is out of range.
    """

    def __init__(
        self,
        keys: Sequence[str] | str,
        prob: float = 0.1,
        boxes: Sequence[int] | int = (1, 3),
        size: Sequence[float] | float = (0.05, 0.25),
        value: Sequence[float] | float = -1.0,
        hide_labels: bool = True,
        hide_tokens: bool = True,
    ) -> None:
        super().__init__(keys, prob)
        self.count = whole_range(boxes, self.named("boxes"), 1)
        self.size = number_range(size, self.named("size"), 0, 1)
        self.value = number_range(value, self.named("value"))
        self.hide_labels = flag(hide_labels, self.named("hide_labels"))
        self.hide_tokens = flag(hide_tokens, self.named("hide_tokens"))
        self.boxes: list[Box] = []
        self.values: list[float] = []

    def randomize(self, data: Mapping[Hashable, Any]) -> None:
        """Draw the boxes and their grey values."""
        super().randomize(None)
        if self._do_transform:
            shape = self.shape_in(data)
            self.boxes = [self._box(shape) for _ in range(self.whole(self.count))]
            self.values = [self.uniform(self.value) for _ in self.boxes]

    def _box(self, shape: Shape) -> Box:
        z, y, x = (self._side(size) for size in shape)
        return z, y, x

    def _side(self, whole: int) -> slice:
        edge = max(1, round(self.uniform(self.size) * whole))
        start = self.whole((0, whole - edge))
        return slice(start, start + edge)

    def apply(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The sample with the boxes drawn last."""
        return hide(data, self.keys, self.boxes, self.values, self.hide_labels, self.hide_tokens)


class RandStreaksd(RandomChanged):
    """Streaks through all sections, as of knives and ion beams: bands that are darker or brighter.

    A band is [thickness] voxels wide along one axis and as long as the crop along both others, one
    of which is the sections' normal.

    Args:
        keys, prob: as in ``RandomChanged``.
        streaks: [fewest, most], drawn uniformly.
        thickness: [low, high] voxels of each; never all of the crop.
        strength: [low, high] of what is added to each one's voxels; raw is in [-1, 1].
        axis: the sections' normal, as in ``RandSectionsd``.

    Raises:
        InputError: an argument is out of range.
    """

    def __init__(
        self,
        keys: Sequence[str] | str,
        prob: float = 0.1,
        streaks: Sequence[int] | int = (1, 4),
        thickness: Sequence[int] | int = (1, 3),
        strength: Sequence[float] | float = (-0.3, 0.3),
        axis: str = "auto",
    ) -> None:
        super().__init__(keys, prob)
        self.count = whole_range(streaks, self.named("streaks"), 1)
        self.thickness = whole_range(thickness, self.named("thickness"), 1)
        self.strength = number_range(strength, self.named("strength"))
        self.axis = axis_word(axis, ("auto", *AXES), self.named("axis"))
        self.bands: list[tuple[int, int, int, float]] = []

    def randomize(self, data: Mapping[Hashable, Any]) -> None:
        """Draw the bands: axis across, first voxel, the one after the last, what is added."""
        super().randomize(None)
        if self._do_transform:
            shape = self.shape_in(data)
            axes = normals(self.axis, data["voxel_size_nm"].tolist(), shape)
            normal = axes[self.R.randint(len(axes))]
            self.bands = [self._band(shape, normal) for _ in range(self.whole(self.count))]

    def _band(self, shape: Shape, normal: int) -> tuple[int, int, int, float]:
        plane = [axis for axis in range(3) if axis != normal]
        axes = [axis for axis in plane if shape[axis] > 1] or plane
        across = axes[self.R.randint(len(axes))]
        thickness = min(self.whole(self.thickness), max(1, shape[across] - 1))
        start = self.whole((0, shape[across] - thickness))
        return across, start, start + thickness, self.uniform(self.strength)

    def apply(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The sample with the streaks drawn last."""
        result = dict(data)
        for key in self.keys:
            result[key] = data[key].clone()
            for axis, start, stop, added in self.bands:
                result[key].narrow(1 + axis, start, stop - start).add_(added)
        return result
