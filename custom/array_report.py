"""What a look at the arrays of a run has found."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from custom.datalist import OpenEntry
from custom.disk_space import size
from custom.errors import InputError
from custom.live import FeatureVolume
from custom.memory import free_memory

logger = logging.getLogger(__name__)

FAR_BEYOND = 2.0  # times the free memory: below, an estimate is too rough to refuse anything

Split = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class ArrayReport:
    """What a run will read, and what it will take.

    Args:
        split: by section, id and ROI of every volume.
        disk: bytes that will be written at most, by the configuration's key of the folder.
        memory: bytes that a training step, or the prediction of a volume, takes about; None where
            that is not known.
    """

    split: Split
    disk: Mapping[str, int] = field(default_factory=dict)
    memory: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        sections = {name: [dict(volume) for volume in part] for name, part in self.split.items()}
        estimated = {"disk_bytes": dict(self.disk), "memory_bytes": self.memory}
        return {"split": sections, "estimated": estimated}


def placed(entries: Iterable[OpenEntry]) -> list[dict[str, Any]]:
    """Id and ROI of entries, in voxels of raw."""
    return [
        {"id": e.entry.id, "offset": list(e.roi.offset), "shape": list(e.roi.shape)}
        for e in entries
    ]


def cached(volumes: Iterable[FeatureVolume]) -> list[dict[str, Any]]:
    """Id and ROI of cached volumes, in voxels of raw; copies of a volume count once."""
    return list({v.id: {"id": v.id, **v.metadata["roi"]} for v in volumes}.values())


def refuse_memory(needed: int, device: torch.device, what: str, way_out: str) -> None:
    """Say what memory is estimated to be taken; refuse what is far beyond the free one.

    Args:
        needed: bytes, estimated.
        device: whose memory it takes.
        what: takes it, as the beginning of a sentence.
        way_out: what can be done, as the end of a sentence.

    Raises:
        InputError: it is more than ``FAR_BEYOND`` times what is free.
    """
    free = free_memory(device)
    if free is None:
        return
    sentence = f"{what} takes about {size(needed)} (estimated), {device} has {size(free)} free"
    if needed > FAR_BEYOND * free:
        raise InputError(f"{sentence}: {way_out}")
    if needed > free:
        logger.warning("%s, which may not do: %s", sentence, way_out)
    else:
        logger.info("%s", sentence)
