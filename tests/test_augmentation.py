from collections import Counter
from collections.abc import Hashable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from custom.augmentation import RandOrientationd, orient
from custom.context import coarse_volume
from custom.errors import InputError
from custom.features.triplane import PlaneGrid
from custom.networks.context import sample_context
from custom.planes import NORMAL_AXIS, PLANES
from custom.targets.affinities import affinities
from custom.targets.boundary_weights import boundary_weights
from custom.targets.halo import target_halo
from custom.targets.lsds import local_shape_descriptors
from custom.targets.settings import target_settings
from custom.transforms import LabelsToTargetsd
from tests.planted import KEYS, ORIENTATIONS, assert_in_register, dense, planted


def moved(volume: torch.Tensor, axes: tuple[int, ...], flips: tuple[int, ...]) -> torch.Tensor:
    return volume.permute(0, *(1 + a for a in axes)).flip([1 + a for a in flips])


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
    assert_in_register(found)
    assert (found["id"], len(found)) == ("a", len(sample))


def with_context(sample: dict[Hashable, Any], factor: tuple[int, int, int]) -> dict[Hashable, Any]:
    """The sample with the context of a crop in a volume of its own, and tokens there."""
    shape = sample["image"].shape[1:]
    wide = planted(tuple(3 * n for n in shape))  # type: ignore[arg-type]
    batch = {k: v[None] for k, v in wide.items() if isinstance(v, torch.Tensor)}
    coarse = coarse_volume(wide["image"][None], batch, factor)
    return {**sample, **coarse.around([n - 1 for n in shape], shape)}


def seen(sample: dict[Hashable, Any]) -> torch.Tensor:
    """The context's raw where it lies in the crop, and a plane's tokens in the context."""
    image, placement = sample["context_image"][None], sample["context_placement"][None]
    return sample_context(image, placement, (1, 1, 1), sample["image"].shape[1:])[0]


@pytest.mark.parametrize(("axes", "flips"), ORIENTATIONS, ids=str)
def test_a_context_turns_with_its_crop(axes: tuple[int, ...], flips: tuple[int, ...]) -> None:
    sample = with_context(planted((6, 7, 8)), (2, 3, 4))
    found = orient(sample, KEYS, axes, flips)
    torch.testing.assert_close(seen(found), moved(seen(sample), axes, flips), rtol=0, atol=1e-5)
    inner, turned = (
        {name.removeprefix("context_"): v for name, v in s.items() if "context_" in name}
        for s in (sample, found)
    )
    for plane in PLANES:
        expected = moved(dense(inner, plane), axes, flips)
        other = PLANES[axes.index(NORMAL_AXIS[plane])]
        torch.testing.assert_close(dense(turned, other), expected, rtol=0, atol=1e-5)
    assert found.keys() == sample.keys()
    plain = {name: v for name, v in sample.items() if "context_" not in str(name)}
    assert orient(plain, KEYS, axes, flips).keys() == plain.keys()


@pytest.mark.parametrize(
    ("factor", "orders"), [((2, 2, 2), 6), ((1, 2, 2), 2), ((2, 1, 3), 1)], ids=str
)
def test_a_sample_keeps_the_factors_of_its_context(
    factor: tuple[int, int, int], orders: int
) -> None:
    sample = with_context(planted((6, 6, 6), EQUAL), factor)
    transform, drawn = RandOrientationd(KEYS).set_random_state(0), set()
    for _ in range(40 * orders):
        found = transform(sample)
        drawn.add(transform.axes)
        assert torch.equal(found["context_placement"][1], sample["context_placement"][1])
    assert len(drawn) == orders
    if orders < 6:
        with pytest.raises(InputError, match=r"symmetry 'cube' swaps .* or context_factor differ"):
            RandOrientationd(KEYS, "cube").set_random_state(0)(sample)


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


TOLD_APART = [
    ({"dimensions": 2}, {(0, 1, 2), (0, 2, 1)}),
    ({"dimensions": 2, "output_type": "labels"}, {(0, 1, 2), (0, 2, 1)}),
    ({"mask_erosion": [1, 0, 1]}, {(0, 1, 2), (2, 1, 0)}),
    ({"mask_erosion": [2, 1, 0]}, {(0, 1, 2)}),
    ({"mask_erosion": 2}, {axes for axes, _ in ORIENTATIONS}),
]


@pytest.mark.parametrize(("changes", "orders"), TOLD_APART, ids=str)
def test_axes_that_targets_tell_apart_do_not_trade_places(
    changes: dict[str, Any], orders: set[tuple[int, ...]]
) -> None:
    given = {"affinity_offsets": [(0, 0, 1)], "lsd_sigma_nm": None, **changes}
    sample = {"image": torch.zeros(1, 4, 4, 4), "voxel_size_nm": torch.ones(3)}
    transform = RandOrientationd(("image",), targets=target_settings(**given))
    drawn = set()
    for _ in range(30 * len(orders)):
        transform(sample)
        drawn.add(transform.axes)
    assert drawn == orders
    if len(orders) < 6:
        cube = RandOrientationd(("image",), "cube", targets=target_settings(**given))
        with pytest.raises(InputError, match=r"the targets \(dimensions, mask_erosion\)"):
            cube(sample)


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


