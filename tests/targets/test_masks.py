import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from custom.targets.masks import eroded

SHAPES = array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6)
EROSIONS = st.tuples(*[st.integers(0, 3)] * 3)


@given(data=st.data(), shape=SHAPES, voxels=EROSIONS)
def test_what_stays_has_no_unannotated_voxel_near(data, shape, voxels):
    mask = data.draw(arrays(np.bool_, shape))
    before = mask.copy()
    found = eroded(mask, voxels)
    for p in np.ndindex(shape):
        box = tuple(slice(max(0, a - v), a + v + 1) for a, v in zip(p, voxels, strict=True))
        assert found[p] == mask[box].all()
    np.testing.assert_array_equal(mask, before)


@given(voxels=EROSIONS)
def test_the_border_of_the_array_is_no_edge_and_nothing_stays_nothing(voxels):
    for value in (True, False):
        mask = np.full((2, 5, 3), value)
        np.testing.assert_array_equal(eroded(mask, voxels), mask)


@given(data=st.data(), voxels=EROSIONS)
def test_a_crop_of_the_whole_is_the_whole_of_a_crop(data, voxels):
    mask = data.draw(arrays(np.bool_, (9, 8, 10), elements=st.integers(0, 9).map(bool)))
    inner = (slice(4, 6), slice(3, 5), slice(5, 6))
    near = tuple(slice(s.start - v, s.stop + v) for s, v in zip(inner, voxels, strict=True))
    part = tuple(slice(v, v + s.stop - s.start) for s, v in zip(inner, voxels, strict=True))
    np.testing.assert_array_equal(eroded(mask[near], voxels)[part], eroded(mask, voxels)[inner])
