"""Raw that is not finite, as a transform of a configuration."""

from collections.abc import Sequence
from typing import Any

import torch
from monai.transforms import MapTransform


class PlantNaNd(MapTransform):
    """One voxel of raw becomes NaN in samples of some numbers."""

    def __init__(self, numbers: Sequence[int]) -> None:
        super().__init__("image")
        self.numbers = set(numbers)

    def __call__(self, data: Any) -> dict[Any, Any]:
        found = dict(data)
        if found["sample_number"] in self.numbers:
            found["image"] = found["image"].clone()
            found["image"][0, 1, 2, 3] = torch.nan
        return found
