"""From predicted affinities to segments, and the choice of the bias."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from custom.segmentation.agglomeration import agglomerate
from custom.segmentation.fragments import (
    Offset,
    remove_small_fragments,
    remove_weak_fragments,
    short_range_mean,
)
from custom.segmentation.mutex_watershed import mutex_watershed


@dataclass(frozen=True)
class MutexWatershedSegmenter:
    """Mutex watershed into fragments, removal of weak and small ones, agglomeration.

    Args:
        offsets: K affinity offsets, voxels, zyx.
        bias: as in ``mutex_watershed``.
        long_range_stride: one edge in ``long_range_stride`` along every axis for the long-range offsets.
        min_affinity: fragments with a lower mean short-range affinity become background; 0 keeps all.
        min_size: smaller fragments (voxels) are given to their neighbours.
        threshold: fragments linked by a higher mean affinity are joined (``agglomerate``); None joins
            none, the fragments are the segments.
    """

    offsets: Sequence[Offset]
    bias: float | Sequence[float] = -0.5
    long_range_stride: int = 4
    min_affinity: float = 0.0
    min_size: int = 0
    threshold: float | None = None

    def __call__(self, affinities: NDArray[np.uint8]) -> NDArray[np.uint64]:
        """Segments (D, H, W) of affinities (K, D, H, W) uint8, 0 to 255; more channels are ignored."""
        affinities = affinities[: len(self.offsets)]
        strides = [
            [1 if max(map(abs, o)) == 1 else self.long_range_stride] * 3 for o in self.offsets
        ]
        labels = mutex_watershed(affinities, self.offsets, self.bias, strides)
        mean = short_range_mean(affinities, self.offsets)
        if self.min_affinity > 0:
            labels = remove_weak_fragments(labels, mean, self.min_affinity)
        labels = remove_small_fragments(labels, self.min_size, mean)
        if self.threshold is not None:
            labels = agglomerate(labels, affinities, self.offsets, self.threshold)
        return labels

    def with_settings(self, **settings: Any) -> "MutexWatershedSegmenter":
        """A copy with other settings."""
        return replace(self, **settings)

    def describe(self) -> dict[str, Any]:
        """All settings, plain values."""
        return asdict(self)
