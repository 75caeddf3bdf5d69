"""Learned upsampling of plane grids: linear doubling plus what a small convolution adds."""

from torch import Tensor, nn
from torch.nn import functional

from custom.errors import InputError
from custom.planes import NORMAL_AXIS


class LearnedUpsampling(nn.Module):
    """Doubles the resolution of a plane grid along its two in-plane axes, some times over.

    A step is bilinear interpolation plus a residual: a 3 x 3 convolution in the plane, GELU, and a
    1 x 1 convolution to four entries for each (pixel shuffle), which starts at zero. So it begins
    as linear upsampling does. Twice linear is not once linear: a corner of the piecewise linear
    interpolant is cut, by at most a sixth of the second difference of the entries along each axis,
    whatever the number of steps; where entries lie on a line nothing changes.

    An entry becomes four that together cover the same voxels, so positions are exact. All planes
    share the weights, as they share the projection.

    Args:
        channels: of the grids.
        steps: number of doublings; 0 leaves grids as they are.

    Raises:
        InputError: ``steps`` is not a whole number from 0 to 8.

    Source:
        Pixel shuffle: Shi et al. 2016, CVPR. Zero-initialised residual: Goyal et al. 2017,
        arXiv:1706.02677.
    """

    def __init__(self, channels: int, steps: int) -> None:
        super().__init__()
        if type(steps) is not int or not 0 <= steps <= 8:
            raise InputError(
                f"the network's upsampling_steps must be a whole number from 0 to 8, got {steps!r}."
            )
        self.steps = nn.ModuleList(_Doubling(channels) for _ in range(steps))

    def forward(self, values: Tensor, placement: Tensor, plane: str) -> tuple[Tensor, Tensor]:
        """The finer grid and its placement.

        Args:
            values: (B, C, d, h, w), zyx, see ``PlaneGrid``.
            placement: (B, 2, 3) start and step in voxels.
            plane: "xy", "xz" or "yz".

        Returns:
            Entries twice as many per step along the in-plane axes, and there half as large; along
            the normal as they were.
        """
        if not self.steps:
            return values, placement
        normal = NORMAL_AXIS[plane]
        slices = values.movedim(2 + normal, 1)
        batch = slices.shape[:2]
        grids = slices.flatten(0, 1)
        for step in self.steps:
            grids = step(grids)
        halved = placement.new_full((3,), 0.5 ** len(self.steps))
        halved[normal] = 1
        finer = placement.clone()
        finer[:, 1] *= halved
        return grids.reshape(*batch, *grids.shape[1:]).movedim(1, 2 + normal), finer


class _Doubling(nn.Module):
    """One step, on grids (N, C, a, b)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.look = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="replicate")
        self.add = nn.Conv2d(channels, 4 * channels, 1)
        nn.init.zeros_(self.add.weight)
        assert self.add.bias is not None
        nn.init.zeros_(self.add.bias)

    def forward(self, grids: Tensor) -> Tensor:
        """(N, C, 2a, 2b)."""
        linear = functional.interpolate(grids, scale_factor=2, mode="bilinear", align_corners=False)
        added: Tensor = self.add(functional.gelu(self.look(grids)))
        return linear + functional.pixel_shuffle(added, 2)
