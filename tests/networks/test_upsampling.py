from typing import Any

import pytest
import torch
from torch import Tensor, nn

from custom.errors import InputError
from custom.mirroring import Mirroring, mirror_tokens
from custom.networks.fusion import TokenFusion, TokenUNet
from custom.networks.upsampling import LearnedUpsampling
from custom.planes import NORMAL_AXIS, PLANES, upsample_batch

SHAPE = (13, 29, 37)
STEP = (1.6, 5.25, 8.0)  # voxels per entry where an axis lies in the plane
START = (-1.1, -3.5, 2.25)


def grid(plane: str, channels: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random values of two crops and their placement; 1 voxel per entry along the normal."""
    normal = NORMAL_AXIS[plane]
    inside = [a != normal for a in range(3)]
    count = [int((SHAPE[a] - START[a]) / STEP[a]) + 2 if inside[a] else SHAPE[a] for a in range(3)]
    start = [START[a] if inside[a] else 0.0 for a in range(3)]
    step = [STEP[a] if inside[a] else 1.0 for a in range(3)]
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2, channels, *count, generator=generator)
    return values, torch.tensor([[start, step]] * 2)


def refined(values: Tensor, placement: Tensor, plane: str, steps: int) -> Tensor:
    """Dense result of an upsampling as it is initialised."""
    upsampling = LearnedUpsampling(values.shape[1], steps)
    finer, place = upsampling(values, placement, plane)
    return upsample_batch(finer, place, SHAPE, plane).detach()


def random_weights(module: nn.Module, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3


def in_plane(plane: str) -> list[int]:
    return [axis for axis in range(3) if axis != NORMAL_AXIS[plane]]


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_in_plane_axes_are_doubled_and_steps_halved(plane: str, steps: int) -> None:
    values, placement = grid(plane)
    finer, place = LearnedUpsampling(3, steps)(values, placement, plane)
    for axis in range(3):
        factor = 2**steps if axis in in_plane(plane) else 1
        assert finer.shape[2 + axis] == values.shape[2 + axis] * factor
        assert torch.equal(place[:, 1, axis] * factor, placement[:, 1, axis])
    assert torch.equal(place[:, 0], placement[:, 0])
    assert torch.equal(placement, grid(plane)[1])  # arguments are left alone


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_it_begins_as_linear_upsampling_but_for_cut_corners(plane: str, steps: int) -> None:
    values, placement = grid(plane)
    difference = refined(values, placement, plane, steps) - upsample_batch(
        values, placement, SHAPE, plane
    )
    bound = 0.0
    for axis in in_plane(plane):
        line = values.movedim(2 + axis, -1)
        line = torch.cat([line[..., :1], line, line[..., -1:]], -1)  # borders repeat
        bound += float(line.diff(n=2).abs().max()) / 6
    assert 0 < difference.abs().max() <= bound


@pytest.mark.parametrize("plane", PLANES)
def test_what_is_linear_stays_as_it_is(plane: str) -> None:
    """Between the centres of the second entry and the last but one, where nothing is clamped."""
    values, placement = grid(plane)
    values = torch.zeros_like(values)
    for axis, slope in zip(in_plane(plane), (0.7, -0.4), strict=True):
        ramp = slope * torch.arange(values.shape[2 + axis])
        values = (values.movedim(2 + axis, -1) + ramp).movedim(-1, 2 + axis)
    inner = [slice(None)] * 5
    for axis in in_plane(plane):
        low = START[axis] + 1.5 * STEP[axis]
        high = START[axis] + (values.shape[2 + axis] - 1.5) * STEP[axis]
        inner[2 + axis] = slice(max(0, int(low) + 1), int(min(high, SHAPE[axis])))
    found = refined(values, placement, plane, 3)[tuple(inner)]
    expected = upsample_batch(values, placement, SHAPE, plane)[tuple(inner)]
    assert found.numel() > 100
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_blob_stays_on_itself(plane: str, steps: int) -> None:
    values, placement = grid(plane, channels=1)
    entry = [size // 2 - 1 for size in values.shape[2:]]
    values = torch.zeros_like(values)
    values[0, 0, entry[0], entry[1], entry[2]] = 1
    dense = refined(values, placement, plane, steps)[0, 0].double()
    linear = upsample_batch(values, placement, SHAPE, plane)[0, 0].double()
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        where = torch.arange(SHAPE[axis]) + 0.5
        centre = float((dense.sum(others) * where).sum() / dense.sum())
        expected = float(placement[0, 0, axis] + (entry[axis] + 0.5) * placement[0, 1, axis])
        assert abs(centre - expected) < 0.2  # of a voxel: the blob is sampled at voxels
        assert abs(centre - float((linear.sum(others) * where).sum() / linear.sum())) < 0.2


@pytest.mark.parametrize("plane", PLANES)
def test_the_four_parts_of_an_entry_lie_along_the_in_plane_axes_in_zyx_order(plane: str) -> None:
    upsampling = LearnedUpsampling(2, 1)
    bias = upsampling.steps[0].add.bias
    bias.data = torch.arange(8.0)
    values, placement = grid(plane, channels=2)
    finer, _ = upsampling(torch.zeros_like(values), placement, plane)
    first, second = in_plane(plane)
    for channel in range(2):
        for a in range(2):
            for b in range(2):
                part = finer[:, channel].movedim([1 + first, 1 + second], [1, 2])
                assert (part[:, a::2, b::2] == 4 * channel + 2 * a + b).all()


@pytest.mark.parametrize("plane", PLANES)
def test_slices_are_refined_apart_and_entries_see_only_their_surroundings(plane: str) -> None:
    upsampling = LearnedUpsampling(3, 2)
    random_weights(upsampling)
    values, placement = grid(plane)
    changed = values.clone()
    normal = NORMAL_AXIS[plane]
    first, second = in_plane(plane)
    moved = changed.movedim([2 + normal, 2 + first, 2 + second], [2, 3, 4])
    moved[0, :, 4, 0, 0] += 1
    one, other = (upsampling(v, placement, plane)[0] for v in (values, changed))
    differs = (one - other).abs().amax(1) > 0
    differs = differs.movedim([1 + normal, 1 + first, 1 + second], [1, 2, 3])
    assert differs[0, 4, 0, 0] and not differs[1].any()
    where = differs[0].nonzero()
    assert set(where[:, 0].tolist()) == {4}
    assert where[:, 1:].max() < 3 * 4  # three entries, four parts along each axis


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 1, 5), (3, 4, 1)])
def test_any_size_is_refined(size: tuple[int, int, int]) -> None:
    upsampling = LearnedUpsampling(2, 3)
    random_weights(upsampling)
    for plane in PLANES:
        placement = torch.tensor([[[0.0, 0.0, 0.0], [2.5, 3.0, 7.0]]])
        finer, place = upsampling(torch.randn(1, 2, *size), placement, plane)
        dense = upsample_batch(finer, place, (5, 6, 7), plane)
        assert dense.shape == (1, 2, 5, 6, 7) and dense.isfinite().all()


def test_gradients_reach_every_weight_and_the_tokens() -> None:
    """The first layer's only after the second, which starts at zero, has made its first step."""
    torch.manual_seed(0)
    fusion = TokenFusion(5, 3, upsampling_steps=2)
    optimizer = torch.optim.SGD(fusion.parameters(), lr=0.1)
    grids = {plane: grid(plane, channels=5) for plane in PLANES}
    values = {plane: v.requires_grad_() for plane, (v, _) in grids.items()}
    placements = {plane: p for plane, (_, p) in grids.items()}
    for step in range(2):
        optimizer.zero_grad()
        fusion(values, placements, SHAPE).square().mean().backward()
        for name, parameter in fusion.named_parameters():
            assert parameter.grad is not None
            if step or "look" not in name:
                assert parameter.grad.abs().max() > 0, name
        optimizer.step()
    assert all(v.grad is not None and v.grad.abs().max() > 0 for v in values.values())


@pytest.mark.parametrize("axes", Mirroring([(1, 0, 0)]).mirrorings)
def test_mirrored_tokens_are_refined_at_mirrored_places(axes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    fusion = TokenFusion(5, 3, upsampling_steps=2)
    tokens: dict[str, Tensor] = {}
    for plane in PLANES:
        tokens[f"tokens_{plane}"], tokens[f"placement_{plane}"] = grid(plane, channels=5)
    mirrored = mirror_tokens(tokens, axes, SHAPE)
    one, other = (
        fusion(
            {p: t[f"tokens_{p}"] for p in PLANES}, {p: t[f"placement_{p}"] for p in PLANES}, SHAPE
        )
        for t in (tokens, mirrored)
    )
    torch.testing.assert_close(one.flip([2 + a for a in axes]), other, atol=1e-5, rtol=0)
    assert not torch.allclose(one, other, atol=1e-2)


def test_without_steps_the_network_is_the_one_from_before() -> None:
    names = set(TokenFusion(5, 3).state_dict())
    assert names == {"project.weight", "project.bias"}
    built = TokenUNet(nn.Identity(), 5, 3, upsampling_steps=2)
    assert built.fusion is not None and len(built.fusion.refine.steps) == 2


def test_features_that_are_dense_already_are_not_upsampled_again() -> None:
    features, image = torch.randn(1, 5, 4, 3, 2), torch.randn(1, 1, 4, 3, 2)
    assert TokenUNet(nn.Identity(), 5, 3)(image, features=features).shape == (1, 4, 4, 3, 2)
    with pytest.raises(InputError, match=r"set learned_upsampling_steps to 0, or features\.layout"):
        TokenUNet(nn.Identity(), 5, 3, upsampling_steps=1)(image, features=features)


def test_it_computes_under_autocast() -> None:
    values, placement = grid("xz")
    upsampling = LearnedUpsampling(3, 2)
    random_weights(upsampling)
    exact, _ = upsampling(values, placement, "xz")
    with torch.autocast("cpu", torch.bfloat16):
        found, place = upsampling(values, placement, "xz")
    assert place.dtype == torch.float32
    torch.testing.assert_close(found.float(), exact, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("steps", [-1, 9, 1.0, True, "2", None])
def test_a_number_of_steps_that_cannot_be_is_one_sentence(steps: Any) -> None:
    with pytest.raises(InputError, match="upsampling_steps must be a whole number from 0 to 8, go"):
        LearnedUpsampling(3, steps)
