import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from custom.errors import InputError
from custom.networks.norms import NORMS
from custom.networks.unet import UNet

STRIDES = [(1, 2, 2), (2, 2, 3)]


@settings(max_examples=20)
@given(
    st.tuples(*[st.integers(1, 13)] * 3),
    st.sampled_from([None, STRIDES, [(1, 3, 2), (1, 1, 1)]]),
)
def test_any_size_keeps_its_shape(shape, strides):
    network = UNet(2, 3, channels=(4, 4, 8), strides=strides).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 2, *shape)).shape == (2, 3, *shape)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("channels", [(4, 6), (3, 5, 8)], ids=str)
def test_gradients_reach_every_parameter(norm, channels):
    torch.manual_seed(0)
    network = UNet(2, 3, channels, norm=norm)
    network(torch.randn(2, 2, 9, 11, 10)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_strides_are_the_steps_between_levels():
    torch.manual_seed(0)
    network = UNet(1, 1, (4, 4, 4), STRIDES).eval()
    shapes = []
    for block in network.down:
        block.register_forward_hook(lambda _, inputs, __: shapes.append(inputs[0].shape[2:]))
    network(torch.zeros(1, 1, 4, 8, 12))
    assert [tuple(shape) for shape in shapes] == [(4, 8, 12), (4, 4, 6), (2, 2, 2)]


def test_padding_repeats_the_far_border():
    torch.manual_seed(0)
    network = UNet(1, 2, (4, 6, 8), STRIDES).eval()
    image = torch.randn(1, 1, 3, 6, 7)
    padded = image[:, :, [0, 1, 2, 2]][:, :, :, [0, 1, 2, 3, 4, 5, 5, 5]]
    padded = padded[..., [0, 1, 2, 3, 4, 5, 6, 6, 6, 6, 6, 6]]
    with torch.no_grad():
        torch.testing.assert_close(network(image), network(padded)[..., :3, :6, :7])


def test_a_step_of_the_input_moves_the_output_along():
    torch.manual_seed(0)
    network = UNet(1, 1, (4, 6), [(1, 2, 3)], norm="batch").eval()
    image = torch.randn(1, 1, 20, 28, 42)
    moved = image.roll((1, 2, 3), dims=(2, 3, 4))
    with torch.no_grad():
        found, expected = network(moved), network(image).roll((1, 2, 3), dims=(2, 3, 4))
    inside = (..., slice(8, -8), slice(12, -12), slice(18, -18))
    torch.testing.assert_close(found[inside], expected[inside], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": (4,)}, "unet_channels must name at least two levels"),
        ({"channels": (4, 0, 4)}, "unet_channels must name at least two levels, whole numbers"),
        ({"strides": [(2, 2, 2)]}, "for each of 2 steps between levels.* must be a list of 2, got"),
        ({"strides": []}, "unet_strides .* must be a list of 2"),
        ({"strides": 2}, "unet_strides .* must be a list of 2, got 2"),
        ({"strides": [(2, 2), (2, 2)]}, "unet_strides .* must be a list of 3 numbers"),
        ({"strides": [(2, 0, 2), (2, 2, 2)]}, "must be 3 whole numbers from 1 on"),
        ({"strides": [2, "2"]}, "must be one or three whole numbers from 1 on, got '2'"),
        ({"kernels": [3, 3]}, "unet_kernels .* for each of 3 levels.* must be a list of 3"),
        ({"kernels": [3, (1, 3, 2), 3]}, "unet_kernels .* must be odd"),
        (
            {"norm": "layer"},
            "unet_norm must be a norm's name or an object with one, got 'layer'; k",
        ),
        ({"norm": "batch-renorm"}, "did you mean 'batch_renorm'"),
        ({"norm": 3}, "unet_norm must be .* got 3; known are batch, batch_renorm, group"),
        ({"norm": {"momentum": 0.1}}, "unet_norm must be a norm's name or an object with one"),
        ({"norm": {"name": "group", "momentum": 0.1}}, "'group' has the unknown key 'momentum'"),
        ({"norm": {"name": "group", "groups": 3}}, "3 does not divide 4"),
        ({"norm": {"name": "batch", "momentum": 0}}, "momentum must be above 0 and at most 1"),
        (
            {"norm": {"name": "batch_renorm", "rmax": 0.5}},
            "rmax must be a number from 1 on, got 0.5",
        ),
        ({"norm": {"name": "batch_renorm", "dmax": -1}}, "dmax must be a number from 0 on, got -1"),
        (
            {"norm": {"name": "batch_renorm", "warmup_steps": 0.5}},
            "warmup_steps must be a whole nu",
        ),
        ({"residual": "yes"}, "unet_residual must be true or false, got 'yes'"),
        ({"dropout": 1}, "unet_dropout must be a number from 0 to below 1, got 1"),
        ({"dropout": "0.1"}, "unet_dropout must be a number from 0 to below 1, got '0.1'"),
        ({"upsampling": "linear"}, "unet_upsampling must be one of transposed, interpolation, got"),
        ({"dimensions": 1}, "dimensions must be 2 or 3, got 1"),
        ({"checkpointing": "false"}, "checkpointing must be true or false, got 'false'"),
    ],
)
def test_rejects(arguments, message):
    with pytest.raises(InputError, match=message):
        UNet(1, 1, **{"channels": (4, 4, 4), **arguments})
