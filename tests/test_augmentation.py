from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
import torch

from custom.augmentation import RandOrientationd, orient
from custom.errors import InputError
from custom.features.triplane import PlaneGrid, upsample
from custom.planes import NORMAL_AXIS, PLANES
from custom.targets.settings import target_settings
from custom.transforms import LabelsToTargetsd

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
    shape: tuple[int, int, int], steps: tuple[float, ...] = STEPS, planes: Sequence[str] = PLANES
) -> dict[Hashable, Any]:
    """One blob in raw, labels, mask and the tokens of the planes."""
    centre = tuple(f * n for f, n in zip((0.3, 0.6, 0.35), shape, strict=True))
    outer = tuple(n + 2 * h for n, h in zip(shape, HALO, strict=True))
    wide = blob(outer, tuple(c + h for c, h in zip(centre, HALO, strict=True)))
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


def moved(volume: torch.Tensor, axes: tuple[int, ...], flips: tuple[int, ...]) -> torch.Tensor:
    return volume.permute(0, *(1 + a for a in axes)).flip([1 + a for a in flips])


def dense(sample: dict[Hashable, Any], plane: str) -> torch.Tensor:
    grid = PlaneGrid.placed(sample[f"tokens_{plane}"], sample[f"placement_{plane}"])
    return upsample(grid, sample["image"].shape[1:], plane)


@pytest.mark.parametrize(("axes", "flips"), ORIENTATIONS, ids=str)
def test_a_planted_blob_stays_on_itself(axes: tuple[int, ...], flips: tuple[int, ...]) -> None:
    sample = planted((18, 21, 24))
    found = orient(sample, KEYS, axes, flips)
    for key in KEYS:
        assert torch.equal(found[key], moved(sample[key], axes, flips))
    for plane in PLANES:
        turned = PLANES[axes.index(NORMAL_AXIS[plane])]
        expected = moved(dense(sample, plane), axes, flips)
        torch.testing.assert_close(dense(found, turned), expected, rtol=0, atol=1e-5)
        assert (dense(found, turned) - found["image"]).abs().max() < 0.1, "it is where raw has it"
    assert (found["id"], len(found)) == ("a", len(sample))


def test_orienting_leaves_its_argument_alone() -> None:
    sample = planted((18, 18, 18))
    kept = {key: value.clone() for key, value in sample.items() if key != "id"}
    orient(sample, KEYS, (2, 0, 1), (0, 2))
    assert all(torch.equal(sample[key], value) for key, value in kept.items())


@pytest.mark.parametrize(("symmetry", "count"), [("cube", 48), ("square", 16), ("box", 8)])
def test_every_orientation_of_a_symmetry_is_drawn_alike(symmetry: str, count: int) -> None:
    transform = RandOrientationd(("image",), symmetry).set_random_state(0)
    image = torch.arange(8.0).reshape(1, 2, 2, 2)
    sample = {"image": image, "voxel_size_nm": torch.ones(3)}
    draws = Counter(tuple(transform(sample)["image"].ravel().tolist()) for _ in range(40 * count))
    allowed = {tuple(moved(image, *o).ravel().tolist()) for o in ORIENTATIONS}
    assert set(draws) <= allowed
    assert len(draws) == count
    assert min(draws.values()) > 15
    if symmetry == "square":
        assert all(abs(a - b) < 4 for a, b, *_ in draws), "z stays z"


def test_prob_leaves_some_samples_alone() -> None:
    sample = planted((6, 6, 6), steps=(2.0, 2.0, 2.0))
    transform = RandOrientationd(KEYS, "cube", prob=0.5).set_random_state(1)
    same = [torch.equal(transform(sample)["image"], sample["image"]) for _ in range(60)]
    assert 15 < sum(same) < 45
    never = RandOrientationd(KEYS, "cube", prob=0.0)
    assert all(torch.equal(never(sample)["image"], sample["image"]) for _ in range(9))


def test_the_same_seed_gives_the_same_orientations() -> None:
    sample = planted((6, 6, 6))
    one, other = (RandOrientationd(KEYS).set_random_state(3) for _ in range(2))
    for _ in range(9):
        assert torch.equal(one(sample)["image"], other(sample)["image"])


SIZES = [
    ("cube", (4, 6, 6), (4, 4, 4)),
    ("square", (4, 5, 6), (4, 4, 4)),
    ("cube", (6, 6, 6), (8, 4, 4)),
    ("square", (6, 6, 6), (8, 4, 5)),
]


@pytest.mark.parametrize(("symmetry", "shape", "size"), SIZES, ids=str)
def test_unequal_axes_never_trade_places(
    symmetry: str, shape: tuple[int, ...], size: tuple[float, ...]
) -> None:
    sample = {"image": torch.zeros(1, *shape), "voxel_size_nm": torch.tensor(size)}
    for seed in range(9):  # whatever is drawn
        with pytest.raises(InputError, match=f"symmetry '{symmetry}' swaps axes along which"):
            RandOrientationd(("image",), symmetry).set_random_state(seed)(sample)


FITTING = [
    ((6, 6, 6), (4.0, 4.0, 4.0), 48),
    ((6, 6, 6), (8.0, 4.0, 4.0), 16),
    ((6, 5, 6), (4.0, 4.0, 4.0), 16),
    ((6, 6, 5), (4.0, 8.0, 4.0), 8),
]


