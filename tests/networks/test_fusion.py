import logging

import pytest
import torch
from torch import nn

from custom.errors import InputError
from custom.networks.fusion import TokenFusion, TokenUNet
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
