"""What the tasks share whose blocks are those of one volume."""

from typing import Literal

from funlib.geometry import Coordinate, Roi

from custom.blockwise.tracked import Tracked
from custom.outputs.pyramids import Shape


class VolumeBlocks(Tracked):
    """A task on the blocks of a volume; those at its upper borders end there.

    Args:
        shape: (D, H, W).
        block: (D, H, W) of a block.
    """

    fit: Literal["shrink"] = "shrink"
    read_write_conflict: Literal[False] = False
    shape: Shape
    block: Shape

    @property
    def write_roi(self) -> Roi:
        """The volume."""
        return Roi((0, 0, 0), self.shape)

    @property
    def write_size(self) -> Coordinate:
        """Of a block."""
        return Coordinate(self.block)

    @property
    def context_size(self) -> Coordinate:
        """None."""
        return Coordinate(0, 0, 0)
