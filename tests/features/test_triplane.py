from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from custom.features.triplane import (
    PlaneGrid,
    average,
    crop,
    entries_for,
    flip,
    permute,
    placed_at,
    take,
    upsample,
)
from custom.networks.fusion import TokenFusion
from custom.planes import NORMAL_AXIS, PLANES, interpolation_matrix

SHAPE = (19, 23, 17)
STEPS = (7.0, 125 / 18, 8.0, 1.0, 2.25, 0.75)  # voxels per patch; the second is 6.944...
ORIENTATIONS = [
    (axes, tuple(a for a in range(3) if flips[a]))
    for axes, flips in product(permutations(range(3)), product((False, True), repeat=3))
]


def grid_over(shape, plane, steps, start=(0.0, 0.0, 0.0), channels=2, seed=0, every=1) -> PlaneGrid:
    """Random entries that cover a box, as the lattice of a volume does."""
    normal = NORMAL_AXIS[plane]
    step = [float(every) if a == normal else s for a, s in enumerate(steps)]
    start = [(1 - every) / 2 if a == normal else s for a, s in enumerate(start)]
    count = [int(np.ceil((n - b) / s)) for n, b, s in zip(shape, start, step, strict=True)]
    values = torch.rand(channels, *count, generator=torch.Generator().manual_seed(seed))
    return PlaneGrid(values, tuple(start), tuple(step))


def dense_by_loop(grid: PlaneGrid, shape) -> Tensor:
    """Trilinear interpolation between the centres of entries, one voxel at a time."""
    values = grid.values.double().numpy()
    result = np.zeros((len(values), *shape))
    for voxel in np.ndindex(*shape):
        corners = []
        for p, b, s, n in zip(voxel, grid.start, grid.step, values.shape[1:], strict=True):
            at = min(max((p + 0.5 - b) / s - 0.5, 0), n - 1)
            low = min(int(at), max(n - 2, 0))
            corners.append([(low, 1 - at + low), (min(low + 1, n - 1), at - low)])
        for (z, a), (y, b), (x, c) in product(*corners):
            result[:, *voxel] += a * b * c * values[:, z, y, x]
    return torch.from_numpy(result).float()


@st.composite
def grids_and_boxes(draw):
    """A plane's grid over a volume, and a box inside the volume, often at its border."""
    plane = draw(st.sampled_from(PLANES))
    shape = [draw(st.integers(1, 14)) for _ in range(3)]
    steps = [draw(st.sampled_from(STEPS)) for _ in range(3)]
    start = [-draw(st.floats(0, 1.9)) * s for s in steps]
    every = draw(st.integers(1, 6))
    offset = [draw(st.integers(0, n - 1)) for n in shape]
    size = [draw(st.integers(1, n - o)) for n, o in zip(shape, offset, strict=True)]
    return plane, shape, grid_over(shape, plane, steps, start, every=every), offset, size


@pytest.mark.parametrize(("n_in", "n_out"), [(1, 5), (4, 28), (7, 40), (18, 125), (5, 3), (6, 6)])
def test_interpolation_is_that_of_torch(n_in, n_out):
    values = torch.rand(1, 3, n_in, generator=torch.Generator().manual_seed(0))
    matrix = interpolation_matrix(n_out, n_in, 0.0, n_out / n_in)
    expected = F.interpolate(values, size=n_out, mode="linear", align_corners=False)
    torch.testing.assert_close(values @ matrix.mT, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(n_out))


@pytest.mark.parametrize("plane", PLANES)
def test_upsampling_is_torchs_bilinear_interpolation_of_every_slice(plane):
    normal = NORMAL_AXIS[plane]
    shape, entries = (10, 21, 36), [4, 3, 5]
    entries[normal] = shape[normal]
    values = torch.rand(2, *entries, generator=torch.Generator().manual_seed(1))
    step = tuple(n / e for n, e in zip(shape, entries, strict=True))
    found = upsample(PlaneGrid(values, (0.0, 0.0, 0.0), step), shape, plane)
    slices = values.movedim(1 + normal, 0)
    size = [n for a, n in enumerate(shape) if a != normal]
    expected = F.interpolate(slices, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, expected.movedim(0, 1 + normal), rtol=0, atol=1e-5)


