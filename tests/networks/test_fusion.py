import logging

import pytest
import torch
from torch import nn

from custom.errors import InputError
from custom.networks.fusion import ConcatFusion, TokenFusion, TokenUNet, WeightedFusion
from custom.networks.unet import UNet
from custom.planes import NORMAL_AXIS, PLANES, upsample_batch

SHAPE = (8, 9, 11)
CHANNELS = 5


def tokens(batch=2, planes=PLANES, seed=0):
    """Tokens and placements of a batch, by the network's argument names."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for plane in planes:
        normal = NORMAL_AXIS[plane]
        count = [SHAPE[a] if a == normal else 4 for a in range(3)]
        step = [1.0 if a == normal else 3.5 for a in range(3)]
        start = [0.0 if a == normal else -2.25 for a in range(3)]
        found[f"tokens_{plane}"] = torch.randn(batch, CHANNELS, *count, generator=generator)
        found[f"placement_{plane}"] = torch.tensor([[start, step]] * batch)
    return found


def image(batch=2):
    return torch.randn(batch, 1, *SHAPE, generator=torch.Generator().manual_seed(9))


def network(use_raw=True, token_channels=CHANNELS, fused=3):
    torch.manual_seed(0)
    channels = int(use_raw) + (fused if token_channels else 0)
    return TokenUNet(UNet(channels, 4, (4, 6)), token_channels, fused, use_raw)


class Echo(nn.Module):
    """Its input, to see what the inner network gets."""

    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("use_raw", "token_channels"),
    [(True, CHANNELS), (True, 0), (False, CHANNELS)],
    ids=["both", "raw only", "tokens only"],
)
def test_every_input_that_is_asked_for_gets_gradients(use_raw, token_channels):
    raw, given = image().requires_grad_(), tokens()
    for plane in PLANES:
        given[f"tokens_{plane}"].requires_grad_()
    built = network(use_raw, token_channels)
    found = built(raw, **given)
    assert found.shape == (2, 4, *SHAPE)
    found.square().mean().backward()
    for name, parameter in built.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert (raw.grad is not None) is use_raw
    for plane in PLANES:
        assert (given[f"tokens_{plane}"].grad is not None) is bool(token_channels)


def test_the_inner_network_sees_raw_then_the_fused_tokens():
    built = TokenUNet(Echo(), CHANNELS, 3)
    found = built(image(), **tokens())
    assert torch.equal(found[:, :1], image())
    values = {p: tokens()[f"tokens_{p}"] for p in PLANES}
    places = {p: tokens()[f"placement_{p}"] for p in PLANES}
    assert torch.equal(found[:, 1:], built.fusion(values, places, SHAPE))


def test_a_missing_plane_does_not_count_in_the_mean():
    built, given = TokenUNet(Echo(), CHANNELS, 3, use_raw=False), tokens()

    def fused(*planes):
        return built(image(), **{k: v for k, v in given.items() if k[-2:] in planes})

    torch.testing.assert_close((fused("xy") + fused("xz")) / 2, fused("xy", "xz"))
    assert not torch.allclose(fused("xy"), fused("xz"))


def test_fusion_projects_every_plane_alike():
    fusion = TokenFusion(CHANNELS, 2)
    given = tokens(batch=1, planes=("yz",))
    found = fusion({"yz": given["tokens_yz"]}, {"yz": given["placement_yz"]}, SHAPE)
    dense = upsample_batch(given["tokens_yz"], given["placement_yz"], SHAPE, "yz")
    weight, bias = fusion.project.weight, fusion.project.bias
    expected = torch.einsum("oc,bczyx->bozyx", weight, dense) + bias[:, None, None, None]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_half_precision_tokens_are_projected_in_single_precision():
    given = tokens()
    half = {k: v.half() if k.startswith("tokens") else v for k, v in given.items()}
    rounded = {k: v.float() for k, v in half.items()}
    built = network()
    assert torch.equal(built(image(), **half), built(image(), **rounded))


def test_training_without_tokens_is_a_mistake():
    with pytest.raises(InputError, match="trained with tokens, but the batch has none"):
        network()(image())


def test_evaluation_without_tokens_sees_zeros_and_says_so(caplog):
    built = TokenUNet(Echo(), CHANNELS, 3).eval()
    with caplog.at_level(logging.WARNING):
        found = built(image())
    assert torch.equal(found[:, 1:], torch.zeros(2, 3, *SHAPE))
    assert "zeros in their place" in caplog.text


def test_a_raw_only_network_has_no_weights_for_tokens():
    built = network(token_channels=0)
    assert not any("fusion" in name for name in built.state_dict())
    assert torch.equal(built(image()), built(image(), **tokens()))


def test_a_network_without_any_input_is_a_mistake():
    with pytest.raises(InputError, match="needs raw, tokens or both"):
        TokenUNet(Echo(), token_channels=0, use_raw=False)


def test_fusing_nothing_is_an_error():
    with pytest.raises(ValueError, match="no tokens to fuse"):
        TokenFusion(CHANNELS, 2)({}, {}, SHAPE)


def by_plane(given):
    """Tokens and placements of a batch, by plane."""
    planes = [name[-2:] for name in given if name.startswith("tokens")]
    return tuple({p: given[f"{kind}_{p}"] for p in planes} for kind in ("tokens", "placement"))


def randomised(module, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return module


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("planes", [PLANES, ("xy", "yz"), ("xz",)], ids=str)
def test_weighted_fusion_begins_as_the_mean_of_the_planes_that_are_given(steps, planes):
    torch.manual_seed(0)
    mean = TokenFusion(CHANNELS, 2, steps)
    weighted = WeightedFusion(CHANNELS, 2, steps)
    weighted.load_state_dict(mean.state_dict(), strict=False)
    given = by_plane(tokens(planes=planes))
    torch.testing.assert_close(weighted(*given, SHAPE), mean(*given, SHAPE))


def test_weighted_fusion_weighs_every_channel_of_every_plane_by_softmax():
    fusion = randomised(WeightedFusion(CHANNELS, 2))
    values, places = by_plane(tokens())
    for planes in (PLANES, ("xz", "yz")):
        shares = torch.stack([fusion.logits[p] for p in planes]).exp()
        shares = shares / shares.sum(0)
        alone = [fusion({p: values[p]}, {p: places[p]}, SHAPE) for p in planes]
        expected = sum(s[:, None, None, None] * a for s, a in zip(shares, alone, strict=True))
        found = fusion({p: values[p] for p in planes}, places, SHAPE)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("steps", [0, 1])
def test_concatenation_projects_every_plane_by_itself_and_joins_them(steps):
    fusion = randomised(ConcatFusion(CHANNELS, 2, steps))
    values, places = by_plane(tokens())
    parts = []
    for plane in PLANES:
        one = TokenFusion(CHANNELS, 2, steps)
        one.project, one.refine = fusion.project[plane], fusion.refine[plane]
        parts.append(one({plane: values[plane]}, {plane: places[plane]}, SHAPE))
    hidden = nn.functional.gelu(torch.cat(parts, dim=1))
    kernel, bias = fusion.join.weight[..., 0, 0, 0], fusion.join.bias[:, None, None, None]
    expected = torch.einsum("oc,bczyx->bozyx", kernel, hidden) + bias
    torch.testing.assert_close(fusion(values, places, SHAPE), expected)
    assert [tuple(part.weight.shape) for part in fusion.project.values()] == [(2, CHANNELS)] * 3


@pytest.mark.parametrize("kind", [WeightedFusion, ConcatFusion])
def test_the_order_of_the_planes_in_a_batch_does_not_matter(kind):
    fusion = randomised(kind(CHANNELS, 2))
    values, places = by_plane(tokens())
    turned = {plane: values[plane] for plane in reversed(PLANES)}
    torch.testing.assert_close(fusion(turned, places, SHAPE), fusion(values, places, SHAPE))


def test_concatenation_without_one_of_its_planes_is_a_mistake():
    with pytest.raises(InputError, match=r"every plane in features.planes, .* has none of xz: use"):
        ConcatFusion(CHANNELS, 2)(*by_plane(tokens(planes=("xy", "yz"))), SHAPE)


@pytest.mark.parametrize("kind", [WeightedFusion, ConcatFusion])
def test_a_plane_that_the_fusion_was_not_made_for_is_a_mistake(kind):
    fusion = kind(CHANNELS, 2, planes=("xy",))
    assert fusion(*by_plane(tokens(planes=("xy",))), SHAPE).shape == (2, 2, *SHAPE)
    with pytest.raises(InputError, match=r"tokens of plane xz, which the network was not made for"):
        fusion(*by_plane(tokens(planes=("xy", "xz"))), SHAPE)


@pytest.mark.parametrize("fusion", ["weighted", "concat"])
def test_dense_features_have_no_planes_to_tell_apart(fusion):
    built = TokenUNet(Echo(), CHANNELS, 3, fusion=fusion)
    message = f"fusion '{fusion}' takes the tokens of each plane, .* set fusion to 'mean', or featu"
    with pytest.raises(InputError, match=message):
        built(image(), features=torch.zeros(2, CHANNELS, *SHAPE))


@pytest.mark.parametrize("fusion", ["mean", "weighted", "concat"])
def test_under_autocast_tokens_are_upsampled_in_bfloat16(fusion):
    """Values of voxels are what takes the memory."""
    torch.manual_seed(0)
    built = TokenUNet(Echo(), CHANNELS, 3, use_raw=False, fusion=fusion)
    with torch.autocast("cpu", torch.bfloat16):
        found = built(image(), **tokens())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), built(image(), **tokens()), atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fusion": "sum"}, "fusion must be one of mean, weighted, concat, got 'sum'"),
        (
            {"token_channels": 0, "upsampling_steps": 2},
            "without tokens .* but learned_upsampling_steps is 2",
        ),
        ({"token_channels": 0, "fusion": "concat"}, "without tokens .* fusion 'concat'"),
        ({"use_raw": "false"}, "use_raw must be true or false, got 'false'"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be_are_one_sentence(arguments, message):
    with pytest.raises(InputError, match=message):
        TokenUNet(Echo(), **{"token_channels": CHANNELS, **arguments})


@pytest.mark.parametrize("use_raw", [True, False])
@pytest.mark.parametrize("token_channels", [0, CHANNELS])
def test_the_inner_network_has_as_many_channels_as_it_is_said(use_raw, token_channels):
    if use_raw or token_channels:
        built = TokenUNet(Echo(), token_channels, 3, use_raw)
        given = tokens() if token_channels else {}
        assert built(image(), **given).shape[1] == built.inner_channels
