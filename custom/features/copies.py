"""Copies of a training volume whose raw is changed in intensity before the backbone sees it."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from funlib.geometry.roi import Roi
from numpy.typing import NDArray

from custom.errors import InputError
from custom.features.intensity import IntensityWindow, to_unit_range
from custom.file_arrays import Box
from custom.json_fields import check_keys, mapping, numbers, whole_number
from custom.volumes import Volume
from custom.working_grid import ResampledVolume, axes_of, source_of

NEUTRAL: Mapping[str, float] = {"contrast": 1.0, "brightness": 0.0, "gamma": 1.0, "noise": 0.0}


@dataclass(frozen=True)
class IntensityChange:
    """A change of grey values x in [0, 1], voxel by voxel, so that boxes agree where they overlap.

    ::

        clip(clip(contrast (x - 0.5) + 0.5 + brightness, 0, 1) ** gamma + noise n, 0, 1)

    with ``n`` from the normal distribution, a function of ``noise_seed`` and the voxel's place.
    """

    contrast: float
    brightness: float
    gamma: float
    noise: float
    noise_seed: int

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``json.dump``."""
        return asdict(self)

    def __call__(self, values: NDArray[np.float32], offset: Sequence[int]) -> NDArray[np.float32]:
        """Changed values (D, H, W) of a box whose first voxel is ``offset`` of the volume."""
        curved = self.contrast * (values - 0.5) + (0.5 + self.brightness)
        curved = np.clip(curved, 0, 1) ** self.gamma
        if self.noise:
            curved += self.noise * voxel_noise(self.noise_seed, offset, values.shape)
        changed: NDArray[np.float32] = np.clip(curved, 0, 1).astype(np.float32, copy=False)
        return changed


class ChangedArray:
    """A volume's grey values after its intensity window and a change, computed when read.

    Args:
        source: the volume.
        window: grey values that are mapped to 0 and 1 first.
        change: of these.
    """

    def __init__(self, source: Volume, window: IntensityWindow, change: IntensityChange) -> None:
        self.source, self.window, self.change = source, window, change
        self.shape: tuple[int, ...] = source.metadata.shape

    def read(self, box: Box) -> NDArray[np.float32]:
        """The voxels of a box, float32 in [0, 1]."""
        spans = [range(n)[s] for n, s in zip(self.shape, box, strict=True) if isinstance(s, slice)]
        roi = Roi([s.start for s in spans], [len(s) for s in spans])
        return self.change(to_unit_range(self.source.read(roi), self.window), roi.offset)


def changed_volume(source: Volume, window: IntensityWindow, change: IntensityChange) -> Volume:
    """A volume with changed grey values, whose intensity window is (0, 1).

    Where raw is finer than its grid, it is changed before it is resampled, as a file would be.
    """
    metadata = replace(source.metadata, dtype="float32")
    if source_of(source) is source:
        return Volume(source.path, metadata, ChangedArray(source, window, change))
    finer = changed_volume(source_of(source), window, change)
    return ResampledVolume(finer, axes_of(source), metadata)


@dataclass(frozen=True)
class CopyPlan:
    """How many changed copies every training volume gets, and what of.

    Args:
        count: copies beside the unchanged volume.
        ranges: lowest and highest value of each of ``NEUTRAL``; values are drawn uniformly.
        seed: of all draws.
    """

    count: int
    ranges: Mapping[str, tuple[float, float]]
    seed: int

    def change(self, entry: str, copy: int) -> IntensityChange:
        """What happens to one copy of one entry; it follows from seed, id and number alone."""
        digest = hashlib.sha256(entry.encode()).digest()
        random = np.random.default_rng([self.seed, copy, int.from_bytes(digest[:8], "big")])
        drawn = {name: float(random.uniform(*self.ranges[name])) for name in NEUTRAL}
        return IntensityChange(**drawn, noise_seed=int(random.integers(2**62)))


def plan_copies(count: int, intensity: Mapping[str, Any], seed: int = 0) -> CopyPlan:
    """Plan from the config's ``augmented_copies``, ``copy_intensity`` and ``seed``.

    Args:
        count: 0 for none.
        intensity: [low, high] for any of contrast, brightness, gamma and noise; what is left out
            is not changed.
        seed: a whole number from 0 on.

    Raises:
        InputError: a value is of the wrong kind or out of range, or copies would be unchanged.
    """
    for name, value in (("augmented_copies", count), ("seed", seed)):
        whole_number(value, 0, name)
    check_keys(mapping(intensity, "copy_intensity"), list(NEUTRAL), "copy_intensity")
    ranges = {name: _range(name, intensity.get(name)) for name in NEUTRAL}
    if count and all(ranges[name] == (value, value) for name, value in NEUTRAL.items()):
        raise InputError(
            "copy_intensity changes nothing, so all augmented_copies would be alike: give a range "
            f"for {', '.join(NEUTRAL)}"
        )
    return CopyPlan(count, ranges, seed)


def voxel_noise(seed: int, offset: Sequence[int], shape: Sequence[int]) -> NDArray[np.float32]:
    """Standard normal noise of a box; a voxel's follows from the seed and its place alone.

    Two uniform numbers per voxel from a 64-bit hash (splitmix64) of its z, y and x; Box-Muller.

    Args:
        seed: of the noise.
        offset: of the box's first voxel, zyx.
        shape: (D, H, W).

    Returns:
        (D, H, W) float32.

    Source:
        Steele et al. 2014, OOPSLA (splitmix64).
    """
    places = [np.arange(o, o + n, dtype=np.int64) for o, n in zip(offset, shape, strict=True)]
    z, y, x = (place.astype(np.uint64) for place in places)
    plane = _mixed(np.array([seed], np.uint64))[:, None] ^ z[:, None]
    bits = _mixed(_mixed(_mixed(plane) ^ y)[:, :, None] ^ x)
    first = ((bits >> np.uint64(32)).astype(np.float64) + 0.5) / 2**32
    second = (bits & np.uint64(2**32 - 1)).astype(np.float64) / 2**32
    radius: NDArray[np.float64] = np.sqrt(-2 * np.log(first))
    return (radius * np.cos(2 * math.pi * second)).astype(np.float32)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every value's hash."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _range(name: str, given: object) -> tuple[float, float]:
    """Lowest and highest value."""
    if given is None:
        return NEUTRAL[name], NEUTRAL[name]
    what = f"copy_intensity's {name}"
    low, high = numbers(list(given) if isinstance(given, tuple) else given, 2, what)
    least = {"brightness": -1.0, "noise": 0.0}.get(name)
    if low > high or (low <= 0 if least is None else low < least):
        bound = "above 0" if least is None else f"from {least:g} on"
        raise InputError(f"{what} must be [low, high] with low <= high, {bound}, got {given!r}")
    return float(low), float(high)
