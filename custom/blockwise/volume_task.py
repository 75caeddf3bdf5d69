"""What the tasks share that read a volume and its features."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from custom.blockwise.equipment import Equipment
from custom.blockwise.raw_source import RawSource, Region
from custom.blockwise.records import EndOfRunError
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
        """The volume, as a worker opens it.

        Raises:
            EndOfRunError: it is not what it was when the run began.
        """
        if self.intensity_window is None:
            source = CachedSource(equipment.cached(self.volume), self.spec is not None)
            features = source.spec and source.spec.to_json()
            self.refuse_changed({**source.place(), "features": features})
            return source
        return RawSource(self.region(equipment), self.feature_spec, self.store)

    def region(self, equipment: Equipment) -> Region:
        """What is segmented of raw, as a worker opens it.

        Raises:
            EndOfRunError: it is not what it was when the run began.
        """
        assert self.intensity_window is not None
        region = equipment.region(self.volume, self.intensity_window)
        self.refuse_changed(region.place())
        return region

    def refuse_changed(self, found: Mapping[str, Any]) -> None:
        """Refuse what is not in the task's identity.

        Stamps of files are not looked at: machines may number the same files otherwise.

        Args:
            found: as a worker finds it: some of the identity.

        Raises:
            EndOfRunError: names what differs.
        """
        plain = json.loads(json.dumps(found))
        if changed := [name for name in plain if self.identity.get(name) != plain[name]]:
            raise EndOfRunError(
                f"'{self.volume}' was changed since the run began, in {', '.join(changed)} (in "
                f"the datalist, the cache or the model's folder): start the same command again, "
                f"which takes what is there then"
            )
