import pytest
import torch
from monai.networks.nets import DynUNet, SegResNetDS
from torch import Tensor, nn

from custom.crop_check import refuse_crop_size
from custom.errors import InputError
from custom.networks.any_size import AnySize
from custom.networks.fusion import TokenUNet
from custom.networks.norms import NORMS
from custom.networks.unet import UNet


def segresnet(channels: int, norm: str = "instance") -> SegResNetDS:
    return SegResNetDS(3, 8, channels, 2, norm=norm, blocks_down=[1, 1, 1])


def test_a_size_that_does_not_divide_is_one_sentence() -> None:
    network = TokenUNet(segresnet(4), 5, fused_channels=3)
    refuse_crop_size(network, (8, 12, 4), 1)
    with pytest.raises(
        InputError, match=r"crops of \[8, 12, 6\] with 4 channels in batches of 2 \(.*divisible by"
    ):
        refuse_crop_size(network, (8, 12, 6), 2)
    around = TokenUNet(AnySize(network.network, 4), 5, fused_channels=3)
    refuse_crop_size(around, (8, 12, 6), 2)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_single_voxel_that_cannot_be_normalised_is_one_sentence(norm: str) -> None:
    network = TokenUNet(segresnet(1, norm), 0)
    with pytest.raises(InputError, match=r"cannot be trained on crops of \[4, 4, 4\].*more than 1"):
        refuse_crop_size(network, (4, 4, 4), 1)
    if norm == "batch":
        refuse_crop_size(network, (4, 4, 4), 2)
    refuse_crop_size(network, (4, 4, 8), 1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_unet_takes_any_size(norm: str, dimensions: int) -> None:
    network = TokenUNet(UNet(1, 2, norm=norm, dimensions=dimensions, checkpointing=True), 0)
    for size in [(1, 1, 1), (4, 4, 4), (1, 7, 3)]:
        refuse_crop_size(network, size, 1)


def test_channels_that_do_not_fit_are_one_sentence() -> None:
    with pytest.raises(InputError, match=r"\[8, 8, 8\] with 3 channels .* mend its in_channels"):
        refuse_crop_size(TokenUNet(UNet(4, 2), 5, fused_channels=2), (8, 8, 8), 1)


@pytest.mark.parametrize(
    "inner",
    [
        UNet(1, 2, (4, 6), norm="batch_renorm"),
        DynUNet(3, 1, 2, [3] * 3, [1, 2, 1], [2, 1], [4, 6, 8]),  # has its layers under two names
    ],
    ids=lambda inner: type(inner).__name__,
)
def test_the_network_is_left_as_it_was(inner: nn.Module) -> None:
    network = TokenUNet(inner, 0).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    refuse_crop_size(network, (8, 8, 8), 1)
    assert not network.network.training
    for name, value in network.state_dict().items():
        assert value.device.type == "cpu" and torch.equal(before[name], value), name


class Other(nn.Module):
    """A network of the user's own."""

    def forward(self, image: Tensor) -> Tensor:
        raise AssertionError("is not run")


def test_networks_of_another_form_are_left_to_the_first_step() -> None:
    refuse_crop_size(Other(), (1, 1, 1), 1)