OFFSETS = [(1, 0, 0), (0, -2, 0), (0, 1, 3)]
SIGMA_NM = 4.0
TARGETS = target_settings(OFFSETS, SIGMA_NM, boundary_power=1.0, boundary_reach_nm=14.0)
CROP = (5, 5, 5)
SQUARE = [(axes, flips) for axes, flips in ORIENTATIONS if axes[0] == 0]
SEEDS = st.integers(0, 2**32 - 1)
CASES = [(4.0, *case) for case in ORIENTATIONS] + [(6.0, *case) for case in SQUARE]


@pytest.mark.parametrize(("depth_nm", "axes", "flips"), CASES, ids=str)
@settings(max_examples=3, deadline=None)
@given(seed=SEEDS)
def test_targets_of_an_oriented_crop_are_those_of_the_oriented_volume(
    depth_nm: float, axes: tuple[int, ...], flips: tuple[int, ...], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    voxel_size = (depth_nm, 4.0, 4.0)
    halo = target_halo(TARGETS, voxel_size)
    corner = rng.integers(0, 4, 3)  # of the crop with its halo
    outer = tuple(slice(c, c + n + 2 * h) for c, n, h in zip(corner, CROP, halo, strict=True))
    inner = tuple(slice(s.start + h, s.stop - h) for s, h in zip(outer, halo, strict=True))
    whole = tuple(s.stop + int(rng.integers(0, 4)) for s in outer)
    coarse = rng.integers(0, 4, tuple(n // 2 + 1 for n in whole))
    labels = torch.from_numpy(coarse).repeat_interleave(2, 0)[: whole[0]]
    labels = labels.repeat_interleave(2, 1)[:, : whole[1]].repeat_interleave(2, 2)[..., : whole[2]]
    mask = torch.from_numpy(rng.random(whole) < 0.9)
    sample: dict[Hashable, Any] = {
        "image": torch.zeros(1, *CROP),
        "labels": labels[outer][None],
        "mask": mask[outer][None],
        "voxel_size_nm": torch.tensor(voxel_size),
    }
    to_targets = LabelsToTargetsd(TARGETS)
    found = to_targets(orient(sample, KEYS, axes, flips))["label"].numpy()

    here = torch.zeros(whole)
    here[inner] = 1
    places = moved(here[None], axes, flips)[0].nonzero().amin(0).tolist()
    box = tuple(slice(p, p + n) for p, n in zip(places, CROP, strict=True))
    turned = moved(labels[None], axes, flips)[0].contiguous().numpy()
    counts = moved(mask[None], axes, flips)[0].contiguous().numpy()
    layout = to_targets.layout
    affinity, valid = affinities(turned, OFFSETS, counts)
    np.testing.assert_array_equal(found[layout.affinities], affinity[:, *box])
    np.testing.assert_array_equal(found[layout.valid], valid[:, *box])
    lsds = local_shape_descriptors(turned, SIGMA_NM, voxel_size)[:, *box]
    np.testing.assert_allclose(found[layout.lsds], lsds, rtol=0, atol=1e-4)
    weights = boundary_weights(turned, power=1.0, voxel_size=voxel_size, mask=counts)[box]
    np.testing.assert_allclose(found[layout.weight][0], weights, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("axes", "flips"), ORIENTATIONS, ids=str)
@settings(max_examples=3, deadline=None)
@given(seed=SEEDS)
def test_upsampled_oriented_tokens_are_the_oriented_upsampled_tokens(
    axes: tuple[int, ...], flips: tuple[int, ...], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(4, 9, 3))
    sample: dict[Hashable, Any] = {"image": torch.zeros(1, *shape)}
    for plane in PLANES:
        step = rng.uniform(1, 4, 3)
        step[NORMAL_AXIS[plane]] = rng.integers(1, 3)
        start = -rng.random(3) * step
        count = [int(np.ceil((n - b) / s)) for n, b, s in zip(shape, start, step, strict=True)]
        values = torch.from_numpy(rng.normal(size=(2, *count)))
        grid = PlaneGrid(values, tuple(start.tolist()), tuple(step.tolist()))
        sample[f"tokens_{plane}"], sample[f"placement_{plane}"] = grid.values, grid.placement
    found = orient(sample, ("image",), axes, flips)
    for plane in PLANES:
        turned = PLANES[axes.index(NORMAL_AXIS[plane])]
        expected = moved(dense(sample, plane), axes, flips)
        torch.testing.assert_close(dense(found, turned), expected, rtol=0, atol=1e-4)
