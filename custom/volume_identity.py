"""What a training learns from, so that it is noticed when that is no longer what it was."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from custom.errors import InputError
from custom.features.cache import CachedVolume
from custom.features.cache_files import TARGET_ARRAYS, read_json
from custom.live import FeatureVolume

logger = logging.getLogger(__name__)

DESCRIBED = ("roi", "voxel_size_nm", "offset_nm", "intensity_window", "raw_rule")
CHECKSUM_BYTES = 4  # at the end of every chunk of a cache
CHUNKS_LOOKED_AT = 8  # of every array, evenly spread


class VolumeIdentity:
    """Part of a checkpoint that knows the volumes of its training.

    A volume is the same as long as its metadata are, and, in a cache, the checksums of a few chunks
    of every array. Volumes may come to a training that is taken up; none may go or change.

    Args:
        training: volumes.
        validation: volumes.
        use_tokens: whether features count, or raw and labels alone.
        cached_targets: whether targets are read from the cache.
    """

    def __init__(
        self,
        training: Sequence[FeatureVolume],
        validation: Sequence[FeatureVolume],
        use_tokens: bool = True,
        cached_targets: bool = False,
    ) -> None:
        sections = {"training": training, "validation": validation}
        self.volumes = {
            _name(section, volume): volume for section, part in sections.items() for volume in part
        }
        self.use_tokens, self.cached_targets = use_tokens, cached_targets
        self._digests = {n: self._digest(v, v.metadata) for n, v in self.volumes.items()}
        self._written = {n: _last_written(v) for n, v in self.volumes.items()}

    def state_dict(self) -> dict[str, str]:
        """Digests of all volumes, for the checkpoint, which nothing is to enter of other ones.

        Raises:
            InputError: a cached volume has been removed or rewritten since.
        """
        for name, volume in self.volumes.items():
            if (written := _last_written(volume)) != self._written[name]:
                self._refuse_other(name, volume)
                self._written[name] = written
        return dict(self._digests)

    def _refuse_other(self, name: str, volume: FeatureVolume) -> None:
        metadata = read_json(_metadata_file(volume)) if isinstance(volume, CachedVolume) else {}
        if metadata and self._digest(volume, metadata) == self._digests[name]:
            return
        what = "has been rewritten" if metadata else "is gone"
        raise InputError(
            f"{name} volume {what} since this training opened it: put it back as it was and give "
            f"the same command again, which goes on from the last save; or choose another model_dir"
        )

    def _digest(self, volume: FeatureVolume, metadata: Mapping[str, Any]) -> str:
        """Digest of all that decides what a training reads of a volume."""
        known: dict[str, Any] = {name: metadata.get(name) for name in DESCRIBED}
        known |= {"shape": volume.shape, "raw_window": volume.raw_window}
        if self.use_tokens:
            known["features"] = metadata.get("features", volume.spec.to_json())
        if self.cached_targets:
            known["targets"] = metadata.get("targets")
        if isinstance(volume, CachedVolume):
            arrays = {n: a for n, a in metadata["arrays"].items() if self._reads(n)}
            known["chunks"] = {n: _checksums(volume.path / n, a) for n, a in arrays.items()}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]

    def _reads(self, array: str) -> bool:
        """Whether the training reads an array of a cache."""
        if array in TARGET_ARRAYS:
            return self.cached_targets
        return self.use_tokens or array in ("raw", "gt", "mask")

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Compare with the volumes of the run that is taken up.

        Raises:
            ValueError: one of them is gone, or was another.
        """
        gone = [name for name in state if name not in self._digests]
        other = [name for name, found in self._digests.items() if state.get(name, found) != found]
        if gone or other:
            what = f"{gone[0]} volume is gone" if gone else f"{other[0]} volume is another now"
            raise ValueError(f"{what}, {len(gone)} gone and {len(other)} changed of {len(state)}")
        if new := [name for name in self._digests if name not in state]:
            logger.warning("training goes on with %d new volumes: %s", len(new), ", ".join(new[:3]))


def _name(section: str, volume: FeatureVolume) -> str:
    copy = getattr(volume, "copy", 0)
    return f"{section} '{volume.id}'" + (f" copy {copy}" if copy else "")


def _metadata_file(volume: CachedVolume) -> Path:
    return volume.path.with_name(f"{volume.path.name.removesuffix('.zarr')}_metadata.json")


def _last_written(volume: FeatureVolume) -> tuple[int, ...]:
    """What changes whenever preprocessing writes a volume; empty for one that is gone or live."""
    if not isinstance(volume, CachedVolume):
        return ()
    try:
        found = _metadata_file(volume).stat()
    except FileNotFoundError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _checksums(folder: Path, array: Mapping[str, Any]) -> list[str]:
    """Checksums of a few chunks of a cached array; empty for one that is missing."""
    return [_last_bytes(folder / "c" / chunk).hex() for chunk in _some_chunks(array)]


def _some_chunks(array: Mapping[str, Any]) -> Iterator[str]:
    """Paths of a few chunks inside an array, evenly spread."""
    sizes = zip(array["shape"], array["chunks"], strict=True)
    counts = [-(-length // chunk) for length, chunk in sizes]
    total = int(np.prod(counts))
    numbers = np.unique(np.linspace(0, total - 1, CHUNKS_LOOKED_AT).astype(int))
    for place in zip(*np.unravel_index(numbers, counts), strict=True):
        yield "/".join(map(str, place))


def _last_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(-CHECKSUM_BYTES, 2)
            return file.read()
    except OSError:
        return b""
