"""Cached volumes that stay in memory, as far as there is room."""

import logging
import threading
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from custom.features.cache import CachedVolume
from custom.features.cache_files import DENSE_ARRAY, Selection, token_array
from custom.json_fields import not_negative
from custom.planes import PLANES

logger = logging.getLogger(__name__)

GIB = 2**30
FEATURE_ARRAYS = {DENSE_ARRAY, *map(token_array, PLANES)}


class PooledVolume(CachedVolume):
    """A cached volume that reads an array once, whole, and keeps it in memory as it is stored.

    Threads share what is kept; a copy made by pickle, such as that of a loader's process, begins
    with nothing. What is read is the caller's own: changing it changes nothing here.

    Args and errors are those of ``CachedVolume``.
    """

    _kept: dict[str, NDArray[Any]]

    def __init__(self, path: Any) -> None:
        super().__init__(path)
        self._kept, self._lock = {}, threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_kept": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    @property
    def bytes_kept(self) -> int:
        """Size of what is in memory now."""
        return sum(values.nbytes for values in self._kept.values())

    def _values(self, name: str, box: Selection = ()) -> NDArray[Any]:
        with self._lock:  # so that two threads do not both read it
            if name not in self._kept:
                self._kept[name] = super()._values(name)
        return _selected(self._kept[name], box)


def _selected(values: NDArray[Any], box: Selection) -> NDArray[Any]:
    """A copy of a box; each axis is indexed for itself."""
    found = values[tuple(part if isinstance(part, slice) else slice(None) for part in box)]
    for axis, part in enumerate(box):
        if not isinstance(part, slice):
            found = found.take(part, axis)
    return found.copy()


def bytes_in_memory(volume: CachedVolume, tokens: bool = True) -> int:
    """Size of a volume's arrays; of all but the features, if ``tokens`` is False."""
    return sum(
        prod(array["shape"]) * np.dtype(array["dtype"]).itemsize
        for name, array in volume.metadata["arrays"].items()
        if tokens or name not in FEATURE_ARRAYS
    )


def pooled(
    volumes: Sequence[CachedVolume], pool_gib: float, tokens: bool = True
) -> list[CachedVolume]:
    """The same volumes; those that fit into the pool stay in memory once they were read.

    Room is given out in the volumes' order; a volume that does not fit as a whole is read from
    disk, always.

    Args:
        volumes: of a cache.
        pool_gib: size of the pool, 2^30 bytes, in every process that reads them.
        tokens: whether features are going to be read, and need room.

    Raises:
        InputError: ``pool_gib`` is not a number from 0 on.
    """
    if not not_negative(pool_gib, "pool_gib"):
        return list(volumes)
    room, given, chosen = pool_gib * GIB, 0, []
    for volume in volumes:
        size = bytes_in_memory(volume, tokens)
        fits = given + size <= room
        given += size if fits else 0
        chosen.append(PooledVolume(volume.path) if fits else volume)
    kept = sum(isinstance(volume, PooledVolume) for volume in chosen)
    logger.info(
        "pool of %g GiB: %d of %d volumes (%.2f GiB) stay in memory, the rest on disk",
        *(pool_gib, kept, len(volumes), given / GIB),
    )
    return chosen
