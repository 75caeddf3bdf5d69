"""How much of the labels around a crop its targets depend on."""

import math
from collections.abc import Sequence

LSD_TRUNCATE = 3.0


def target_halo(
    offsets: Sequence[Sequence[int]], lsd_sigma_nm: float | None, voxel_size_nm: Sequence[float]
) -> tuple[int, int, int]:
    """Voxels around a crop that its affinities and LSDs depend on.

    Args:
        offsets: affinity offsets, voxels, zyx.
        lsd_sigma_nm: sigma of the LSDs in nm; None without LSDs.
        voxel_size_nm: zyx.

    Returns:
        Halo on both sides, voxels, zyx: the larger of the farthest offset and three sigma.
    """
    reach = [max(abs(o[axis]) for o in offsets) for axis in range(3)]
    sigma = lsd_sigma_nm or 0.0
    z, y, x = (
        max(r, math.ceil(LSD_TRUNCATE * sigma / size))
        for r, size in zip(reach, voxel_size_nm, strict=True)
    )
    return z, y, x
