"""Whether a network can take the crops that it is to be trained on."""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import nn

from custom.checkpoints import first_mismatch
from custom.errors import InputError
from custom.networks.fusion import TokenUNet


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
    try:
        inner(image)
    except InputError:
        raise
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"the network cannot be trained on crops of {list(crop_size)} with "
            f"{network.inner_channels} channels in batches of {batch_size} "
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
