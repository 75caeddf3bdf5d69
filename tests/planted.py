"""One blob in raw, labels, mask and tokens of a sample: what moves a sample must move all alike.

A geometric change of samples is tested by ``assert_in_register(change(planted(shape)))``.
"""

from collections.abc import Hashable, Mapping, Sequence
from itertools import permutations, product
from typing import Any

import numpy as np
import torch

from custom.features.triplane import PlaneGrid, upsample
from custom.planes import NORMAL_AXIS, PLANES
from custom.transforms import inner_box

KEYS = ("image", "labels", "mask")
STEPS = (2.0, 3.0, 125 / 54)
HALO = (1, 2, 3)
BLOB = 5.0
ORIENTATIONS = [
    (axes, tuple(a for a in range(3) if flips[a]))
    for axes, flips in product(permutations(range(3)), product((False, True), repeat=3))
]


def blob(shape: tuple[int, ...], centre: tuple[float, ...]) -> torch.Tensor:
    """A ball of soft edge, nowhere symmetric to the box."""
    place = torch.meshgrid(*(torch.arange(n) + 0.5 for n in shape), indexing="ij")
    squares = [(p - c) ** 2 for p, c in zip(place, centre, strict=True)]
    return torch.stack(squares).sum(0).div(-2 * BLOB**2).exp()


def planted(
    shape: tuple[int, int, int],
    steps: tuple[float, ...] = STEPS,
    planes: Sequence[str] = PLANES,
    halo: tuple[int, int, int] = HALO,
) -> dict[Hashable, Any]:
    """One blob in raw, labels, mask and the tokens of the planes."""
    centre = tuple(f * n for f, n in zip((0.3, 0.6, 0.35), shape, strict=True))
    outer = tuple(n + 2 * h for n, h in zip(shape, halo, strict=True))
    wide = blob(outer, tuple(c + h for c, h in zip(centre, halo, strict=True)))
    sample: dict[Hashable, Any] = {
        "image": blob(shape, centre)[None],
        "labels": (wide > 0.5).long()[None] * 7,
        "mask": (wide > 0.1)[None],
        "voxel_size_nm": torch.tensor([4.0, 4.0, 4.0]),
        "id": "a",
    }
    for plane in planes:
        grid = tokens_of_blob(shape, centre, plane, steps)
        sample[f"tokens_{plane}"], sample[f"placement_{plane}"] = grid.values, grid.placement
    return sample


def tokens_of_blob(
    shape: tuple[int, ...], centre: tuple[float, ...], plane: str, steps: tuple[float, ...]
) -> PlaneGrid:
    """The blob at the centres of the entries of a grid that sticks out of the box."""
    step = [1.0 if a == NORMAL_AXIS[plane] else s for a, s in enumerate(steps)]
    start = [0.0 if a == NORMAL_AXIS[plane] else -0.4 * s for a, s in enumerate(steps)]
    count = [int(np.ceil((n - b) / s)) for n, b, s in zip(shape, start, step, strict=True)]
    axes = [
        (torch.arange(n) + 0.5) * s + b - c
        for n, s, b, c in zip(count, step, start, centre, strict=True)
    ]
    squares = [x**2 for x in torch.meshgrid(*axes, indexing="ij")]
    values = torch.stack(squares).sum(0).div(-2 * BLOB**2).exp()
    return PlaneGrid(values[None], tuple(start), tuple(step))


def dense(sample: Mapping[Hashable, Any], plane: str) -> torch.Tensor:
    """A plane's tokens, upsampled to the voxels of the crop."""
    grid = PlaneGrid.placed(sample[f"tokens_{plane}"], sample[f"placement_{plane}"])
    return upsample(grid, sample["image"].shape[1:], plane)


def assert_in_register(
    sample: Mapping[Hashable, Any],
    planes: Sequence[str] = PLANES,
    known: torch.Tensor | None = None,
    margin: float = 1e-4,
    tokens: float = 0.1,
) -> None:
    """The blob of ``planted`` is at the same place in raw, labels, mask and tokens.

    Args:
        sample: with the blob, whatever was done to it.
        planes: whose tokens must be in register.
        known: bool (D, H, W), the voxels to compare; all when left out.
        margin: by how much raw may be off, where voxels were interpolated.
        tokens: by how much upsampled tokens may be off.
    """
    image = sample["image"][0]
    known = torch.ones_like(image, dtype=torch.bool) if known is None else known
    assert image[known].max() > 0.9, "the blob is there"
    assert image[known].min() < 0.1, "and not everywhere"
    for key, level in (("labels", 0.5), ("mask", 0.1)):
        found = sample[key][0][inner_box(sample[key].shape[1:], image.shape)] != 0
        unsure = (image - level).abs() <= margin
        assert ((found == (image > level)) | unsure)[known].all(), key
    for plane in planes:
        assert (dense(sample, plane)[0] - image).abs()[known].max() < tokens, plane
