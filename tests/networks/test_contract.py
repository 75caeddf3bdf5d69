"""What holds for every network that a configuration can name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from custom.networks.fusion import FUSIONS, TokenUNet
from custom.networks.norms import NORMS
from custom.networks.unet import UNet
from custom.planes import NORMAL_AXIS, PLANES
from tests.bundle.overlays import config, content

pytestmark = pytest.mark.slow

INNER = 3  # channels: raw and two of tokens
OUT = 5
TOKEN_CHANNELS = 4
MONAI_OVERLAYS = ("dynunet", "segresnet", "mednext")


def unet(**settings: Any) -> UNet:
    return UNet(INNER, OUT, **{"channels": (4, 6, 8), **settings})


def of_overlay(name: str, dimensions: int = 3) -> nn.Module:
    """The inner network of an overlay, narrower."""
    definition = content(name)["network_def#network"]
    narrow = {"filters": [4, 6, 8, 10], "init_filters": 8 if name == "segresnet" else 4}
    inner = definition["network"]
    inner |= {key: value for key, value in narrow.items() if key in inner}
    inner |= {"in_channels": INNER, "out_channels": OUT}
    parser = ConfigParser({"bootstrap": [], "dimensions": dimensions, "net": definition})
    network: nn.Module = parser.get_parsed_content("net")
    return network


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "default": unet,
    "2D": lambda: unet(dimensions=2),
    "anisotropic": lambda: unet(strides=[(1, 2, 2), (2, 3, 2)], kernels=[(1, 3, 3), (1, 5, 3), 3]),
    "residual": lambda: unet(residual=True),
    "residual 2D": lambda: unet(residual=True, dimensions=2, dropout=0.1),
    "dropout": lambda: unet(dropout=0.5),
    "interpolation": lambda: unet(upsampling="interpolation"),
    "interpolation 2D": lambda: unet(upsampling="interpolation", dimensions=2),
    "checkpointing": lambda: unet(checkpointing=True),
    "deep": lambda: unet(channels=(2, 3, 4, 5, 6)),
    "groups": lambda: unet(norm={"name": "group", "groups": 2}),
    **{norm: lambda norm=norm: unet(norm=norm) for norm in NORMS},
    **{f"{norm} 2D": lambda norm=norm: unet(norm=norm, dimensions=2) for norm in NORMS},
    **{name: lambda name=name: of_overlay(name) for name in MONAI_OVERLAYS},
    **{f"{name} 2D": lambda name=name: of_overlay(name, 2) for name in MONAI_OVERLAYS},
}
SIZES = [(1, 1, 1), (1, 9, 13), (5, 1, 2), (7, 11, 10), (8, 8, 8)]


def tokens(shape: tuple[int, int, int], batch: int) -> dict[str, Tensor]:
    """Tokens and placements of a batch, by the network's argument names."""
    generator = torch.Generator().manual_seed(4)
    found = {}
    for plane in PLANES:
        inside = [axis != NORMAL_AXIS[plane] for axis in range(3)]
        count = [-(-shape[a] // 4) + 1 if inside[a] else shape[a] for a in range(3)]
        step = [4.0 if inside[a] else 1.0 for a in range(3)]
        start = [-1.5 if inside[a] else 0.0 for a in range(3)]
        found[f"tokens_{plane}"] = torch.randn(batch, TOKEN_CHANNELS, *count, generator=generator)
        found[f"placement_{plane}"] = torch.tensor([[start, step]] * batch)
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_keeps_the_size_and_passes_gradients(name: str) -> None:
    torch.manual_seed(0)
    network = TokenUNet(NETWORKS[name](), TOKEN_CHANNELS, fused_channels=2)
    for shape in SIZES:
        for batch in (1, 2):
            network.train().zero_grad()
            image = torch.randn(batch, 1, *shape)
            output = network(image, **tokens(shape, batch))
            assert output.shape == (batch, OUT, *shape)
            output.square().sum().backward()
            for parameter in network.parameters():
                assert parameter.grad is not None and parameter.grad.isfinite().all()
            with torch.no_grad():
                assert network.eval()(image, **tokens(shape, batch)).isfinite().all()
    dead = [n for n, p in network.named_parameters() if not p.grad.abs().max() > 0]
    assert dead == [n for n in dead if "conv" in n and n.endswith("bias")]  # a norm follows


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_can_be_traced(name: str) -> None:
    torch.manual_seed(0)
    network = TokenUNet(NETWORKS[name](), TOKEN_CHANNELS, fused_channels=2).eval()
    image = torch.randn(1, 1, 6, 10, 9)
    with torch.no_grad(), pytest.warns():  # that sizes become constants
        traced = torch.jit.trace(network, image)
        other = torch.randn(1, 1, 6, 10, 9)
        torch.testing.assert_close(traced(other), network(other))


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("residual", [False, True])
def test_every_network_computes_under_autocast(norm: str, dimensions: int, residual: bool) -> None:
    network = unet(norm=norm, dimensions=dimensions, residual=residual, upsampling="interpolation")
    with torch.autocast("cpu", torch.bfloat16):
        output = network(torch.randn(2, INNER, 3, 9, 8))
    output.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", [n for n in NETWORKS if n.endswith("2D")])
@pytest.mark.parametrize("training", [False, True])
def test_a_2d_network_sees_every_section_apart(name: str, training: bool) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]().train(training and "batch" not in name and "residual" not in name)
    volume = torch.randn(2, INNER, 4, 9, 13)
    with torch.no_grad():
        found = network(volume)
        sections = [network(volume[:, :, z : z + 1]) for z in range(4)]
    torch.testing.assert_close(found, torch.cat(sections, dim=2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("planes", [PLANES, ("xy",), ("xz", "yz")], ids=str)
def test_every_fusion_passes_gradients_with_any_planes(
    fusion: str, steps: int, planes: tuple[str, ...]
) -> None:
    torch.manual_seed(0)
    network = TokenUNet(unet(), TOKEN_CHANNELS, 2, True, steps, fusion, planes)
    shape = (5, 9, 6)
    given = {k: v for k, v in tokens(shape, 2).items() if k[-2:] in planes}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for step in range(2):  # learned upsampling begins at zero, so its first layer is reached second
        optimizer.zero_grad()
        output = network(torch.randn(2, 1, *shape), **given)
        assert output.shape == (2, OUT, *shape)
        output.square().mean().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            alone = len(planes) == 1 and "logits" in name  # one plane counts all there is
            if (step or "look" not in name) and not alone:
                assert parameter.grad.abs().max() > 0, name
        optimizer.step()


def test_configured_networks_are_those_of_the_table() -> None:
    """Every argument of the shipped network is a key that a user can change."""
    definition = config("training")["network_def"]
    for part in (definition, definition["network"], definition["context"]):
        plain = [
            value
            for key, value in part.items()
            if key not in ("_target_", "_requires_", "network", "context")
        ]
        assert all(value.startswith(("@", "$")) for value in plain)
