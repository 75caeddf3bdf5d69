"""A coarser, larger field of view around a crop: the same volume, averaged over blocks of voxels.

A volume seen ``factor`` times coarser has one voxel for every block of ``factor`` voxels, counted
from the volume's corner. The context of a crop is the box of it that has as many voxels as the crop
and, as near as whole voxels allow, the same centre::

    |---------------|---------------|---------------|   coarse voxels of 4
                      |-------------|                   crop: voxels 18 to 32
    start = -18 - 4 k, step = 4                         context_placement, in voxels of the crop

Beyond the volume its outermost coarse voxels repeat, and what a cache does not hold is not there.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from funlib.geometry import Roi
from torch import Tensor
from torch.nn import functional as F

from custom.errors import InputError
from custom.features.triplane import GridPart, PlaneGrid, entries_for, placed_at, take
from custom.json_fields import per_axis
from custom.live import FeatureVolume
from custom.planes import NORMAL_AXIS, PLANES
from custom.samples import Sample, add_grid, image_tensor

logger = logging.getLogger(__name__)

Factor = tuple[int, int, int]

CONTEXT = "context_"
SLAB = 16  # coarse voxels that are read at once along an axis
CHANNELS = 32  # that are averaged at once


def context_factor_of(value: object) -> Factor | None:
    """The config's ``context_factor``: null, one whole number, or three for z, y and x.

    Raises:
        InputError: it is neither, below 1, or 1 along all axes.
    """
    if value is None:
        return None
    z, y, x = per_axis(value, "context_factor")
    if z == y == x == 1:
        raise InputError(
            "context_factor 1 shows the crop once more: set it to 2 or more along an axis, or to "
            "null for no context."
        )
    return z, y, x


@dataclass(frozen=True)
class CoarseVolume:
    """A volume seen ``factor`` times coarser; all positions in it are in coarse voxels.

    Args:
        factor: voxels per coarse voxel, zyx.
        image: (1, d, h, w) raw.
        grids: tokens by plane.
        features: (C, d, h, w), of the dense layout; None with tokens or none.
        first: voxel of ``image`` and ``features``, where they are a part of the volume that holds
            what its windows need.
    """

    factor: Factor
    image: Tensor
    grids: Mapping[str, GridPart]
    features: Tensor | None = None
    first: tuple[int, ...] = (0, 0, 0)

    def around(self, offset: Sequence[int], shape: Sequence[int]) -> Sample:
        """Context of a crop.

        Args:
            offset: corner of the crop, voxels of the volume.
            shape: (D, H, W) of the crop and of its context.

        Returns:
            ``context_image`` (1, D, H, W) and ``context_placement`` (2, 3): start and step of its
            voxels in voxels of the crop. ``context_tokens_<plane>`` and
            ``context_placement_<plane>``, these in voxels of the context; or ``context_features``.
            All are the caller's own.
        """
        first = first_around(offset, shape, self.factor)
        inside = [f - own for f, own in zip(first, self.first, strict=True)]
        start = [f * i - o for f, i, o in zip(self.factor, first, offset, strict=True)]
        part: Sample = {
            "image": take(self.image, inside, shape).clone(),
            "placement": torch.tensor([start, self.factor], dtype=torch.float32),
        }
        for plane, grid in self.grids.items():
            found = grid.crop(first, shape)
            add_grid(part, plane, replace(found, values=found.values.clone()))
        if self.features is not None:
            part["features"] = take(self.features, inside, shape).clone()
        return named(part)


def first_around(offset: Sequence[int], shape: Sequence[int], factor: Sequence[int]) -> list[int]:
    """First coarse voxel of the context of a crop.

    Args:
        offset: corner of the crop, voxels of the volume.
        shape: (D, H, W) of the crop and of its context.
        factor: voxels per coarse voxel, zyx.
    """
    return [
        (2 * o + s - f * s + f) // (2 * f) for o, s, f in zip(offset, shape, factor, strict=True)
    ]


def named(part: Mapping[Any, Any]) -> dict[Any, Any]:
    """A context's parts by their names in a sample."""
    return {CONTEXT + name: value for name, value in part.items()}


def context_in(sample: Mapping[Any, Any]) -> dict[Any, Any]:
    """Parts of a sample's context, by the names that those of the crop have; empty without one.

    Beside them there is ``placement``, of the context in the crop.
    """
    return {
        str(name).removeprefix(CONTEXT): value
        for name, value in sample.items()
        if str(name).startswith(CONTEXT)
    }


