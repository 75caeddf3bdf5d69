import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from custom.errors import InputError
from custom.networks.batch_renorm import BatchRenorm
from custom.networks.blocks import UPSAMPLINGS, ResidualBlock, conv_block, up_layer
from custom.networks.norms import NORMS, normalization
from custom.networks.unet import UNet

STRIDES = [(1, 2, 2), (2, 2, 3)]


@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 13)] * 3),
    strides=st.sampled_from([None, STRIDES, [(1, 3, 2), 1]]),
    kernels=st.sampled_from([None, [(1, 3, 5), 3, (3, 1, 1)]]),
    upsampling=st.sampled_from(UPSAMPLINGS),
    dimensions=st.sampled_from([2, 3]),
)
def test_any_size_keeps_its_shape(shape, strides, kernels, upsampling, dimensions):
    network = UNet(
        *(2, 3, (4, 4, 8), strides, kernels), upsampling=upsampling, dimensions=dimensions
    ).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 2, *shape)).shape == (2, 3, *shape)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("channels", [(4, 6), (3, 5, 8)], ids=str)
@pytest.mark.parametrize("residual", [False, True])
def test_gradients_reach_every_parameter(norm, channels, residual):
    torch.manual_seed(0)
    network = UNet(2, 3, channels, norm=norm, residual=residual)
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


