"""From predicted affinities to segments, and the choice of the bias."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from custom.errors import InputError
from custom.json_fields import check_keys, whole_number
from custom.segmentation.agglomeration import agglomerate
from custom.segmentation.fragments import (
    UNCUT,
    Cut,
    Offset,
    is_short_range,
    linked_axes,
    remove_small_fragments,
    remove_weak_fragments,
    short_range_mean,
)
from custom.segmentation.masking import Number, refuse_range
from custom.segmentation.merging import merged_by_quantile
from custom.segmentation.method import Triple, reach
from custom.segmentation.mutex_watershed import mutex_watershed
from custom.segmentation.region_graph import RegionGraph, contracted
from custom.segmentation.settling import settle

OF_THE_JOIN = ("threshold", "quantile", "max_link")  # settings that fragments do not depend on


@dataclass(frozen=True)
class MutexWatershedSegmenter:
    """Mutex watershed into fragments, removal of weak and small ones, agglomeration.

    Where no offset leads along z, sections are segmented each on their own: no segment has voxels
    in two of them, and every size is that of a piece of a section.

    Args:
        offsets: K affinity offsets, voxels, zyx.
        bias: as in ``mutex_watershed``.
        long_range_stride: along every axis that offsets lead along, one edge in so many is used for
            the offsets with a component beyond 1.
        min_affinity: fragments with a lower mean short-range affinity become background; 0 keeps
            all.
        min_size: smaller fragments (voxels) are given to their neighbours.
        threshold: fragments are joined above it (``agglomerate``); None joins none, the fragments
            are the segments.
        quantile: as in ``agglomerate``.
        max_link: links of ``agglomerate`` are the offsets with no component beyond this.

    Raises:
        InputError: no offset is within ``max_link``, or a setting is out of range.
    """

    offsets: Sequence[Offset]
    bias: float | Sequence[float] = -0.5
    long_range_stride: int = 4
    min_affinity: float = 0.0
    min_size: int = 0
    threshold: float | None = None
    quantile: float = 0.75
    max_link: int = 9

    def __post_init__(self) -> None:
        joined = {} if self.threshold is None else {"threshold": self.threshold}
        shares = {"min_affinity": self.min_affinity, "quantile": self.quantile, **joined}
        refuse_range("mutex watershed", **shares)
        for name, least in (("long_range_stride", 1), ("min_size", 0), ("max_link", 0)):
            whole_number(getattr(self, name), least, f"{name} of mutex watershed")
        biases = self.bias if isinstance(self.bias, Sequence) else [self.bias]
        if len(biases) not in (1, 2, len(self.offsets)) or not all(map(_is_number, biases)):
            raise InputError(
                f"bias of mutex watershed must be a number, two of them (short and long offsets) "
                f"or {len(self.offsets)} (one for each offset), got {self.bias!r}."
            )
        if not any(_reach(offset) <= self.max_link for offset in self.offsets):
            raise InputError(
                f"max_link {self.max_link} leaves no offset to link fragments; the nearest of "
                f"affinity_offsets reaches {min(map(_reach, self.offsets))}."
            )

    @property
    def context(self) -> Triple:
        """As of ``SegmentationMethod``: the largest offset along every axis."""
        return reach(self.offsets)

    @property
    def links(self) -> list[int]:
        """As of ``SegmentationMethod``: the offsets within ``max_link``."""
        return [k for k, offset in enumerate(self.offsets) if _reach(offset) <= self.max_link]

    def __call__(
        self, affinities: NDArray[np.uint8], mask: NDArray[np.bool_] | None = None
    ) -> NDArray[np.uint64]:
        """Segments of affinities.

        Args:
            affinities: (K, D, H, W) uint8, 0 to 255; further channels are ignored.
            mask: (D, H, W), True where to segment; everywhere when left out.

        Returns:
            (D, H, W) uint64.
        """
        return self.join(self.fragments(affinities, mask), affinities)

    def fragments(
        self,
        affinities: NDArray[np.uint8],
        mask: NDArray[np.bool_] | None = None,
        cut: Cut = UNCUT,
    ) -> NDArray[np.uint64]:
        """Fragments before agglomeration, as of ``SegmentationMethod``."""
        affinities = affinities[: len(self.offsets)]
        linked = linked_axes(self.offsets)
        sparse = [self.long_range_stride if along else 1 for along in linked]
        strides = [[1, 1, 1] if is_short_range(o) else sparse for o in self.offsets]
        labels = mutex_watershed(affinities, self.offsets, self.bias, strides, mask)
        mean = short_range_mean(affinities, self.offsets)
        if self.min_affinity > 0:
            labels = remove_weak_fragments(labels, mean, self.min_affinity, cut)
        return remove_small_fragments(labels, self.min_size, mean, linked, cut)

    def join(
        self, fragments: NDArray[np.uint64], affinities: NDArray[np.uint8]
    ) -> NDArray[np.uint64]:
        """Segments (D, H, W) uint64 of fragments."""
        if self.threshold is None:
            return fragments
        offsets = [self.offsets[k] for k in self.links]
        return agglomerate(
            fragments, affinities[self.links], offsets, self.threshold, self.quantile
        )

    def solve(self, graph: RegionGraph) -> NDArray[np.int64]:
        """Segments of whole fragments, as of ``SegmentationMethod``."""
        groups = settle(graph, self.min_size, self.min_affinity)
        if self.threshold is None:
            return groups
        joined = merged_by_quantile(contracted(graph, groups), self.threshold, self.quantile)
        return np.append(0, joined)[groups]

    def same_fragments(self, other: "MutexWatershedSegmenter") -> bool:
        """Whether another segmenter makes the same fragments."""
        return self.describe_fragments() == other.describe_fragments()

    def with_settings(self, **settings: Any) -> "MutexWatershedSegmenter":
        """A copy with other settings.

        Raises:
            InputError: a setting is unknown.
        """
        known = [field.name for field in fields(self)]
        check_keys(settings, known, "a segmentation setting")
        return replace(self, **settings)

    def describe(self) -> dict[str, Any]:
        """All settings, plain values."""
        return asdict(self)

    def describe_fragments(self) -> dict[str, Any]:
        """Those settings that fragments depend on."""
        return {key: value for key, value in asdict(self).items() if key not in OF_THE_JOIN}


def _is_number(value: object) -> bool:
    return isinstance(value, Number) and bool(np.isfinite(value))


def _reach(offset: Offset) -> int:
    """Largest component of an offset."""
    return max(abs(o) for o in offset)
