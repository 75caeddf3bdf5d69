"""How much of the labels around a crop its targets depend on."""

import math
from collections.abc import Sequence

from custom.targets.lsds import TRUNCATE
from custom.targets.settings import TargetSettings

Reach = tuple[int, int, int]


def target_halo(
    settings: TargetSettings,
    voxel_size_nm: Sequence[float],
    cached: bool = False,
    shape: Sequence[int] | None = None,
) -> Reach:
    """Voxels around a crop that its targets depend on, in all its orientations.

    An affinity depends on the voxel at its offset, an LSD on those within three sigma, a weight on
    those within its reach, and what counts on the mask's erosion. Axes along which voxels have the
    same size may trade places in augmentation, so they have the same halo, unless targets tell them
    apart; sections (``dimensions`` 2) stay sections, z has none.

    Args:
        settings: of the targets.
        voxel_size_nm: zyx.
        cached: affinities, LSDs and weights come from a cache; what counts is still computed.
        shape: of the volume, beyond which there is nothing: no halo is wider.

    Returns:
        Halo on both sides, voxels, zyx.
    """
    reaches = [counted_reach(settings)]
    if not cached:
        reaches += [lsd_reach(settings, voxel_size_nm), weight_reach(settings, voxel_size_nm)]
    reach = [max(of_axis) for of_axis in zip(*reaches, strict=True)]
    places = list(zip(voxel_size_nm, settings.told_apart, strict=True))
    alike = [
        max(r for r, other in zip(reach, places, strict=True) if other == place) for place in places
    ]
    z, y, x = (min(r, n) for r, n in zip(alike, shape or alike, strict=True))
    return z, y, x


def affinity_reach(settings: TargetSettings) -> Reach:
    """Voxels that the affinity offsets reach, zyx; 0 without."""
    z, y, x = (max((abs(o[a]) for o in settings.affinity_offsets), default=0) for a in range(3))
    return z, y, x


def counted_reach(settings: TargetSettings) -> Reach:
    """Voxels that affinities, and what counts, depend on, zyx: offsets, and the mask's erosion."""
    z, y, x = (
        offset + erosion
        for offset, erosion in zip(affinity_reach(settings), settings.mask_erosion, strict=True)
    )
    return z, y, x


def weight_reach(settings: TargetSettings, voxel_size_nm: Sequence[float]) -> Reach:
    """Voxels within the reach of boundary weights, zyx; 0 without and from section to section."""
    boundary = settings.boundary
    distance = (boundary.reach_nm or 0.0) if boundary.power else 0.0
    z, y, x = (math.ceil(distance / size) for size in voxel_size_nm)
    return (z if settings.dimensions == 3 else 0), y, x


def lsd_reach(settings: TargetSettings, voxel_size_nm: Sequence[float]) -> Reach:
    """Voxels within three sigma, zyx; 0 without LSDs and from one section to the next."""
    sigma = settings.lsd_sigma_nm or 0.0
    z, y, x = (math.ceil(TRUNCATE * sigma / size) for size in voxel_size_nm)
    return (z if settings.dimensions == 3 else 0), y, x