def test_a_2d_network_is_a_3d_one_whose_kernels_and_strides_are_1_along_z():
    torch.manual_seed(0)
    channels, strides, kernels = (
        (4, 6, 8),
        [(1, 2, 3), (1, 3, 2)],
        [(1, 3, 5), (1, 3, 3), (1, 5, 3)],
    )
    flat = UNet(2, 3, channels, strides, kernels, "batch", True, dimensions=2).eval()
    thick = UNet(2, 3, channels, strides, kernels, "batch", True).eval()
    state = flat.state_dict()
    thick.load_state_dict({name: w.unsqueeze(2) if w.ndim == 4 else w for name, w in state.items()})
    image = torch.randn(2, 2, 5, 11, 13)
    with torch.no_grad():
        torch.testing.assert_close(flat(image), thick(image), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_is_fused_into_a_level_reaches_the_decoder_and_the_next_level(
    dimensions, checkpointing
):
    torch.manual_seed(0)
    settings = {"dimensions": dimensions, "checkpointing": checkpointing}
    network = UNet(2, 3, (4, 6, 8), [(2, 2, 2), (2, 2, 3)], norm="batch", **settings)
    image = torch.randn(2, 2, 5, 11, 10)
    seen = {}

    def watch(level, features):
        seen[level] = features.shape[1:]
        return features

    assert torch.equal(network(image, watch), network(image))
    if dimensions == 3:
        assert seen == {0: (4, 8, 12, 12), 1: (6, 4, 6, 6), 2: (8, 2, 3, 2)}
    else:
        assert seen == {0: (4, 5, 12, 12), 1: (6, 5, 6, 6), 2: (8, 5, 3, 2)}
    for level in range(3):
        at_level = torch.zeros(seen[level], requires_grad=True)
        network(image, lambda n, x, a=at_level, at=level: x + a if n == at else x).sum().backward()
        assert at_level.grad.abs().amax((0, 2, 3)).min() > 0  # every section of every level
        changed = network(image, lambda n, x, at=level: 0 * x if n == at else x)
        assert not torch.allclose(changed, network(image))


def test_what_is_given_along_z_does_not_matter_in_2d():
    torch.manual_seed(0)
    one = UNet(2, 3, (4, 6), [(2, 2, 3)], [(5, 3, 3), 3], dimensions=2).eval()
    other = UNet(2, 3, (4, 6), [(1, 2, 3)], [(1, 3, 3), 3], dimensions=2).eval()
    other.load_state_dict(one.state_dict())
    image = torch.randn(1, 2, 3, 7, 8)
    with torch.no_grad():
        assert torch.equal(one(image), other(image))


@pytest.mark.parametrize("axis", range(3))
def test_kernels_say_how_far_a_level_sees(axis):
    kernel = [1, 1, 1]
    kernel[axis] = 5
    block = conv_block(1, 2, kernel, "batch").double().eval()
    image = torch.zeros(1, 1, 13, 13, 13, dtype=torch.float64)
    moved = image.clone()
    moved[0, 0, 6, 6, 6] = 1
    with torch.no_grad():
        seen = (block(moved) != block(image)).any(1)[0].nonzero()
    assert set(seen[:, axis].tolist()) <= set(range(2, 11))  # two convolutions, two voxels each
    assert len(seen) > 1
    for other in {0, 1, 2} - {axis}:
        assert set(seen[:, other].tolist()) == {6}


def test_a_residual_block_adds_its_input_before_the_last_relu():
    torch.manual_seed(0)
    same, wider = (ResidualBlock(2, n, (3, 3, 3), "group").eval() for n in (2, 5))
    x = torch.randn(1, 2, 3, 4, 5)
    for block in (same, wider):
        for layer in block.body:
            if hasattr(layer, "weight"):
                layer.weight.data.zero_()
    assert torch.equal(same(x), x.relu())
    assert torch.equal(wider(x), wider.shortcut(x).relu())
    assert wider.shortcut.kernel_size == (1, 1, 1)


def test_interpolation_projects_then_enlarges_about_the_centres_of_voxels():
    torch.manual_seed(0)
    up = up_layer(3, 2, (1, 3, 2), "interpolation")
    x = torch.randn(1, 3, 2, 4, 5)
    (weight, bias) = up.parameters()
    expected = F.interpolate(
        F.conv3d(x, weight, bias), (2, 12, 10), mode="trilinear", align_corners=False
    )
    torch.testing.assert_close(up(x), expected)


def test_a_transposed_convolution_gives_every_voxel_its_own():
    torch.manual_seed(0)
    up = up_layer(3, 2, (1, 3, 2), "transposed")
    x = torch.randn(1, 3, 2, 4, 5)
    moved = x.clone()
    moved[0, :, 1, 2, 3] += 1
    seen = (up(moved) != up(x)).any(1)[0].nonzero()
    assert seen.amin(0).tolist() == [1, 6, 6] and seen.amax(0).tolist() == [1, 8, 7]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_dropout_sets_whole_channels_to_zero_in_training_alone(residual, dimensions):
    torch.manual_seed(0)
    block = (ResidualBlock if residual else conv_block)(1, 2000, (3,) * dimensions, "batch", 0.3)
    x = torch.randn(2, 1, *(3, 4, 5)[:dimensions])
    zero = (block(x) == 0).flatten(2).all(2)
    assert 0.25 < zero.float().mean() < 0.35
    assert not torch.equal(zero[0], zero[1])
    assert (block.eval()(x) == 0).flatten(2).all(2).float().mean() < 0.05


def test_the_default_network_has_the_weights_of_the_first_version():
    found = {name: tuple(value.shape) for name, value in UNet(2, 3, (4, 6)).state_dict().items()}
    block = {"0.weight": (4, 2, 3, 3, 3), "3.weight": (4, 4, 3, 3, 3)}
    expected = {f"down.0.{name}": shape for name, shape in block.items()}
    expected |= {"down.1.0.weight": (6, 4, 3, 3, 3), "down.1.3.weight": (6, 6, 3, 3, 3)}
    expected |= {"merge.0.0.weight": (4, 8, 3, 3, 3), "merge.0.3.weight": (4, 4, 3, 3, 3)}
    for part, size in (("down.0", 4), ("down.1", 6), ("merge.0", 4)):
        for layer in (1, 4):
            expected |= {f"{part}.{layer}.{kind}": (size,) for kind in ("weight", "bias")}
    expected |= {"up.0.weight": (6, 4, 2, 2, 2), "up.0.bias": (4,)}
    expected |= {"head.weight": (3, 4, 1, 1, 1), "head.bias": (3,)}
    assert found == expected


@pytest.mark.parametrize(
    ("norm", "kind", "expected"),
    [
        ("group", nn.GroupNorm, {"num_groups": 4}),
        ({"name": "group", "groups": 3, "eps": 0.1}, nn.GroupNorm, {"num_groups": 3, "eps": 0.1}),
        ("instance", nn.InstanceNorm3d, {"affine": True, "track_running_stats": False}),
        ({"name": "batch", "momentum": 0.5}, nn.BatchNorm3d, {"momentum": 0.5}),
        (
            {"name": "batch_renorm", "warmup_steps": 7, "rmax": 2, "dmax": 1},
            BatchRenorm,
            {"warmup_steps": 7, "rmax": 2, "dmax": 1, "momentum": 0.01},
        ),
    ],
    ids=str,
)
def test_a_norm_has_the_options_that_it_is_given(norm, kind, expected):
    layer = normalization(norm, 12)
    assert type(layer) is kind
    assert {name: getattr(layer, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": (4,)}, "unet_channels must name at least two levels"),
        ({"channels": (4, 0, 4)}, "unet_channels must name at least two levels, whole numbers"),
        (
            {"strides": [(2, 2, 2)]},
            "each of the 2 steps between the 3 levels of unet_channels.* a list of 2, got",
        ),
        ({"strides": []}, "unet_strides .* must be a list of 2"),
        ({"strides": 2}, "unet_strides .* must be a list of 2, got 2"),
        ({"strides": [(2, 2), (2, 2)]}, "unet_strides .* must be a list of 3 numbers"),
        ({"strides": [(2, 0, 2), (2, 2, 2)]}, "must be 3 whole numbers from 1 on"),
        ({"strides": [2, "2"]}, "must be one or three whole numbers from 1 on, got '2'"),
        ({"kernels": [3, 3]}, "unet_kernels .* for each of the 3 levels.* must be a list of 3"),
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
