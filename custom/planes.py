"""Planes through a volume, and linear interpolation from a plane's tokens to voxels."""

from collections.abc import Sequence

import torch
from torch import Tensor

NORMAL_AXIS = {"xy": 0, "xz": 1, "yz": 2}
PLANES = tuple(NORMAL_AXIS)


def interpolation_matrix(
    n_out: int, n_in: int, start: Tensor | float, step: Tensor | float
) -> Tensor:
    """Linear interpolation from ``n_in`` entries to ``n_out`` voxels as a matrix.

    Row ``i`` reads the entries at ``(i + 0.5 - start) / step - 0.5``, clamped to the first and last
    entry. With ``start = 0`` and ``step = n_out / n_in`` this is torch's ``interpolate`` with
    ``align_corners=False``.

    Args:
        n_out: voxels.
        n_in: entries.
        start: corner of the first entry in voxels, a number or a tensor of shape (...).
        step: voxels per entry, same form as ``start``.

    Returns:
        (..., n_out, n_in) float32; rows sum to 1.
    """
    start, step = torch.as_tensor(start), torch.as_tensor(step)
    voxels = torch.arange(n_out, device=start.device, dtype=torch.float32) + 0.5
    entries = torch.arange(n_in, device=start.device, dtype=torch.float32)
    position = (voxels - start[..., None]) / step[..., None] - 0.5
    position = position.clamp(0, n_in - 1)
    return (1 - (position[..., :, None] - entries).abs()).clamp(min=0)


def upsample_batch(values: Tensor, placement: Tensor, shape: Sequence[int], plane: str) -> Tensor:
    """Linear upsampling of a batch of plane grids to voxels, along all three axes.

    Args:
        values: (B, C, d, h, w), zyx, float.
        placement: (B, 2, 3) start and step in voxels, see ``PlaneGrid``.
        shape: (D, H, W) of the box.
        plane: "xy", "xz" or "yz".

    Returns:
        (B, C, D, H, W) in the dtype of ``values``.
    """
    normal = NORMAL_AXIS[plane]
    for axis in (normal, *(a for a in range(3) if a != normal)):  # few entries at first
        matrix = interpolation_matrix(
            shape[axis], values.shape[2 + axis], placement[:, 0, axis], placement[:, 1, axis]
        ).to(values.dtype)
        moved = values.movedim(2 + axis, -1)
        values = (moved @ matrix.mT[:, None, None]).movedim(-1, 2 + axis)
    return values
