"""How often each answer is the true one in a batch: its class balance."""

import torch
from torch import Tensor

from custom.channels import ChannelLayout
from custom.distributed import total


def target_shares(target: Tensor, layout: ChannelLayout) -> dict[str, float]:
    """Shares of the answers among the voxels that count, in the batches of all processes.

    Args:
        target: (B, T, D, H, W), channels as in the layout.
        layout: of its channels.

    Returns:
        ``share_positive``, over all affinity offsets; or ``share_class_<id>`` of every class. Empty
        where nothing counts.
    """
    valid = target[:, layout.valid] > 0
    count = valid.sum()
    if layout.num_classes:
        ids = target[:, layout.class_id]
        found = [((ids == c) & valid).sum() for c in range(layout.num_classes)]
        names = [f"share_class_{c}" for c in range(layout.num_classes)]
    else:
        found = [((target[:, layout.affinities] > 0.5) & valid).sum()]
        names = ["share_positive"]
    every, *parts = total(torch.stack([count, *found])).tolist()
    return {name: part / every for name, part in zip(names, parts, strict=True)} if every else {}
