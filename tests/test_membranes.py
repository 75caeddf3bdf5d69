from itertools import product

import numpy as np
import pytest
import torch

from custom.membranes import RandMembranesd
from tests.crops import HALO, ISOTROPIC, SHAPE, assert_unchanged, copied, random_crop


def oracle(
    sample: dict[str, torch.Tensor], reach: tuple[int, int, int], operation: str
) -> torch.Tensor:
    """Voxel by voxel."""
    image, labels, mask = (sample[key][0].numpy() for key in ("image", "labels", "mask"))
    boundary = np.zeros(labels.shape, bool)
    for place in np.argwhere(mask):
        for axis, sign in product((a for a in range(3) if reach[a]), (-1, 1)):
            other = place.copy()
            other[axis] += sign
            if 0 <= other[axis] < labels.shape[axis] and mask[tuple(other)]:
                boundary[tuple(place)] |= labels[tuple(place)] != labels[tuple(other)]
    found = image.copy()
    for place in product(*(range(n) for n in SHAPE)):
        middle = [p + h for p, h in zip(place, HALO, strict=True)]
        near = tuple(slice(max(0, m - r), m + r + 1) for m, r in zip(middle, reach, strict=True))
        if boundary[near].any():
            box = tuple(slice(max(0, p - r), p + r + 1) for p, r in zip(place, reach, strict=True))
            found[place] = image[box].min() if operation == "erode" else image[box].max()
    return torch.from_numpy(found)[None]


REACHES = [
    (1, ISOTROPIC, (1, 1, 1)),
    (2, ISOTROPIC, (2, 2, 2)),
    (2, (8.0, 4.0, 4.0), (1, 2, 2)),
    (3, (40.0, 4.0, 6.0), (0, 3, 2)),
]


@pytest.mark.parametrize("operation", ["erode", "dilate"])
@pytest.mark.parametrize(("radius", "voxel_size", "reach"), REACHES, ids=str)
def test_grey_values_change_near_the_boundaries_of_annotated_labels_alone(
    radius: int, voxel_size: tuple[float, ...], reach: tuple[int, int, int], operation: str
) -> None:
    sample = random_crop(voxel_size=voxel_size)
    z, y, x = torch.meshgrid(*(torch.arange(n) for n in sample["labels"].shape[1:]), indexing="ij")
    sample["labels"] = (
        (z > 3) * 2 + (y > 7) + (y > 10) * 5 + (x > 10) * 300 + (x < 1) * 9 + 2**60
    )[None]
    sample["mask"] = ((z + y + x) % 5 > 0)[None] & (x < 9)
    kept = copied(sample)
    found = RandMembranesd("image", 1.0, radius, [operation])(sample)
    expected = oracle(kept, reach, operation)
    assert torch.equal(found["image"], expected)
    assert 0 < (expected != kept["image"]).float().mean() < 1
    assert_unchanged(found, kept, but=("image",))
    assert_unchanged(sample, kept)


def test_erosion_thickens_dark_membranes_and_dilation_thins_them() -> None:
    sample = random_crop((6, 8, 12), halo=(0, 0, 0))
    sample["labels"] = (torch.arange(12) >= 6).long().expand(1, 6, 8, 12) + 1
    sample["mask"] = torch.ones(1, 6, 8, 12, dtype=torch.bool)
    sample["image"] = torch.ones(1, 6, 8, 12)
    sample["image"][..., 5:8] = -1.0
    for operation, dark in (("erode", 4), ("dilate", 1)):
        found = RandMembranesd("image", 1.0, 1, [operation])(sample)["image"]
        assert (found < 0).sum(-1).unique().tolist() == [dark]


def test_every_radius_and_operation_is_drawn_alike() -> None:
    transform, drawn = RandMembranesd("image", 1.0, (1, 3)).set_random_state(0), []
    for _ in range(1200):
        transform.randomize(None)
        drawn.append((transform.radius, transform.operation))
    cells = list(product((1, 2, 3), ("erode", "dilate")))
    assert set(drawn) == set(cells)
    assert all(140 < drawn.count(cell) < 260 for cell in cells)
