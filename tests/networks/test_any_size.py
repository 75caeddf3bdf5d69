from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets import DynUNet, MedNeXt, SegResNetDS
from torch import Tensor, nn

from custom.errors import InputError
from custom.networks.any_size import AnySize, pad_to_multiple


class Picky(nn.Module):
    """Its input, times two, if its sizes are multiples; remembers what it saw."""

    def __init__(self, multiple: tuple[int, ...]) -> None:
        super().__init__()
        self.multiple = multiple
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        assert [s % m for s, m in zip(x.shape[2:], self.multiple, strict=True)] == [
            0 for _ in self.multiple
        ]
        self.seen.append(x)
        return 2 * x


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    multiple=st.tuples(*[st.integers(1, 4)] * 3),
    dimensions=st.sampled_from([2, 3]),
)
def test_the_network_gets_sizes_that_it_takes_and_voxels_stay_where_they_are(
    shape, multiple, dimensions
):
    network = Picky(multiple[3 - dimensions :])
    image = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(AnySize(network, multiple, dimensions)(image), 2 * image)
    (seen,) = network.seen
    assert seen[0, 0].numel() > torch.tensor(network.multiple).prod()  # two voxels at the coarsest
    for size, own, m in zip(seen.shape[2:], shape[3 - dimensions :], network.multiple, strict=True):
        assert size < own + 2 * m


@settings(max_examples=20, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 7)] * 3), multiple=st.tuples(*[st.integers(1, 5)] * 3))
def test_padding_repeats_the_far_border(shape, multiple):
    image = torch.randn(1, 2, *shape, generator=torch.Generator().manual_seed(0))
    found = pad_to_multiple(image, multiple)
    for axis, size in enumerate(found.shape[2:], 2):
        place = torch.arange(size).clamp(max=image.shape[axis] - 1)
        image = image.index_select(axis, place)
    assert torch.equal(found, image)


def test_a_size_that_fits_is_not_padded():
    image = torch.randn(1, 2, 4, 6, 10)
    assert pad_to_multiple(image, (4, 3, 5)) is image


@pytest.mark.parametrize(
    "network",
    [
        DynUNet(3, 2, 3, [3] * 4, [1, 2, 2, 1], [2, 2, 1], [4, 6, 8, 8], deep_supervision=True),
        MedNeXt(3, 4, 2, 3, kernel_size=3, deep_supervision=True, blocks_down=[1], blocks_up=[1]),
        SegResNetDS(3, 8, 2, 3, blocks_down=[1, 1, 1], dsdepth=2),
    ],
    ids=lambda network: type(network).__name__,
)
def test_deep_supervision_is_one_sentence_in_training_and_no_matter_else(network):
    name = type(network).__name__
    with pytest.raises(InputError, match=rf"{name} must return one tensor .* turn off its deep"):
        AnySize(network.train(), 4)(torch.zeros(1, 2, 5, 6, 7))
    assert AnySize(network.eval(), 4)(torch.zeros(1, 2, 5, 6, 7)).shape == (1, 3, 5, 6, 7)


def test_a_network_that_changes_the_size_is_one_sentence():
    network = nn.Conv3d(1, 1, 3, stride=2, padding=1)
    with pytest.raises(
        InputError, match=r"Conv3d must return one tensor .* shape \[1, 1, 4, 6, 4\]"
    ):
        AnySize(network, (4, 6, 8))(torch.zeros(1, 1, 8, 12, 8))


def test_any_multiple_of_what_is_needed_will_do():
    torch.manual_seed(0)
    network = SegResNetDS(3, 8, 2, 3, blocks_down=[1, 1, 1], norm="instance").eval()
    image = torch.randn(1, 2, 8, 12, 16)
    with torch.no_grad():
        assert torch.equal(AnySize(network, 4)(image), network(image))
        assert torch.equal(AnySize(network, (4, 12, 4))(image), network(image))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"multiple": 0}, "the network's multiple must be one or three whole numbers from 1 on"),
        ({"multiple": [2, 2]}, "the network's multiple must be a list of 3 numbers"),
        ({"dimensions": 4}, "dimensions must be 2 or 3, got 4"),
        ({"dimensions": True}, "dimensions must be 2 or 3, got True"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be_are_one_sentence(arguments: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        AnySize(nn.Identity(), **arguments)
