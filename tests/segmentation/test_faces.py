import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from custom.segmentation.faces import (
    face_affinities,
    face_channels,
    linked_pieces,
    same_across_faces,
)
from tests.oracles import same_partition

SHAPES = array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5)


def pieces_by_loop(faces, counted):
    """Join the labels of two voxels wherever an open face is between them."""
    labels = np.where(counted, 1 + np.arange(counted.size).reshape(counted.shape), 0)
    for axis, *p in np.argwhere(faces):
        q = tuple(a - (i == axis) for i, a in enumerate(p))
        if min(q) >= 0 and counted[*p] and counted[q]:
            labels[labels == labels[*p]] = labels[q]
    return labels


@given(st.data())
def test_pieces_are_those_of_the_loop_over_faces(data):
    shape = data.draw(SHAPES)
    faces = data.draw(arrays(np.bool_, (3, *shape)))
    counted = data.draw(arrays(np.bool_, shape))
    found = linked_pieces(faces, counted)
    assert found.dtype == np.uint64
    assert same_partition(found, pieces_by_loop(faces, counted))


def test_offsets_of_one_voxel_along_one_axis_count_and_the_first_of_them():
    offsets = [(0, 0, 3), (0, 1, 1), (0, 0, -1), (0, 0, 1), (1, 0, 0)]
    assert face_channels(offsets) == {2: (2, -1), 0: (4, 1)}


@pytest.mark.parametrize("sign", [1, -1])
def test_a_face_has_the_affinity_of_its_two_voxels_whichever_way_the_offset_leads(sign):
    affinities = np.random.default_rng(0).integers(1, 256, (3, 3, 4, 5)).astype(np.uint8)
    offsets = [[sign * (a == axis) for a in range(3)] for axis in range(3)]
    faces = face_affinities(affinities, offsets)
    for axis, *p in np.ndindex(faces.shape):
        before = [a - (i == axis) for i, a in enumerate(p)]
        expected = affinities[axis][*(before if sign > 0 else p)] if min(before) >= 0 else 0
        assert faces[axis][*p] == expected


@given(arrays(np.bool_, (2, 3, 4)))
def test_no_face_leads_out_of_the_mask(mask):
    affinities = np.full((3, 2, 3, 4), 9, np.uint8)
    faces = face_affinities(affinities, np.eye(3, dtype=int).tolist(), mask)
    for axis, *p in np.ndindex(faces.shape):
        before = [a - (i == axis) for i, a in enumerate(p)]
        assert bool(faces[axis][*p]) == (min(before) >= 0 and mask[*p] and mask[*before])


@given(arrays(np.uint8, SHAPES, elements=st.integers(0, 2)))
def test_neighbours_of_one_label_are_the_same(labels):
    same = same_across_faces(labels)
    for axis, *p in np.ndindex(same.shape):
        before = [a - (i == axis) for i, a in enumerate(p)]
        assert same[axis][*p] == (min(before) >= 0 and labels[*p] == labels[*before])
