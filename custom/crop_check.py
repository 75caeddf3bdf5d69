"""Whether a network can take the crops that it is to be trained on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)

from custom.checkpoints import first_mismatch
from custom.errors import InputError
from custom.networks.fusion import TokenUNet

NO_VALUES = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
"""What a forward pass without values ends in where it asks for values."""


def refuse_crop_size(network: nn.Module, crop_size: Sequence[int], batch_size: int) -> None:
    """Say before the first step that a network cannot be trained on such crops.

    A copy of the inner network of a ``TokenUNet`` runs in training mode on shapes alone, without
    values; networks of another form are left to the first step.

    Args:
        network: that will be trained.
        crop_size: (D, H, W).
        batch_size: crops at once.

    Raises:
        InputError: it cannot.
    """
    network = getattr(network, "module", network)  # of DistributedDataParallel
    if not isinstance(network, TokenUNet):
        return
    inner = without_values(network.network).train()
    image = torch.empty(batch_size, network.inner_channels, *crop_size, device="meta")
    with explained(network, crop_size, batch_size):
        inner(image)


@contextmanager
def explained(network: nn.Module, crop_size: Sequence[int], batch_size: int) -> Iterator[None]:
    """Say in one sentence that a network's forward pass failed for the crops it was given.

    Raises:
        InputError: it did.
    """
    try:
        yield
    except (InputError, *NO_VALUES):
        raise
    except (ValueError, RuntimeError) as error:
        channels = getattr(network, "inner_channels", 1)
        raise InputError(
            f"the network cannot be trained on crops of {list(crop_size)} with {channels} "
            f"channels in batches of {batch_size} "
            f"({first_mismatch(error)}): choose another crop_size, put "
            f"custom.networks.any_size.AnySize around it, or mend its in_channels."
        ) from error


def without_values(network: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers have shapes only."""
    shapes: dict[int, object] = {
        id(b): torch.empty_like(b, device="meta") for b in network.buffers()
    }
    for parameter in network.parameters():
        shapes[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"))
    return deepcopy(network, shapes)  # parts with two names, as in DynUNet, stay one
