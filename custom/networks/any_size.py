"""Inputs of any size for networks that take some sizes only, and volumes for 2D networks."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from custom.errors import InputError
from custom.json_fields import per_axis


class AnySize(nn.Module):
    """A network, its input padded to a size that it takes and its output cropped back.

    Put it around networks of MONAI, such as DynUNet, SegResNetDS or MedNeXt.

    Args:
        network: takes (B, C, D, H, W) of sizes that ``multiple`` divides and returns one tensor of
            the same size; with ``dimensions`` 2, (B, C, H, W).
        multiple: one number or three, zyx: the product of the network's strides.
        dimensions: 3; or 2 for a network of images, which sees every section (plane yx) apart.

    Raises:
        InputError: ``multiple`` is not such numbers, ``dimensions`` neither 2 nor 3.
    """

    def __init__(
        self, network: nn.Module, multiple: int | Sequence[int] = 1, dimensions: int = 3
    ) -> None:
        super().__init__()
        self.network = network
        z, y, x = per_axis(multiple, "the network's multiple")
        self.dimensions = checked_dimensions(dimensions)
        self.multiple = (1 if dimensions == 2 else z, y, x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, K, D, H, W) of ``x`` (B, C, D, H, W).

        Raises:
            InputError: the network does not return one tensor of its input's size.
        """
        return on_any_size(self._checked, x, self.multiple, self.dimensions)

    def _checked(self, x: Tensor) -> Tensor:
        output = self.network(x)
        if isinstance(output, Tensor) and output.shape[2:] == x.shape[2:]:
            return output
        raise InputError(
            f"{type(self.network).__name__} must return one tensor of its input's size, "
            f"{list(x.shape[2:])}, but gave {_described(output)}: turn off its deep supervision, "
            f"and look at its strides."
        )


def on_any_size(
    network: Callable[[Tensor], Tensor], x: Tensor, multiple: Sequence[int], dimensions: int
) -> Tensor:
    """What a network that takes some sizes only gives for an input of any size.

    Args:
        network: keeps the size of its input: with ``dimensions`` 3 (B, C, D, H, W), with 2
            (B, C, H, W), for every section (plane yx) apart.
        x: (B, C, D, H, W).
        multiple: what the sizes must be divisible by, zyx.
        dimensions: 2 or 3.

    Returns:
        (B, K, D, H, W).
    """
    batch = x.shape[0]
    x = to_sections(x) if dimensions == 2 else x
    output = network(pad_to_multiple(x, multiple[3 - dimensions :]))
    for axis, size in enumerate(x.shape[2:], 2):
        output = output.narrow(axis, 0, size)
    return from_sections(output, batch) if dimensions == 2 else output


def to_sections(x: Tensor) -> Tensor:
    """Volumes (B, C, D, H, W) as images (B * D, C, H, W)."""
    return x.movedim(2, 1).flatten(0, 1)


def from_sections(x: Tensor, batch: int) -> Tensor:
    """Images (B * D, C, H, W) as so many volumes (B, C, D, H, W)."""
    return x.reshape(batch, -1, *x.shape[1:]).movedim(1, 2)


def checked_dimensions(dimensions: object) -> int:
    """2 or 3.

    Raises:
        InputError: anything else.
    """
    if type(dimensions) is not int or dimensions not in (2, 3):
        raise InputError(f"dimensions must be 2 or 3, got {dimensions!r}.")
    return dimensions


def pad_to_multiple(x: Tensor, multiple: Sequence[int]) -> Tensor:
    """Repeat the far border of ``x`` (B, C, ...) until ``multiple`` divides its size.

    A size that is ``multiple`` itself would leave the coarsest level a single voxel, which has no
    standard deviation to be normalised by, so it is padded by one more ``multiple`` along x.
    """
    missing = [-size % m for size, m in zip(x.shape[2:], multiple, strict=True)]
    if all(size <= m for size, m in zip(x.shape[2:], multiple, strict=True)):
        missing[-1] += multiple[-1]
    pad = [amount for last in reversed(missing) for amount in (0, last)]
    return F.pad(x, pad, mode="replicate") if any(pad) else x


def _described(output: object) -> str:
    if isinstance(output, Tensor):
        return f"one of shape {list(output.shape)}"
    return f"{type(output).__name__} of {len(output)}" if isinstance(output, Sequence) else "others"
