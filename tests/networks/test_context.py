from collections.abc import Sequence
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from custom.context import coarse_volume
from custom.errors import InputError
from custom.networks.context import AttentionGate, ContextFusion, sample_context
from custom.networks.fusion import TokenUNet
from custom.networks.unet import UNet

SHAPE = (70, 62, 120)
STRIDES = [(1, 2, 2), (2, 1, 3)]
FACTORS = [(2, 3, 4), (4, 4, 4), (1, 2, 5)]
CROPS = [((20, 24, 30), (22, 19, 40)), ((0, 0, 0), (19, 18, 40)), ((47, 39, 83), (23, 23, 37))]
"""Corner and size: inside, at the near and at the far border of the volume."""


def centres(shape: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Centres of a level's voxels, voxels of the crop, (3, D, H, W)."""
    axes = [(torch.arange(n) + 0.5) * s for n, s in zip(shape, stride, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


@settings(max_examples=40)
@given(
    st.tuples(*[st.integers(20, 30)] * 3),
    st.tuples(*[st.integers(4, 9)] * 3),
    st.sampled_from(FACTORS),
    st.sampled_from([(1, 1, 1), (1, 2, 2), (2, 2, 6)]),
)
def test_a_level_finds_in_the_context_what_lies_at_its_own_voxels(
    offset: tuple[int, ...],
    shape: tuple[int, ...],
    factor: tuple[int, int, int],
    stride: tuple[int, int, int],
) -> None:
    """Of a volume whose values are positions every voxel of every level reads its own."""
    for axis in range(3):
        volume = centres(SHAPE, (1, 1, 1))[None, axis][None]
        context = coarse_volume(volume, {}, factor).around(offset, shape)
        image, placement = context["context_image"][None], context["context_placement"][None]
        level = [-(-n // s) for n, s in zip(shape, stride, strict=True)]
        found = sample_context(image, placement, stride, level)[0, 0]
        expected = centres(level, stride)[axis] + offset[axis]
        start, step = placement[0, :, axis].tolist()
        low, high = start + step / 2, start + (shape[axis] - 0.5) * step  # beyond, values go on
        expected = expected.clamp(low + offset[axis], high + offset[axis])
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def see_through(factor: Sequence[int]) -> ContextFusion:
    """A fusion of one channel that adds the context as it is."""
    fusion = ContextFusion(1, (1, 1, 1), list(factor), STRIDES).eval()
    for level, gate in enumerate(fusion.gates):
        assert isinstance(gate, AttentionGate)
        fusion.blocks[level] = nn.Identity()
        nn.init.ones_(gate.value.weight)
        nn.init.zeros_(gate.value.bias)
        nn.init.constant_(gate.gate[2].bias, 50.0)  # open
    return fusion


@pytest.mark.parametrize(("offset", "shape"), CROPS, ids=["inside", "near", "far"])
@pytest.mark.parametrize("factor", FACTORS, ids=str)
@pytest.mark.parametrize("level", range(3))
def test_a_landmark_in_crop_and_context_lands_on_the_same_voxel(
    offset: tuple[int, ...],
    shape: tuple[int, ...],
    factor: tuple[int, int, int],
    level: int,
) -> None:
    """A bright box in the volume, one entry of a level's context, seen once by either way."""
    fusion = see_through(factor)
    stride = fusion.strides[level]
    edge = [f * s for f, s in zip(factor, stride, strict=True)]
    blank = coarse_volume(torch.zeros(1, 1, *SHAPE), {}, factor).around(offset, shape)
    corner = [int(v) for v in blank["context_placement"][0]]
    padded = [-(-n // s) for n, s in zip(shape, (2, 2, 6), strict=True)]
    level_shape = [n * t // s for n, t, s in zip(padded, (2, 2, 6), stride, strict=True)]
    boxes = []
    for entry in product(*(range(-(-n // s)) for n, s in zip(shape, stride, strict=True))):
        box = [c + j * e for c, j, e in zip(corner, entry, edge, strict=True)]
        ends = [o + b + e for o, b, e in zip(offset, box, edge, strict=True)]
        if all(0 < b + e / 2 < n for b, e, n in zip(box, edge, shape, strict=True)) and all(
            e <= end <= n for end, e, n in zip(ends, edge, SHAPE, strict=True)
        ):
            boxes.append(box)
    assert boxes, "no middle of a box is in the crop"
    for box in boxes[:: -(-len(boxes) // 12)]:
        middle = [b + e / 2 for b, e in zip(box, edge, strict=True)]
        at = [slice(o + b, o + b + e) for o, b, e in zip(offset, box, edge, strict=True)]
        volume = torch.zeros(1, 1, *SHAPE)
        volume[(0, 0, *at)] = 1
        context = coarse_volume(volume, {}, factor).around(offset, shape)
        fuse = fusion(context["context_image"][None], context["context_placement"][None])
        found = fuse(level, torch.zeros(1, 1, *level_shape))[0, 0]
        crop = volume[(..., *(slice(o, o + n) for o, n in zip(offset, shape, strict=True)))]
        far = [p for n, t in zip(shape[::-1], (6, 2, 2), strict=True) for p in (0, -n % t)]
        crop = F.pad(crop, far, mode="replicate")
        own = F.avg_pool3d(crop, stride)[0, 0]
        away = (centres(level_shape, stride) - torch.tensor(middle)[:, None, None, None]).abs()
        nearest = (away <= torch.tensor(stride)[:, None, None, None] / 2).all(0)
        torch.testing.assert_close(own[nearest], own.max().expand(int(nearest.sum())))
        torch.testing.assert_close(found[nearest].max(), found.max())
        assert own.max() > 0 and found.max() > found.min()
        fused = fuse(level, own[None, None])[0, 0]
        torch.testing.assert_close(fused, own + found)


def network(norm: str = "group", dimensions: int = 3, tokens: int = 0) -> TokenUNet:
    channels = 3 if tokens else 1
    factor = [2, 3, 2] if dimensions == 3 else [1, 3, 2]
    torch.manual_seed(0)
    settings = {"strides": STRIDES, "norm": norm, "dimensions": dimensions}
    context = ContextFusion(channels, (4, 6, 8), factor, **settings)
    return TokenUNet(UNet(channels, 3, (4, 6, 8), **settings), tokens, 2, context=context)


def batch(
    shape: Sequence[int], size: int = 2, factor: Sequence[int] = (2, 3, 2)
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    start = [-(f - 1) * n / 2 for f, n in zip(factor, shape, strict=True)]
    placement = torch.tensor([start, [float(f) for f in factor]])
    images = torch.randn(2, size, 1, *shape, generator=generator)
    tokens = {
        f"{prefix}tokens_xy": torch.randn(size, 5, shape[0], 4, 3, generator=generator)
        for prefix in ("", "context_")
    }
    step = [[1.0, shape[1] / 4, shape[2] / 3]]
    places = torch.tensor([[[0.0, 0.0, 0.0], *step]]).expand(size, 2, 3)
    return {
        "image": images[0],
        "context_image": images[1],
        "context_placement": placement.expand(size, 2, 3),
        **tokens,
        "placement_xy": places,
        "context_placement_xy": places,
    }


def raw_of(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: v for name, v in given.items() if "_xy" not in name}


@settings(max_examples=15)
@given(st.tuples(*[st.integers(1, 13)] * 3), st.sampled_from([2, 3]))
def test_any_size_keeps_its_shape(shape: tuple[int, ...], dimensions: int) -> None:
    with torch.no_grad():
        found = network(dimensions=dimensions).eval()(**raw_of(batch(shape)))
    assert found.shape == (2, 3, *shape)


@pytest.mark.parametrize("norm", ["group", "instance", "batch"])
@pytest.mark.parametrize("tokens", [0, 5])
def test_gradients_reach_every_parameter(norm: str, tokens: int) -> None:
    given = batch((9, 11, 13))
    trained = network(norm, tokens=tokens)
    trained(**(given if tokens else raw_of(given))).square().mean().backward()
    for name, parameter in trained.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_tokens_of_the_context_are_seen() -> None:
    given = batch((6, 8, 9))
    trained = network(tokens=5).eval()
    with torch.no_grad():
        before = trained(**given)
        assert not torch.equal(
            trained(**{**given, "context_tokens_xy": given["tokens_xy"]}), before
        )
        features = torch.randn(2, 5, 6, 8, 9, generator=torch.Generator().manual_seed(2))
        dense = {**raw_of(given), "features": features}
        one, other = (trained(**dense, context_features=f) for f in (features, -features))
    assert not torch.equal(one, other)


def test_in_two_dimensions_a_section_sees_the_context_of_its_own() -> None:
    trained = network(dimensions=2).eval()
    given = raw_of(batch((5, 7, 9), factor=(1, 3, 2)))
    changed = {**given, "context_image": given["context_image"].clone()}
    changed["context_image"][:, :, 3] += 1
    assert trained.context is not None
    with torch.no_grad():
        one, other = (
            [
                trained.context(b["context_image"], b["context_placement"])(
                    level, torch.zeros(2, c, 5, 4, 4)
                )
                for level, c in enumerate((4, 6, 8))
            ]
            for b in (given, changed)
        )
    for a, b in zip(one, other, strict=True):
        differs = (a != b).flatten(3).any(-1).any(0).any(0)
        assert differs.tolist() == [False, False, False, True, False]


def test_a_closed_gate_leaves_features_as_they_are() -> None:
    gate = AttentionGate(5)
    nn.init.constant_(gate.gate[2].bias, -200.0)
    features, context = torch.randn(2, 1, 5, 3, 4, 2).unbind()
    assert torch.equal(gate(features, context), features)


# --- mistakes ---


def test_training_without_a_context_is_refused() -> None:
    given = raw_of(batch((4, 6, 6)))
    with pytest.raises(InputError, match="to be trained with a context, but the batch has none"):
        network().train()(given["image"])


def test_tools_may_leave_the_context_out(caplog: pytest.LogCaptureFixture) -> None:
    given = raw_of(batch((4, 6, 7)))
    with torch.no_grad():
        assert network().eval()(given["image"]).shape == (2, 3, 4, 6, 7)
    assert "no context given: the network sees zeros in its place" in caplog.text


def test_a_context_for_a_network_without_is_refused() -> None:
    plain = TokenUNet(UNet(1, 3, (4, 6)), 0)
    with pytest.raises(InputError, match="the data have a context, but the network takes none"):
        plain(**raw_of(batch((4, 6, 7))))


def test_a_network_that_cannot_take_a_context_is_refused() -> None:
    context = ContextFusion(1, (4, 6), 2)
    with pytest.raises(InputError, match="Conv3d cannot take a context: set context_factor"):
        TokenUNet(nn.Conv3d(1, 1, 1), 0, context=context)


def test_a_context_of_other_levels_is_refused() -> None:
    with pytest.raises(InputError, match="give both unet_strides"):
        TokenUNet(UNet(1, 1, (4, 6)), 0, context=ContextFusion(1, (4, 6), 2, [(1, 2, 2)]))
    uneven = TokenUNet(UNet(1, 1, (4, 6)), 0, context=ContextFusion(1, (4, 8), 2))
    with pytest.raises(InputError, match="level 1 of the network has 6 channels, of its context 8"):
        uneven(**raw_of(batch((8, 8, 8))))


def test_checkpointing_changes_no_gradient() -> None:
    given, gradients = raw_of(batch((6, 8, 10))), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        settings = {"norm": "batch", "checkpointing": checkpointing}
        context = ContextFusion(1, (4, 6), 2, **settings)
        trained = TokenUNet(UNet(1, 2, (4, 6), **settings), 0, context=context)
        trained(**given).square().mean().backward()
        state = {n: b for n, b in trained.named_buffers() if b.is_floating_point()}
        gradients.append([*(p.grad for p in trained.parameters()), *state.values()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimensions": 2}, r"context_factor must be 1 along z: set it to \[1, 4, 4\]"),
        ({"factor": 0}, "context_factor must be one or three whole numbers"),
        ({"strides": [2, 2]}, "unet_strides .* must be a list of 1"),
        ({"kernels": [3, 2]}, "unet_kernels .* must be odd"),
        ({"norm": "layer"}, "unet_norm must be a norm's name"),
        ({"checkpointing": "false"}, "checkpointing must be true or false"),
    ],
    ids=["2D", "factor", "strides", "kernels", "norm", "checkpointing"],
)
def test_rejects(changes: dict[str, object], message: str) -> None:
    given = {"channels": (4, 6), "factor": 4}
    with pytest.raises(InputError, match=message):
        ContextFusion(1, **{**given, **changes})  # type: ignore[arg-type]