def mirrored(
    placement: Tensor, count: Sequence[int], shape: Sequence[int], axes: Sequence[int]
) -> Tensor:
    """Placement of a grid that is mirrored together with its box.

    Args:
        placement: (..., 2, 3) start and step in voxels of the box.
        count: entries of the grid, zyx.
        shape: (D, H, W) of the box.
        axes: that are mirrored, 0 is z.
    """
    result = placement.clone()
    for axis in axes:
        extent = count[axis] * placement[..., 1, axis]
        result[..., 0, axis] = shape[axis] - (placement[..., 0, axis] + extent)
    return result


def coarsen(values: Tensor, factor: Sequence[int]) -> Tensor:
    """Means of blocks of values; beyond the far border it repeats.

    Args:
        values: (C, d, h, w), float.
        factor: size of a block, zyx.

    Returns:
        (C, ceil(d / factor), ...) in the dtype of ``values``, computed in float32.
    """
    pad = [p for n, f in zip(values.shape[:0:-1], factor[::-1], strict=True) for p in (0, -n % f)]
    blocks = []
    for part in torch.split(values, CHANNELS):
        padded = F.pad(part.float()[None], pad, mode="replicate")
        blocks.append(F.avg_pool3d(padded, list(factor))[0].to(values.dtype))
    return torch.cat(blocks)


def coarse_grid(grid: PlaneGrid, factor: Factor, shape: Sequence[int]) -> GridPart:
    """A volume's tokens of one plane, averaged over blocks of entries, placed in coarse voxels.

    Blocks are counted from the first entry that interpolation in the volume needs.

    Args:
        grid: in voxels of the volume.
        factor: size of a block, zyx; of a coarse voxel, too.
        shape: (D, H, W) of the volume.
    """
    first, count = entries_for(grid.start, grid.step, (0, 0, 0), shape)
    parts = [coarsen(take(v, first, count), factor) for v in torch.split(grid.values, CHANNELS)]
    placed = placed_at(torch.cat(parts), grid.start, grid.step, first, (0, 0, 0))
    return _in_coarse_voxels(placed, factor)


def _in_coarse_voxels(grid: PlaneGrid, factor: Factor) -> GridPart:
    """Of averaged entries: an entry is ``factor`` times larger, and so is a voxel."""
    z, y, x = (start / f for start, f in zip(grid.start, factor, strict=True))
    return GridPart(grid.values, (z, y, x), grid.step)


class VolumeContext:
    """Contexts of crops of a volume that is made coarser when the first of them is asked for.

    The whole volume is read once in every process, a slab at a time, and what is kept is smaller
    than the volume by the product of the factors.

    Args:
        volume: cached or live.
        factor: voxels per coarse voxel, zyx.
        use_tokens: read tokens or dense features.
        use_raw: read raw; otherwise ``context_image`` is 0.

    Raises:
        InputError: the volume is not larger than one coarse voxel.
    """

    def __init__(
        self,
        volume: FeatureVolume,
        factor: Factor,
        use_tokens: bool = True,
        use_raw: bool = True,
    ) -> None:
        if any(f > 1 and n <= f for n, f in zip(volume.shape, factor, strict=True)):
            raise InputError(
                f"context_factor {list(factor)} makes a single voxel of an axis of volume "
                f"'{volume.id}' of shape {list(volume.shape)}: choose smaller factors."
            )
        self.volume, self.factor = volume, factor
        self.use_tokens, self.use_raw = use_tokens, use_raw
        self._coarse: CoarseVolume | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def around(self, offset: Sequence[int], shape: Sequence[int]) -> Sample:
        """As ``CoarseVolume.around``."""
        with self._lock:  # so that two threads do not both read the volume
            if self._coarse is None:
                self._coarse = self._read()
        return self._coarse.around(offset, shape)

    def _read(self) -> CoarseVolume:
        volume = self.volume
        image = torch.cat([self._raw(slab) for slab in self._slabs(0)], dim=1)
        if not self.use_tokens:
            return CoarseVolume(self.factor, image, {})
        if volume.spec.layout == "dense":
            return CoarseVolume(self.factor, image, {}, self._averaged(volume.read_features, 0))
        grids = {plane: self._grid(plane) for plane in volume.spec.planes}
        return CoarseVolume(self.factor, image, grids)

    def _slabs(self, axis: int) -> Iterator[Roi]:
        """Boxes of the volume, one after the other along an axis, of whole coarse voxels."""
        thickness = SLAB * self.factor[axis]
        for start in range(0, self.volume.shape[axis], thickness):
            offset, shape = [0, 0, 0], list(self.volume.shape)
            offset[axis] = start
            shape[axis] = min(thickness, self.volume.shape[axis] - start)
            yield Roi(offset, shape)

    def _raw(self, slab: Roi) -> Tensor:
        if not self.use_raw:
            return coarsen(torch.zeros(1, *slab.shape), self.factor)
        raw = image_tensor(self.volume.read_raw(slab), self.volume.raw_window)
        return coarsen(raw, self.factor)

    def _averaged(self, read: Callable[[Roi], Tensor], axis: int) -> Tensor:
        parts = [coarsen(read(slab), self.factor) for slab in self._slabs(axis)]
        return torch.cat(parts, dim=1 + axis)

    def _grid(self, plane: str) -> GridPart:
        volume, axis = self.volume, NORMAL_AXIS[plane]
        if volume.spec.slice_step_of(plane) > 1:  # slices and slabs do not meet, but they are few
            whole = volume.plane_grid(plane, Roi((0, 0, 0), volume.shape))
            values = coarsen(whole.values, self.factor)
        else:
            whole = volume.plane_grid(plane, next(self._slabs(axis)))
            values = self._averaged(lambda slab: volume.plane_grid(plane, slab).values, axis)
        return _in_coarse_voxels(PlaneGrid(values, whole.start, whole.step), self.factor)


