"""What the tasks share that read a volume and its features."""

from pathlib import Path
from typing import Any

from pydantic import Field

from custom.blockwise.equipment import Equipment
from custom.blockwise.raw_source import RawSource
from custom.blockwise.sources import BlockSource, CachedSource
from custom.blockwise.volume_blocks import VolumeBlocks
from custom.features.spec import FeatureSpec


class VolumeTask(VolumeBlocks):
    """A task on a volume, or a region of one.

    Args:
        volume: id of the datalist's entry.
        spec: of the features, as JSON; None for raw alone.
        intensity_window: of raw; None where a cache is read.
        store: folder of the features of raw.
        config: file of ``write_config``, for processes that do not have ``live``.
        live: what computes, where a process has it.
    """

    volume: str
    spec: dict[str, Any] | None = None
    intensity_window: tuple[float, float] | None = None
    store: Path
    config: Path
    live: Any = Field(default=None, exclude=True, repr=False)

    @property
    def feature_spec(self) -> FeatureSpec | None:
        """Of the features."""
        return None if self.spec is None else FeatureSpec.from_json(self.spec)

    def source(self, equipment: Equipment) -> BlockSource:
        """The volume, as a worker opens it."""
        if self.intensity_window is None:
            return CachedSource(equipment.cached(self.volume), self.spec is not None)
        region = equipment.region(self.volume, self.intensity_window)
        return RawSource(region, self.feature_spec, self.store)