@given(grids_and_boxes())
def test_upsampling_is_interpolation_between_the_centres_of_entries(drawn):
    plane, shape, grid, _, _ = drawn
    torch.testing.assert_close(
        upsample(grid, shape, plane), dense_by_loop(grid, shape), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("plane", PLANES)
def test_slices_that_have_tokens_keep_them_and_those_between_are_between(plane):
    normal = NORMAL_AXIS[plane]
    grid = grid_over((13, 13, 13), plane, (1.0, 1.0, 1.0), every=4)  # slices 0, 4, 8, 12
    dense = upsample(grid, (13, 13, 13), plane).movedim(1 + normal, 0)
    values = grid.values.movedim(1 + normal, 0)
    assert torch.equal(dense[::4], values)
    torch.testing.assert_close(dense[5], 0.75 * values[1] + 0.25 * values[2])


@given(grids_and_boxes())
def test_cropping_then_upsampling_is_upsampling_then_cropping(drawn):
    plane, shape, grid, offset, size = drawn
    box = tuple(slice(o, o + s) for o, s in zip(offset, size, strict=True))
    found = upsample(crop(grid, offset, size), size, plane)
    torch.testing.assert_close(found, upsample(grid, shape, plane)[:, *box], rtol=0, atol=1e-5)


@given(grids_and_boxes(), st.data())
def test_a_crop_of_a_crop_is_a_crop(drawn, data):
    plane, _, grid, offset, size = drawn
    inner = [data.draw(st.integers(0, n - 1)) for n in size]
    least = [n - i for n, i in zip(size, inner, strict=True)]
    twice = crop(crop(grid, offset, size), inner, least)
    once = crop(grid, [o + i for o, i in zip(offset, inner, strict=True)], least)
    torch.testing.assert_close(
        upsample(twice, least, plane), upsample(once, least, plane), rtol=0, atol=1e-5
    )


@given(
    st.sampled_from(PLANES),
    st.tuples(*[st.sampled_from(STEPS)] * 3),
    st.tuples(*[st.integers(0, 12)] * 3),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.integers(1, 6),
)
def test_crops_of_one_size_have_as_many_entries(plane, steps, offset, size, every):
    grid = grid_over((21, 21, 21), plane, steps, start=[-0.3 * s for s in steps], every=every)
    here, there = crop(grid, offset, size), crop(grid, (0, 3, 1), size)
    assert here.values.shape == there.values.shape
    if every == 1:
        assert here.values.shape[1 + NORMAL_AXIS[plane]] == size[NORMAL_AXIS[plane]]


def test_a_crop_typed_by_hand():
    values = torch.arange(5.0).reshape(1, 1, 1, 5).expand(1, 4, 3, 5)
    grid = PlaneGrid(values, (0.0, -1.0, -1.5), (1.0, 2.0, 2.25))
    first, count = entries_for(grid.start, grid.step, (1, 0, 3), (2, 2, 4))
    assert (first, count) == (
        (1, 0, 1),
        (2, 3, 4),
    )  # x: voxels 3.5 to 6.5 are at entries 1.72 to 3.06
    cropped = crop(grid, (1, 0, 3), (2, 2, 4))
    assert cropped.start == (0.0, -1.0, -1.5 + 2.25 - 3)
    assert cropped.values[0, 0, 0].tolist() == [1.0, 2.0, 3.0, 4.0]
    moved = placed_at(
        take(values, (1, 0, 4), (2, 3, 3)), grid.start, grid.step, (1, 0, 4), (1, 0, 9)
    )
    assert moved.values[0, 0, 0].tolist() == [4.0, 4.0, 4.0], "beyond the border it repeats"
    assert moved.start == (0.0, -1.0, -1.5 + 4 * 2.25 - 9)


@pytest.mark.parametrize(("axes", "flips"), ORIENTATIONS, ids=str)
def test_orienting_then_upsampling_is_upsampling_then_orienting(axes, flips):
    steps, start = (7.0, 125 / 18, 8.0), (-2.5, -0.25, -6.0)
    grids = {
        p: grid_over(SHAPE, p, steps, start, seed=i, every=1 + 2 * i) for i, p in enumerate(PLANES)
    }
    expected = {
        plane: upsample(grid, SHAPE, plane).permute(0, *(1 + a for a in axes))
        for plane, grid in grids.items()
    }
    shape = [SHAPE[a] for a in axes]
    moved = permute(grids, axes)
    assert set(moved) == set(PLANES)
    for plane in grids:
        turned = PLANES[axes.index(NORMAL_AXIS[plane])]
        found = upsample(flip(moved[turned], flips, shape), shape, turned)
        there = expected[plane].flip([1 + a for a in flips])
        torch.testing.assert_close(found, there, rtol=0, atol=1e-5)


def test_flipping_twice_changes_nothing():
    grid = grid_over(SHAPE, "xz", (7.0, 1.0, 2.25), (-3.5, 0.0, -1.0))
    again = flip(flip(grid, (0, 2), SHAPE), (0, 2), SHAPE)
    assert torch.equal(again.values, grid.values)
    assert again.start == pytest.approx(grid.start)


@pytest.mark.parametrize("planes", [PLANES, ("xz",), ("xy", "yz")], ids=str)
def test_projecting_then_upsampling_is_upsampling_then_projecting(planes):
    steps = (7.0, 125 / 18, 8.0)
    torch.manual_seed(0)
    fusion = TokenFusion(24, 5)
    grids = {
        p: grid_over(SHAPE, p, steps, (-3.0, -1.0, 0.0), 24, seed=i, every=1 + i)
        for i, p in enumerate(planes)
    }
    dense = average(grids, SHAPE)
    expected = fusion.project(dense.movedim(0, -1)).movedim(-1, 0)
    found = fusion(
        {p: g.values[None] for p, g in grids.items()},
        {p: g.placement[None] for p, g in grids.items()},
        SHAPE,
    )
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-5)


