"""From predicted affinities to segments by thresholding them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from custom.json_fields import check_keys, whole_number
from custom.segmentation.components import LEVELS, affinity_components
from custom.segmentation.faces import face_channels
from custom.segmentation.fragments import (
    UNCUT,
    Cut,
    Offset,
    consecutive,
    remove_small_fragments,
    remove_weak_fragments,
    short_range_mean,
)
from custom.segmentation.masking import (
    SMALL,
    refuse_faceless,
    refuse_range,
    refuse_small,
)
from custom.segmentation.method import Triple, reach
from custom.segmentation.region_graph import RegionGraph
from custom.segmentation.settling import united
from custom.segmentation.small_segments import face_graph, looked_up, without_weak_and_small


@dataclass(frozen=True)
class ComponentSegmenter:
    """Connected components of thresholded affinities, without the weak and small ones.

    The fastest method, for objects that closed boundaries part, such as nuclei or mitochondria: one
    open face joins two objects. Where no offset leads along z, sections are segmented each on their
    own.

    Args:
        offsets: K affinity offsets, voxels, zyx; those across faces link voxels.
        threshold: as in ``affinity_components``.
        min_affinity: components with a lower mean short-range affinity become background; 0 keeps
            all.
        min_size: smaller components (voxels) go.
        small: where to: "background", or "neighbours": to the one with the highest mean affinity
            across faces.

    Raises:
        InputError: no offset leads to the next voxel, or a setting is out of range.
    """

    offsets: Sequence[Offset]
    threshold: float = 0.5
    min_affinity: float = 0.0
    min_size: int = 0
    small: str = "background"

    def __post_init__(self) -> None:
        refuse_faceless(self.offsets, "connected components")
        refuse_range(
            "connected components", threshold=self.threshold, min_affinity=self.min_affinity
        )
        whole_number(self.min_size, 0, "min_size of connected components")
        refuse_small(self.small)

    @property
    def context(self) -> Triple:
        """As of ``SegmentationMethod``."""
        return reach(self.offsets)

    @property
    def links(self) -> list[int]:
        """As of ``SegmentationMethod``: the offsets across faces."""
        return sorted(k for k, _ in face_channels(self.offsets).values())

    def __call__(
        self, affinities: NDArray[np.uint8], mask: NDArray[np.bool_] | None = None
    ) -> NDArray[np.uint64]:
        """Segments, as of ``SegmentationMethod``."""
        return self.join(self.fragments(affinities, mask), affinities)

    def fragments(
        self,
        affinities: NDArray[np.uint8],
        mask: NDArray[np.bool_] | None = None,
        cut: Cut = UNCUT,
    ) -> NDArray[np.uint64]:
        """Components, as of ``SegmentationMethod``, without those that one block can judge.

        These keep away from other blocks, so that they are in no other one.
        """
        affinities = affinities[: len(self.offsets)]
        labels = affinity_components(affinities, self.offsets, self.threshold, mask)
        shared = _reaching(labels, cut, self.context)
        judged = labels
        if self.min_affinity > 0:
            mean = short_range_mean(affinities, self.offsets)
            judged = remove_weak_fragments(judged, mean, self.min_affinity)
        if self.small == "background":
            judged = remove_small_fragments(judged, self.min_size)
        return consecutive(np.where(shared[labels] | (judged != 0), labels, 0))

    def join(
        self, fragments: NDArray[np.uint64], affinities: NDArray[np.uint8]
    ) -> NDArray[np.uint64]:
        """Segments (D, H, W) uint64 of components: themselves, but for small ones."""
        if self.small == "background":
            return fragments
        graph = face_graph(fragments, affinities, self.offsets)
        return looked_up(fragments, graph, self.solve(graph))

    def solve(self, graph: RegionGraph) -> NDArray[np.int64]:
        """Segments of components that borders cut: linked as voxels are, and judged as a whole."""
        part = np.repeat(np.arange(len(graph.edges)), np.diff(graph.starts))
        linking = np.zeros(len(graph.edges), dtype=np.bool_)
        linking[part[graph.levels > self.threshold * LEVELS]] = True
        groups = united(len(graph.ids), graph.edges[linking])
        limits = (self.min_affinity, self.min_size, self.small == SMALL[0])
        return without_weak_and_small(graph, groups, *limits)

    def with_settings(self, **settings: Any) -> "ComponentSegmenter":
        """A copy with other settings.

        Raises:
            InputError: a setting is unknown, or out of range.
        """
        check_keys(settings, [field.name for field in fields(self)], "a segmentation setting")
        return replace(self, **settings)

    def describe(self) -> dict[str, Any]:
        """All settings, plain values."""
        return asdict(self)

    def describe_fragments(self) -> dict[str, Any]:
        """Those settings that fragments depend on: all."""
        return self.describe()


def _reaching(labels: NDArray[np.uint64], cut: Cut, context: Triple) -> NDArray[np.bool_]:
    """Which labels have voxels where other blocks may be; by id, from 0 on.

    A face that is not cut may have a block behind it all the same: one that ends with the volume.
    """
    found = np.zeros(int(labels.max(initial=0)) + 1, dtype=np.bool_)
    for axis in (axis for axis in range(3) if cut != UNCUT):
        length, far = labels.shape[axis], context[axis]
        for near in (slice(0, far), slice(max(0, length - far), length)):
            found[labels[(slice(None),) * axis + (near,)]] = True
    found[0] = False
    return found
