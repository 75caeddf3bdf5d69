"""The parts of a target, computed from labels as the settings say."""

from collections.abc import Sequence

import numpy as np
from funlib.geometry.roi import Roi
from numpy.typing import NDArray

from custom.targets.affinities import affinities
from custom.targets.boundary_weights import boundary_weights
from custom.targets.lsds import local_shape_descriptors, section_descriptors
from custom.targets.settings import TargetSettings


def affinity_part(labels: NDArray[np.integer], settings: TargetSettings) -> NDArray[np.float32]:
    """Affinities (K, D, H, W) of labels (D, H, W); 0 where the neighbour lies outside."""
    affinity, _ = affinities(
        labels, settings.affinity_offsets, background=settings.affinity_background
    )
    return affinity


def lsd_part(
    labels: NDArray[np.integer],
    voxel_size_nm: Sequence[float],
    settings: TargetSettings,
    roi: Roi | Sequence[slice] | None = None,
) -> NDArray[np.float32]:
    """LSDs (10, D, H, W), or (6, D, H, W) of sections, of a box of labels (D, H, W)."""
    assert settings.lsd_sigma_nm
    if settings.dimensions == 2:
        return section_descriptors(
            labels,
            settings.lsd_sigma_nm,
            tuple(voxel_size_nm)[1:],
            roi,
            settings.lsd_downsample[1:],
        )
    return local_shape_descriptors(
        labels, settings.lsd_sigma_nm, voxel_size_nm, roi, settings.lsd_downsample
    )


def weight_part(
    labels: NDArray[np.integer],
    mask: NDArray[np.bool_],
    voxel_size_nm: Sequence[float],
    settings: TargetSettings,
) -> NDArray[np.float32]:
    """Boundary weights (D, H, W) of labels of which those in ``mask`` are known."""
    boundary = settings.boundary
    if boundary.power == 0:
        return np.ones(labels.shape, np.float32)
    return boundary_weights(
        labels,
        boundary.power,
        voxel_size_nm,
        boundary.form,
        boundary.peak,
        boundary.sigma_nm,
        mask,
        boundary.length_nm,
        boundary.reach_nm,
        boundary.between,
        settings.dimensions,
    )
