import itertools

import numpy as np
import pytest
from funlib.geometry.roi import Roi
from scipy.ndimage import gaussian_filter

from custom.targets.affinities import affinities
from custom.targets.blocks import restored, target_block
from custom.targets.lsds import local_shape_descriptors, section_descriptors
from custom.targets.parts import weight_part
from custom.targets.settings import target_settings

SHAPE = (21, 47, 38)
VOXEL_SIZE = (8.0, 4.0, 5.0)
OFFSETS = [[1, 0, 0], [0, -5, 0], [2, 0, -7]]


def labels_and_mask(objects: int = 6, seed: int = 0):
    """Smooth objects, some background, a tenth not annotated."""
    rng = np.random.default_rng(seed)
    fields = [gaussian_filter(rng.normal(size=SHAPE), 3) for _ in range(objects)]
    labels = np.argmax(fields, 0).astype(np.uint32) * 2
    return labels, rng.random(SHAPE) < 0.9


def whole(settings, labels, mask, size=(7, 9, 14)):
    """Targets put together from blocks of unequal edges."""
    target = np.zeros((settings.layout.num_outputs, *SHAPE), np.uint8)
    weights = np.zeros(SHAPE, np.float16)
    covered = np.zeros(SHAPE, int)

    def read(box):
        assert Roi((0, 0, 0), SHAPE).contains(box)
        return labels[box.to_slices()], mask[box.to_slices()]

    for corner in itertools.product(*(range(0, n, s) for n, s in zip(SHAPE, size, strict=True))):
        edges = [min(s, n - c) for s, n, c in zip(size, SHAPE, corner, strict=True)]
        block = Roi(corner, edges)
        place = block.to_slices()
        target[:, *place], weights[place] = target_block(read, SHAPE, block, VOXEL_SIZE, settings)
        covered[place] += 1
    assert (covered == 1).all()
    return target, weights


def test_blocks_have_the_affinities_of_the_whole_volume():
    labels, mask = labels_and_mask()
    target, _ = whole(target_settings(OFFSETS, None), labels, mask)
    np.testing.assert_array_equal(restored(target), affinities(labels, OFFSETS)[0])
    assert set(np.unique(target)) == {0, 255}


@pytest.mark.parametrize("downsample", [1, (1, 2, 3), 2])
def test_blocks_have_the_lsds_of_the_whole_volume(downsample):
    labels, mask = labels_and_mask()
    settings = target_settings([[1, 0, 0]], 14.0, np.broadcast_to(downsample, 3).tolist())
    target, _ = whole(settings, labels, mask)
    expected = local_shape_descriptors(labels, 14.0, VOXEL_SIZE, downsample=downsample)
    np.testing.assert_allclose(restored(target[1:]), expected, rtol=0, atol=0.5 / 255 + 1e-5)


WEIGHTS = {
    "inverse": {"boundary_reach_nm": 29.0},
    "length": {"boundary_reach_nm": 40.0, "boundary_length_nm": 11.0},
    "gaussian": {"boundary_form": "gaussian", "boundary_sigma_nm": 9.0, "boundary_reach_nm": 33.0},
    "instances": {"boundary_between": "instances", "boundary_reach_nm": 20.0},
    "sections": {"dimensions": 2, "boundary_reach_nm": 29.0},
    "nothing beyond the face": {"boundary_reach_nm": 1.0},
}


@pytest.mark.parametrize("options", WEIGHTS.values(), ids=WEIGHTS)
def test_blocks_have_the_weights_of_the_whole_volume(options):
    labels, mask = labels_and_mask()
    labels[:, :20] = 3  # boundaries are up to 20 voxels away
    mask[:, :20] = True
    settings = target_settings([[0, 1, 0]], None, boundary_power=1.5, **options)
    _, weights = whole(settings, labels, mask)
    expected = weight_part(labels, mask, VOXEL_SIZE, settings)
    assert len(np.unique(expected)) >= (2 if options["boundary_reach_nm"] == 1 else 5)
    np.testing.assert_allclose(weights.astype(float), expected, rtol=1 / 2048)


def test_blocks_of_joined_background_have_the_affinities_of_the_whole_volume():
    labels, mask = labels_and_mask()
    settings = target_settings(OFFSETS, None, affinity_background="joined")
    expected, _ = affinities(labels, OFFSETS, background="joined")
    np.testing.assert_array_equal(restored(whole(settings, labels, mask)[0]), expected)


def test_blocks_have_the_lsds_of_the_whole_volumes_sections():
    labels, mask = labels_and_mask()
    settings = target_settings([[0, 1, 0]], 14.0, [3, 1, 2], dimensions=2)
    target, _ = whole(settings, labels, mask)
    assert len(target) == 7
    expected = section_descriptors(labels, 14.0, VOXEL_SIZE[1:], downsample=(1, 2))
    np.testing.assert_allclose(restored(target[1:]), expected, rtol=0, atol=0.5 / 255 + 1e-5)


def test_weights_are_1_without_a_power_and_outside_the_mask():
    labels, mask = labels_and_mask()
    _, weights = whole(target_settings([[1, 0, 0]], None), labels, mask)
    assert (weights == 1).all()
    _, weights = whole(target_settings([[1, 0, 0]], None, boundary_power=2), labels, mask)
    assert (weights[~mask] == 1).all() and not (weights[mask] == 1).all()
