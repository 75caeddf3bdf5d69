"""Grey values of a data set to [0, 1]: one window for the whole of it, never one per slice."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
from funlib.geometry.roi import Roi
from numpy.typing import NDArray

from custom.datalist import OpenEntry
from custom.errors import InputError
from custom.volumes import Volume

BLOCKS_PER_AXIS = 8
BLOCK = 32

IntensityWindow = tuple[float, float]


def measure_intensity_window(volume: Volume, percentiles: Sequence[float]) -> IntensityWindow:
    """Grey values at two percentiles of the whole source.

    Measured on blocks of ``BLOCK`` voxels, ``BLOCKS_PER_AXIS`` along every axis, evenly spaced from
    one end to the other; axes no longer than these blocks together are read whole. So at most 17
    million voxels are read, and the same source always gives the same window.

    Args:
        volume: raw, any size.
        percentiles: low and high, between 0 and 100.

    Returns:
        The grey values that are mapped to 0 and 1.

    Raises:
        InputError: the source holds NaN or infinite values, or both percentiles are the same value.
    """
    sample = np.concatenate([volume.read(roi).ravel() for roi in _blocks(volume.metadata.shape)])
    if not np.isfinite(sample).all():
        raise InputError(f"raw {volume.path} holds NaN or infinite values: replace them first.")
    low, high = (float(value) for value in np.percentile(sample, list(percentiles)))
    if low >= high:
        raise InputError(
            f"raw {volume.path} is constant ({low:g} at both percentiles {list(percentiles)}): "
            "check the file, or give the entry an intensity_window in the datalist."
        )
    return low, high


def entry_window(opened: OpenEntry, percentiles: Sequence[float]) -> IntensityWindow:
    """The window that an entry's datalist gives, else the one measured on its raw file."""
    given = opened.entry.intensity_window
    return given or measure_intensity_window(opened.source, percentiles)


def to_unit_range(raw: NDArray[Any], window: IntensityWindow) -> NDArray[np.float32]:
    """Grey values as [0, 1]: ``clip((raw - low) / (high - low), 0, 1)``, any shape."""
    low, high = window
    scaled = (raw.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    clipped: NDArray[np.float32] = np.clip(scaled, 0, 1)
    return clipped


def to_uint8(raw: NDArray[Any], window: IntensityWindow) -> NDArray[np.uint8]:
    """Raw as uint8: unchanged if it is already, else its intensity window on 0 to 255, rounded."""
    if raw.dtype == np.uint8:
        return raw
    return np.rint(to_unit_range(raw, window) * 255).astype(np.uint8)


def _blocks(shape: Sequence[int]) -> Iterator[Roi]:
    """Evenly spaced blocks of a volume, the first and last at its ends."""
    for spans in product(*(_spans(size) for size in shape)):
        offset, extent = zip(*spans, strict=True)
        yield Roi(offset, extent)


def _spans(size: int) -> list[tuple[int, int]]:
    """Starts and sizes along one axis."""
    if size <= BLOCK * BLOCKS_PER_AXIS:
        return [(0, size)]
    starts = np.linspace(0, size - BLOCK, BLOCKS_PER_AXIS).round().astype(int)
    return [(int(start), BLOCK) for start in starts]