def contexts_of(
    volumes: Sequence[FeatureVolume],
    context_factor: object,
    crop_size: Sequence[int],
    use_tokens: bool = True,
    use_raw: bool = True,
) -> list[VolumeContext]:
    """Contexts of crops of volumes, in their order; none where ``context_factor`` is None.

    Raises:
        InputError: as ``context_factor_of`` and ``VolumeContext``.
    """
    factor = context_factor_of(context_factor)
    if factor is None:
        return []
    extent = [f * c for f, c in zip(factor, crop_size, strict=True)]
    beyond = [v for v in volumes if any(e > n for e, n in zip(extent, v.shape, strict=True))]
    if beyond:
        logger.warning(
            "a context of %s voxels (crop_size times context_factor) is larger than volume '%s' "
            "%s%s: beyond a volume its border goes on; a smaller context_factor fits it",
            extent,
            beyond[0].id,
            list(beyond[0].shape),
            f" and {len(beyond) - 1} more" if beyond[1:] else "",
        )
    return [VolumeContext(volume, factor, use_tokens, use_raw) for volume in volumes]


def refuse_deformed_context(context_factor: object) -> None:
    """A context does not bend with its crop.

    Raises:
        InputError: there is to be one.
    """
    if context_factor is not None:
        raise InputError(
            "deformation bends a crop and not its context, so they would not lie on each other: "
            "set deformation to null, or context_factor to null."
        )


def coarse_volume(image: Tensor, tokens: Mapping[str, Tensor], factor: Factor) -> CoarseVolume:
    """A whole volume that is in memory, seen coarser; the same as a ``VolumeContext`` has.

    Args:
        image: (1, 1, D, H, W) raw.
        tokens: a batch of one volume by the network's argument names: ``tokens_<plane>`` and
            ``placement_<plane>``, or ``features``, or nothing.
        factor: voxels per coarse voxel, zyx.
    """
    shape = image.shape[2:]
    grids = {}
    for plane in PLANES:
        if f"tokens_{plane}" in tokens:
            placed = tokens[f"tokens_{plane}"][0], tokens[f"placement_{plane}"][0]
            grids[plane] = coarse_grid(PlaneGrid.placed(*placed), factor, shape)
    features = coarsen(tokens["features"][0], factor) if "features" in tokens else None
    return CoarseVolume(factor, coarsen(image[0], factor), grids, features)


def whole_contexts(
    image: Tensor, tokens: Mapping[str, Tensor], factor: Factor
) -> dict[str, Tensor]:
    """Contexts of whole volumes: what is around them is their border going on.

    Args:
        image: (B, 1, D, H, W) raw.
        tokens: of the batch, as of ``coarse_volume``.
        factor: voxels per coarse voxel, zyx.

    Returns:
        A batch of what ``CoarseVolume.around`` gives.
    """
    parts = []
    for index in range(image.shape[0]):
        one = {name: values[index : index + 1] for name, values in tokens.items()}
        coarse = coarse_volume(image[index : index + 1], one, factor)
        parts.append(coarse.around((0, 0, 0), image.shape[2:]))
    return {name: torch.stack([p[name] for p in parts]).to(image.device) for name in parts[0]}
