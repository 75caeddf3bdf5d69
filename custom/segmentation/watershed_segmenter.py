"""From predicted affinities to segments by seeded watershed and waterz."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from custom.errors import InputError
from custom.json_fields import check_keys, whole_number
from custom.segmentation.faces import face_channels
from custom.segmentation.fragments import (
    UNCUT,
    Cut,
    Offset,
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
from custom.segmentation.region_graph import RegionGraph, contracted
from custom.segmentation.seeded_watershed import seeded_watershed
from custom.segmentation.settling import settle
from custom.segmentation.small_segments import face_graph, looked_up, without_weak_and_small
from custom.segmentation.waterz_agglomeration import scoring_function, waterz_merge

OF_THE_JOIN = (
    "min_size",
    "small",
    "threshold",
    "scoring",
)  # settings that fragments do not depend on


@dataclass(frozen=True)
class SeededWatershedSegmenter:
    """Seeded watershed into fragments, removal of weak ones, agglomeration by waterz.

    Where no offset leads along z, sections are segmented each on their own.

    Args:
        offsets: K affinity offsets, voxels, zyx; fragments are made from the short ones, and joined
            across faces.
        boundary: as in ``seeded_watershed``.
        seed_distance: as there.
        voxel_size: as there.
        grow_above: as there.
        per_section: as there: fragments of every section on its own, which agglomeration joins.
        min_affinity: fragments with a lower mean short-range affinity become background; 0 keeps
            all.
        min_size: smaller segments (voxels) go.
        small: where to: "neighbours", to the one with the highest mean affinity across faces, or
            "background".
        threshold: fragments are joined above it (``waterz_agglomerate``); None joins none, the
            fragments are the segments.
        scoring: as in ``waterz_agglomerate``.

    Raises:
        InputError: no offset leads to the next voxel, or a setting is out of range.
    """

    offsets: Sequence[Offset]
    boundary: float = 0.5
    seed_distance: float = 5.0
    voxel_size: Sequence[float] = (1.0, 1.0, 1.0)
    grow_above: float = 0.0
    per_section: bool = False
    min_affinity: float = 0.0
    min_size: int = 0
    small: str = "neighbours"
    threshold: float | None = 0.5
    scoring: str = "hist_quant_75"

    def __post_init__(self) -> None:
        refuse_faceless(self.offsets, "seeded watershed")
        known = {"boundary": self.boundary, "grow_above": self.grow_above}
        joined = {} if self.threshold is None else {"threshold": self.threshold}
        refuse_range("seeded watershed", min_affinity=self.min_affinity, **known, **joined)
        whole_number(self.min_size, 0, "min_size of seeded watershed")
        refuse_small(self.small)
        scoring_function(self.scoring)
        if len(self.voxel_size) != 3 or min(self.voxel_size) <= 0 or self.seed_distance < 0:
            raise InputError(
                f"seeded watershed needs three positive numbers as voxel_size and a seed_distance "
                f"from 0 on, got {list(self.voxel_size)} and {self.seed_distance}."
            )

    @property
    def context(self) -> Triple:
        """As of ``SegmentationMethod``; so far that a block knows who is a seed on its border."""
        z, y, x = (
            max(far, round(self.seed_distance / size) if far else 0)
            for far, size in zip(reach(self.offsets), self.voxel_size, strict=True)
        )
        return z, y, x

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
        """Fragments before agglomeration, as of ``SegmentationMethod``."""
        affinities = affinities[: len(self.offsets)]
        how = (self.boundary, self.seed_distance, self.grow_above, self.voxel_size)
        labels = seeded_watershed(affinities, self.offsets, *how, self.per_section, mask)
        if self.min_affinity > 0:
            mean = short_range_mean(affinities, self.offsets)
            labels = remove_weak_fragments(labels, mean, self.min_affinity, cut)
        return labels

    def join(
        self, fragments: NDArray[np.uint64], affinities: NDArray[np.uint8]
    ) -> NDArray[np.uint64]:
        """Segments (D, H, W) uint64 of fragments."""
        graph = face_graph(fragments, affinities, self.offsets)
        return looked_up(fragments, graph, self._joined(graph))

    def solve(self, graph: RegionGraph) -> NDArray[np.int64]:
        """Segments of whole fragments, as of ``SegmentationMethod``."""
        strong = settle(graph, 0, self.min_affinity)
        return np.append(0, self._joined(contracted(graph, strong)))[strong]

    def _joined(self, graph: RegionGraph) -> NDArray[np.int64]:
        """Segment of every fragment that is strong enough."""
        groups = np.arange(1, len(graph.ids) + 1)
        if self.threshold is not None:
            groups = waterz_merge(graph, self.threshold, self.scoring)
        return without_weak_and_small(graph, groups, 0.0, self.min_size, self.small == SMALL[0])

    def with_settings(self, **settings: Any) -> "SeededWatershedSegmenter":
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
        """Those settings that fragments depend on."""
        return {key: value for key, value in asdict(self).items() if key not in OF_THE_JOIN}