def test_the_average_counts_every_plane_alike():
    grids = {p: grid_over(SHAPE, p, (4.0, 4.0, 4.0), seed=i) for i, p in enumerate(PLANES)}
    expected = sum(upsample(grid, SHAPE, plane) for plane, grid in grids.items()) / 3
    torch.testing.assert_close(average(grids, SHAPE), expected)


def test_half_precision_tokens_are_upsampled_in_single_precision():
    grid = grid_over(SHAPE, "xy", (1.0, 7.0, 7.0))
    half = PlaneGrid(grid.values.half(), grid.start, grid.step)
    expected = upsample(PlaneGrid(half.values.float(), grid.start, grid.step), SHAPE, "xy")
    found = upsample(half, SHAPE, "xy")
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_a_placement_goes_to_a_tensor_and_back():
    grid = grid_over(SHAPE, "yz", (7.0, 2.25, 8.0), (-1.5, 0.25, -4.0))
    back = PlaneGrid.placed(grid.values, grid.placement)
    assert (back.start, back.step) == (grid.start, grid.step)
    assert grid.placement.tolist() == [[-1.5, 0.25, 0.0], [7.0, 2.25, 1.0]]


@pytest.mark.parametrize(
    ("shape", "step", "message"),
    [
        ((3, 4, 5), (1.0, 1.0, 1.0), "values must be"),
        ((2, 3, 4, 5), (1.0, 0.0, 2.0), "step must be positive"),
    ],
    ids=["3D", "no step"],
)
def test_rejects(shape, step, message):
    with pytest.raises(ValueError, match=message):
        PlaneGrid(torch.zeros(shape), (0.0, 0.0, 0.0), step)
