"""What a segmentation method offers, on whole arrays and block by block."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from custom.segmentation.fragments import UNCUT, Cut, Offset
from custom.segmentation.region_graph import RegionGraph

Triple = tuple[int, int, int]


class SegmentationMethod(Protocol):
    """From affinities to segments: at once, or in blocks of which nobody sees all.

    In blocks, every block has its own ``fragments``, of affinities that reach ``context`` voxels
    beyond it; only what lies in the block is kept. Blocks that touch tell from what each saw on
    the other's side which pieces are one fragment that a border cuts, and these are united before
    ``solve`` sees the graph, but for fragments that touch in a block: these it has kept apart
    (``custom.segmentation.settling.uncut``). So a method decides only what it would decide on a
    whole volume: which fragments are one segment.

    With one block, ``solve`` of the fragments' graph gives what ``__call__`` gives.

    A method is a frozen dataclass; ``type(method)(**method.describe())`` equals it, through JSON,
    which is how other processes get it.
    """

    @property
    def offsets(self) -> Sequence[Offset]:
        """K offsets of the affinities, voxels, zyx."""

    @property
    def context(self) -> Triple:
        """Voxels that a block's affinities reach beyond it on every side, zyx.

        Derived, not set: at least the largest component of all offsets along each axis, so that
        every voxel of a block has all its links; 0 along an axis that no offset leads along.
        """

    @property
    def links(self) -> Sequence[int]:
        """Channels of the affinities whose values between two fragments score their edge.

        An edge gets the histogram of these values, 256 levels (``RegionGraph.levels`` and
        ``counts``): a mean and every quantile come from it, and histograms of fragments that
        become one are added. Empty where ``solve`` needs none.
        """

    def __call__(
        self, affinities: NDArray[np.uint8], mask: NDArray[np.bool_] | None = None
    ) -> NDArray[np.uint64]:
        """Segments of a whole volume.

        Args:
            affinities: (K, D, H, W) uint8, 0 to 255; further channels are ignored.
            mask: (D, H, W), True where to segment; everywhere when left out.

        Returns:
            (D, H, W), 0 is background.
        """

    def fragments(
        self,
        affinities: NDArray[np.uint8],
        mask: NDArray[np.bool_] | None = None,
        cut: Cut = UNCUT,
    ) -> NDArray[np.uint64]:
        """Fragments of a volume, or of a part of one.

        What depends on the whole of a fragment, as its size or its mean affinity, is decided here
        for fragments that touch no cut face alone; ``solve`` decides the others
        (``RegionGraph.open``).

        Args:
            affinities: (K, D, H, W) uint8, 0 to 255; further channels are ignored.
            mask: (D, H, W), True where to segment; everywhere when left out.
            cut: faces where the volume goes on beyond ``affinities``.

        Returns:
            (D, H, W), 0 is background, else ids from 1 on without gaps.
        """

    def join(
        self, fragments: NDArray[np.uint64], affinities: NDArray[np.uint8]
    ) -> NDArray[np.uint64]:
        """Segments of a whole volume's ``fragments``: what ``__call__`` does after these.

        Args:
            fragments: (D, H, W); 0 is background.
            affinities: as of ``__call__``.

        Returns:
            (D, H, W), 0 is background.
        """

    def solve(self, graph: RegionGraph) -> NDArray[np.int64]:
        """The segment of every fragment.

        Fragments that no block saw whole (``graph.open``) are first judged by size and mean
        affinity, as ``fragments`` judges the others: ``custom.segmentation.settling.settle``.

        Args:
            graph: whole fragments of the whole volume, and the edges between them.

        Returns:
            (N,) numbers from 1 on; equal: one segment; 0: background.
        """

    def describe(self) -> dict[str, Any]:
        """All settings, plain values: the arguments of the constructor."""

    def describe_fragments(self) -> dict[str, Any]:
        """Those settings that ``fragments`` depends on: others leave fragments as they are."""

    def with_settings(self, **settings: Any) -> Self:
        """A copy with other settings.

        Raises:
            InputError: a setting is unknown.
        """


def same_fragments(one: SegmentationMethod, other: SegmentationMethod) -> bool:
    """Whether two methods make the same fragments."""
    kinds: list[Mapping[str, Any]] = [m.describe_fragments() for m in (one, other)]
    return type(one) is type(other) and kinds[0] == kinds[1]


def reach(offsets: Sequence[Offset]) -> Triple:
    """Largest component of some offsets along each axis, zyx; 0 without offsets."""
    z, y, x = (max((abs(offset[axis]) for offset in offsets), default=0) for axis in range(3))
    return z, y, x
