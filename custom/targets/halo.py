"""How much of the labels around a crop its targets depend on."""

import math
from collections.abc import Sequence

from custom.targets.lsds import TRUNCATE


def target_halo(
    offsets: Sequence[Sequence[int]], lsd_sigma_nm: float | None, voxel_size_nm: Sequence[float]
) -> tuple[int, int, int]:
    """Voxels around a crop that its affinities and LSDs depend on, in all its orientations.

    An affinity depends on the voxel at its offset, an LSD on those within three sigma. Axes along
    which voxels have the same size may trade places in augmentation, so they have the same halo.

    Args:
        offsets: affinity offsets, voxels, zyx.
        lsd_sigma_nm: sigma of the LSDs in nm; None without LSDs.
        voxel_size_nm: zyx.

    Returns:
        Halo on both sides, voxels, zyx.
    """
    sigma = lsd_sigma_nm or 0.0
    reach = [
        max(math.ceil(TRUNCATE * sigma / size), *(abs(o[axis]) for o in offsets))
        for axis, size in enumerate(voxel_size_nm)
    ]
    z, y, x = (
        max(r for r, other in zip(reach, voxel_size_nm, strict=True) if other == size)
        for size in voxel_size_nm
    )
    return z, y, x
