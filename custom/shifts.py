"""Sections that lie beside their place, as after an imperfect alignment."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from custom.artefacts import HALF, covered
from custom.augmentation import token_grids
from custom.draws import Shape
from custom.errors import InputError
from custom.json_fields import whole_number
from custom.sections import RandSectionsd, Sections
from custom.transforms import inner_box


class RandShiftedSectionsd(RandSectionsd):
    """Sections shifted in their own plane, raw, labels and mask alike.

    Who draws labels draws what a section shows, and affinities across the slip say what overlaps
    there: labels follow. Where a section's raw or labels would come from outside, its border
    repeats, and labels do not count. Tokens that lie in the shifted sections for at least half of
    their extent, so those of the sections' own plane, are shifted, too, by linear interpolation;
    others stay, since most of what they saw stays.

    Args:
        keys: volumes (1, D, H, W) of raw.
        prob, sections, axis: as in ``RandSectionsd``.
        max_shift: largest shift along either axis of the plane, in voxels. All shifts but none at
            all have the same probability.

    Raises:
        InputError: an argument is out of range; when applied, whatever is drawn: the shift is as
            large as the crop, or the sample has targets from a cache, which cannot follow.
    """

    def __init__(
        self,
        keys: Sequence[str] | str,
        prob: float = 0.1,
        sections: Sequence[int] | int = (1, 1),
        axis: str = "auto",
        max_shift: int = 4,
    ) -> None:
        super().__init__(keys, prob, sections, axis)
        self.max_shift = whole_number(max_shift, 1, self.named("max_shift"))
        self.shift: Shape = (0, 0, 0)

    def randomize(self, data: Mapping[Hashable, Any]) -> None:
        """Draw sections and their shift."""
        if "target" in data:
            raise InputError(
                "cached_targets cannot be used with RandShiftedSectionsd: targets from a cache "
                "cannot be shifted with their sections; leave one of them out"
            )
        super().randomize(data)
        if not self._do_transform:
            return
        edge = 2 * self.max_shift + 1
        place = int(self.R.randint(edge**2 - 1))
        place += place >= edge**2 // 2  # the middle is no shift
        moves = [place // edge - self.max_shift, place % edge - self.max_shift]
        moves.insert(self.sections.axis, 0)
        self.shift = (moves[0], moves[1], moves[2])

    def misfit(self, axis: int, shape: Shape) -> str:
        """Why sections along an axis of a crop cannot be shifted; empty where they can."""
        if all(self.max_shift < n for a, n in enumerate(shape) if a != axis):
            return super().misfit(axis, shape)
        return (
            f"{self.named('max_shift')} is {self.max_shift}, as large as the crop {list(shape)}; "
            "lower it"
        )

    def apply(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The sample with the sections drawn last shifted."""
        return shift_sections(data, self.keys, self.sections, self.shift)


def shift_sections(
    sample: Mapping[Hashable, Any], keys: Sequence[Hashable], sections: Sections, shift: Shape
) -> dict[Hashable, Any]:
    """Move sections of a crop: what was at ``p`` comes to ``p + shift``.

    Args:
        sample: of ``CropDataset``.
        keys: volumes (1, D, H, W) of raw; labels and mask are moved too, with their halo.
        sections: of the crop.
        shift: voxels, zyx; 0 along the sections' axis.
    """
    result = dict(sample)
    shape = sample[keys[0]].shape[1:]
    volumes = ("labels", "mask", *(name for name in ("features",) if name in sample))
    for key in (*keys, *volumes):
        centre = inner_box(sample[key].shape[1:], shape)[sections.axis]
        rows = torch.arange(centre.start + sections.start, centre.start + sections.stop)
        result[key] = _moved(sample[key], sections.axis, rows, shift)
    _hide_unknown_(result["mask"], shape, sections, shift)
    for plane, grid in token_grids(sample).items():
        box = slice(sections.start, sections.stop)
        rows = (covered(grid, sections.axis, box, shape[sections.axis]) >= HALF).nonzero()[:, 0]
        steps = [s / step for s, step in zip(shift, grid.step, strict=True)]
        result[f"tokens_{plane}"] = _moved(grid.values, sections.axis, rows, steps)
    return result


def _moved(volume: Tensor, axis: int, rows: Tensor, shift: Sequence[float]) -> Tensor:
    """(C, d, h, w) with ``rows`` of an axis shifted along the others; borders repeat."""
    part = volume.index_select(1 + axis, rows)
    for other, distance in enumerate(shift):
        if other != axis and distance:
            part = _moved_along(part, 1 + other, distance)
    result = volume.clone()
    return result.index_copy_(1 + axis, rows, part)


def _moved_along(volume: Tensor, dim: int, distance: float) -> Tensor:
    """Shifted by entries along one dimension, between entries by linear interpolation."""
    last = volume.shape[dim] - 1
    place = (torch.arange(last + 1, dtype=torch.float64) - distance).clamp(0, last)
    lower = place.floor().long()
    share = place - lower
    found = volume.index_select(dim, lower)
    if not share.any():
        return found
    shape = [-1 if d == dim else 1 for d in range(volume.ndim)]
    above = volume.index_select(dim, (lower + 1).clamp(max=last))
    return torch.lerp(found.float(), above.float(), share.float().view(shape)).to(volume.dtype)


def _hide_unknown_(mask: Tensor, shape: Sequence[int], sections: Sections, shift: Shape) -> None:
    """Take what came from beyond the labels, or in the crop from beyond raw, out of the mask."""
    box = inner_box(mask.shape[1:], shape)
    first = box[sections.axis].start + sections.start
    part = mask.narrow(1 + sections.axis, first, sections.stop - sections.start)
    across = [slice(None) if a == sections.axis else side for a, side in enumerate(box)]
    for axis, distance in enumerate(shift):
        if distance:
            _forget_behind_(part, 1 + axis, distance)
            _forget_behind_(part[:, *across], 1 + axis, distance)


def _forget_behind_(part: Tensor, dim: int, distance: int) -> None:
    """False in the strip that a shift along one dimension leaves behind."""
    start = 0 if distance > 0 else part.shape[dim] + distance
    part.narrow(dim, start, abs(distance)).fill_(False)