@pytest.mark.parametrize(("shape", "size", "count"), FITTING, ids=str)
def test_auto_draws_all_orientations_that_keep_crop_and_voxels(
    shape: tuple[int, ...], size: tuple[float, ...], count: int
) -> None:
    image = torch.arange(float(np.prod(shape))).reshape(1, *shape)
    sample = {"image": image, "voxel_size_nm": torch.tensor(size)}
    transform = RandOrientationd(("image",)).set_random_state(0)
    drawn = [transform(sample)["image"] for _ in range(12 * count)]
    assert {tuple(found.shape[1:]) for found in drawn} == {shape}
    assert len({tuple(found.ravel().tolist()) for found in drawn}) == count


EQUAL = (2.5, 2.5, 2.5)
KEPT = [  # an orientation is one of 8 mirrorings times an order of axes
    (PLANES, EQUAL, {}, 6),
    (PLANES, (2.0, 2.5, 2.5), {}, 2),
    (PLANES, (2.0, 2.25, 2.5), {}, 1),
    (PLANES, EQUAL, {"xy": 2, "xz": 2, "yz": 2}, 6),
    (PLANES, EQUAL, {"xy": 1, "xz": 4, "yz": 4}, 2),
    (("xy",), EQUAL, {}, 2),
    (("xy",), (4.0, 2.5, 2.5), {}, 2),  # no token is placed along z by its scale
    (("xz", "yz"), EQUAL, {}, 2),
    (("xz", "yz"), EQUAL, {"xz": 3}, 1),
    ((), EQUAL, {}, 6),
]


@pytest.mark.parametrize(("planes", "steps", "slice_steps", "orders"), KEPT, ids=str)
def test_a_sample_keeps_its_planes_and_the_steps_of_its_tokens(
    planes: tuple[str, ...],
    steps: tuple[float, ...],
    slice_steps: dict[str, int],
    orders: int,
) -> None:
    sample = planted((8, 8, 8), steps, planes)
    for plane, step in slice_steps.items():
        sample[f"placement_{plane}"][1, NORMAL_AXIS[plane]] = step
    transform = RandOrientationd(KEYS).set_random_state(0)
    drawn = set()
    for _ in range(40 * orders):
        found = transform(sample)
        drawn.add(transform.axes)
        assert found.keys() == sample.keys()
        for plane in planes:
            name = f"placement_{plane}"
            assert torch.equal(found[name][1], sample[name][1])
    assert len(drawn) == orders
    for symmetry, least in (("cube", 6), ("square", 2)):
        fixed = RandOrientationd(KEYS, symmetry).set_random_state(1)
        if orders >= least:
            fixed(sample)
        else:
            with pytest.raises(InputError, match=f"'{symmetry}' swaps axes .* the tokens"):
                fixed(sample)


@pytest.mark.parametrize("symmetry", ["square", "box"])
def test_symmetries_fit_their_crops(symmetry: str) -> None:
    shape = {"square": (4, 6, 6), "box": (4, 5, 6)}[symmetry]
    size = {"square": (8.0, 4.0, 4.0), "box": (8.0, 4.0, 5.0)}[symmetry]
    sample = {"image": torch.zeros(1, *shape), "voxel_size_nm": torch.tensor(size)}
    transform = RandOrientationd(("image",), symmetry)
    assert {tuple(transform(sample)["image"].shape) for _ in range(20)} == {(1, *shape)}


def test_symmetry_none_leaves_every_sample_as_it_is() -> None:
    sample = {"image": torch.rand(1, 4, 5, 5), "voxel_size_nm": torch.ones(3)}
    for seed in range(9):
        found = RandOrientationd(("image",), "none").set_random_state(seed)(sample)
        assert torch.equal(found["image"], sample["image"])


def test_an_unknown_symmetry_is_refused() -> None:
    with pytest.raises(InputError, match="symmetry must be one of auto, cube, square, box"):
        RandOrientationd(KEYS, "round")


@pytest.mark.parametrize(("axes", "flips"), ORIENTATIONS[1::5], ids=str)
def test_targets_of_an_oriented_sample_are_those_of_the_oriented_labels(
    axes: tuple[int, ...], flips: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 4, (1, 14, 14, 14)))
    mask = torch.from_numpy(rng.random(labels.shape) < 0.9)
    sample: dict[Hashable, Any] = {
        "image": torch.zeros(1, 8, 8, 8),
        "labels": labels,
        "mask": mask,
        "voxel_size_nm": torch.tensor([4.0, 4.0, 4.0]),
    }
    to_targets = LabelsToTargetsd(target_settings([(1, 0, 0), (0, -2, 0), (0, 1, 3)], 4.0))
    found = to_targets(orient(sample, KEYS, axes, flips))["label"]
    fresh = {**sample, "labels": moved(labels, axes, flips), "mask": moved(mask, axes, flips)}
    assert torch.equal(found, to_targets(fresh)["label"])
    unturned = to_targets(sample)["label"]
    for channels in (to_targets.layout.lsd_mask, to_targets.layout.weight):  # scalars turn along
        torch.testing.assert_close(found[channels], moved(unturned[channels], axes, flips))
    mass = to_targets.layout.lsds.stop - 1
    torch.testing.assert_close(found[mass], moved(unturned[mass][None], axes, flips)[0])
