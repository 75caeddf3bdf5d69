"""Blurred crops and sections; tokens from a cache stay those of the sharp raw."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from custom.draws import AXES, RandomChanged, axis_word, number_range
from custom.sections import RandSectionsd

CHOICES = ("auto", "zyx", "yx", "zy", "zx", "z", "y", "x")


class RandBlurd(RandomChanged):
    """Gaussian blur; beyond the crop its border repeats.

    MONAI's own takes what lies beyond for 0, mid grey, and so greys the border of a crop.

    Args:
        keys, prob: as in ``RandomChanged``.
        sigma: [low, high] voxels, drawn uniformly, the same along all ``axes``.
        axes: that are blurred, such as "yx"; "auto": all for isotropic voxels, "yx" for others.

    Raises:
        InputError: an argument is out of range.
    """

    def __init__(
        self,
        keys: Sequence[str] | str,
        prob: float = 0.1,
        sigma: Sequence[float] | float = (0.3, 1.5),
        axes: str = "auto",
    ) -> None:
        super().__init__(keys, prob)
        self.range = number_range(sigma, self.named("sigma"), 0)
        self.axes = axis_word(axes, CHOICES, self.named("axes"))
        self.sigma = 0.0

    def randomize(self, data: Mapping[Hashable, Any]) -> None:
        """Draw whether, and how much."""
        super().randomize(None)
        if self._do_transform:
            self.sigma = self.uniform(self.range)

    def apply(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The sample blurred as drawn last."""
        isotropic = len(set(data["voxel_size_nm"].tolist())) == 1
        letters = {"auto": "zyx" if isotropic else "yx"}.get(self.axes, self.axes)
        axes = [AXES[letter] for letter in letters]
        return dict(data) | {key: blurred(data[key], self.sigma, axes) for key in self.keys}


class RandDefocusd(RandSectionsd):
    """Sections out of focus: blurred along their own two axes.

    Args:
        keys, prob, sections, axis: as in ``RandSectionsd``.
        sigma: [low, high] of the Gaussian in voxels, drawn uniformly.

    Raises:
        InputError: an argument is out of range.
    """

    def __init__(
        self,
        keys: Sequence[str] | str,
        prob: float = 0.1,
        sections: Sequence[int] | int = (1, 1),
        axis: str = "auto",
        sigma: Sequence[float] | float = (1.0, 3.0),
    ) -> None:
        super().__init__(keys, prob, sections, axis)
        self.range = number_range(sigma, self.named("sigma"), 0)
        self.sigma = 0.0

    def randomize(self, data: Mapping[Hashable, Any]) -> None:
        """Draw sections and how much they are blurred."""
        super().randomize(data)
        if self._do_transform:
            self.sigma = self.uniform(self.range)

    def apply(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The sample with the sections drawn last out of focus."""
        result = dict(data)
        box = self.sections.box(self.shape_in(data))
        axes = [axis for axis in range(3) if axis != self.sections.axis]
        for key in self.keys:
            result[key] = data[key].clone()
            result[key][:, *box] = blurred(data[key][:, *box], self.sigma, axes)
        return result


def blurred(volume: Tensor, sigma: float, axes: Sequence[int]) -> Tensor:
    """A volume (C, D, H, W) under a Gaussian along spatial ``axes``; its border repeats."""
    result = volume.clone()
    values: NDArray[np.float32] = volume.numpy()
    sigmas = [0.0, *(sigma if axis in axes else 0.0 for axis in range(3))]
    result[:] = torch.from_numpy(ndimage.gaussian_filter(values, sigmas, mode="nearest"))
    return result
