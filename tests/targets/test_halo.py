import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from custom.targets.affinities import affinities
from custom.targets.halo import target_halo
from custom.targets.lsds import local_shape_descriptors
from custom.targets.settings import target_settings

OFFSETS = st.lists(st.tuples(*[st.integers(-4, 4)] * 3).filter(any), min_size=1, max_size=3)
VOXEL_SIZES = st.tuples(*[st.sampled_from([4.0, 5.5, 8.0, 30.0])] * 3)


@pytest.mark.parametrize(
    ("offsets", "sigma", "size", "expected"),
    [
        ([(1, 0, 0), (0, -9, 0), (0, 3, 5)], None, (8.0, 5.0, 4.0), (1, 9, 5)),
        ([(1, 0, 0), (0, -9, 0), (0, 3, 5)], None, (8.0, 4.0, 4.0), (1, 9, 9)),
        ([(1, 0, 0), (0, 1, 0), (0, 0, 1)], 80.0, (40.0, 8.0, 9.0), (6, 30, 27)),
        ([(1, 0, 0), (0, 40, 0), (0, 0, 1)], 80.0, (8.0, 8.0, 8.0), (40, 40, 40)),
    ],
    ids=["offsets", "axes of one size", "sigma", "the larger of both"],
)
def test_typed_by_hand(offsets, sigma, size, expected):
    assert target_halo(target_settings(offsets, sigma), size) == expected


@given(
    offsets=OFFSETS,
    size=VOXEL_SIZES,
    sigma=st.sampled_from([None, 3.0, 8.0]),
    seed=st.integers(0, 99),
)
def test_targets_depend_on_no_voxel_beyond_the_halo(offsets, size, sigma, seed):
    halo, inner = target_halo(target_settings(offsets, sigma), size), (3, 2, 4)
    shape = [n + 2 * h + 4 for n, h in zip(inner, halo, strict=True)]
    far = np.random.default_rng(seed).integers(0, 3, shape)
    near = far[2:-2, 2:-2, 2:-2]

    def targets(labels, margin):
        box = tuple(slice(h + margin, h + margin + n) for h, n in zip(halo, inner, strict=True))
        affinity, valid = affinities(labels, offsets)
        assert valid[:, *box].all()
        found = [affinity[:, *box]]
        if sigma:
            found.append(local_shape_descriptors(labels, sigma, size, roi=box))
        return np.concatenate(found)

    np.testing.assert_allclose(targets(near, 0), targets(far, 2), atol=1e-5)


@given(offsets=OFFSETS, size=VOXEL_SIZES)
def test_without_lsds_some_offset_reaches_the_halos_end(offsets, size):
    halo = target_halo(target_settings(offsets, None), size)
    assert max(halo) == np.abs(offsets).max()
    reach = np.abs(offsets).max(axis=0)
    for axis in range(3):
        assert halo[axis] == max(r for r, s in zip(reach, size, strict=True) if s == size[axis])
