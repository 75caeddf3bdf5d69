import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from custom.targets.boundary_weights import boundary_weights
from tests.oracles import boundary_weights_by_loop

SHAPES = array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5)
IDS = st.sampled_from([0, 1, 2, 2**32 + 1])


@given(
    data=st.data(),
    shape=SHAPES,
    power=st.sampled_from([0.5, 1.0, 2.0]),
    voxel_size=st.sampled_from([(1, 1, 1), (40, 4, 8)]),
    form=st.sampled_from(["inverse", "gaussian"]),
    between=st.sampled_from(["all", "instances"]),
    dimensions=st.sampled_from([2, 3]),
    length=st.sampled_from([None, 7.5]),
    reach=st.sampled_from([None, 1.5, 13.0]),
)
def test_equal_to_the_loop_over_voxels(data, shape, **options):
    labels = data.draw(arrays(np.uint64, shape, elements=IDS))
    mask = data.draw(st.none() | arrays(np.bool_, shape))
    options |= {"peak": 6, "sigma": 2}
    weights = boundary_weights(labels, **options, mask=mask)
    assert weights.dtype == np.float32
    expected = boundary_weights_by_loop(labels, **options, mask=mask)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)


def test_a_row_typed_by_hand():
    labels = np.array([[[1, 1, 1, 2, 2, 2, 2]]])
    expected = [1 / 3, 1 / 2, 1, 1, 1 / 2, 1 / 3, 1 / 4]
    np.testing.assert_allclose(boundary_weights(labels)[0, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(boundary_weights(labels, 2.0)[0, 0], np.square(expected), rtol=1e-6)


def test_the_gaussian_form_peaks_at_the_boundary():
    labels = np.array([[[1, 1, 1, 0, 0, 0, 0]]])
    weights = boundary_weights(labels, form="gaussian", peak=5, sigma=1)[0, 0]
    np.testing.assert_allclose(weights[2:4], 5)
    np.testing.assert_allclose(weights[1], 1 + 4 * np.exp(-0.5), rtol=1e-6)


@pytest.mark.parametrize("form", ["inverse", "gaussian"])
@pytest.mark.parametrize("value", [0, 7])
def test_without_a_boundary_all_weights_are_one(form, value):
    labels = np.full((3, 4, 5), value)
    np.testing.assert_array_equal(boundary_weights(labels, form=form), np.ones((3, 4, 5)))


@pytest.mark.parametrize(
    "lengths",
    [{"reach": 8.0}, {"reach": 8.0, "length": 6.0}, {"form": "gaussian", "sigma": 6.0}],
    ids=["smallest edge", "stated length", "gaussian"],
)
def test_a_change_of_unit_changes_nothing(lengths):
    labels = np.zeros((4, 6, 8), dtype=int)
    labels[2:, 3:, :5] = 1
    in_microns = {
        k: v / 1000 if k in ("reach", "length", "sigma") else v for k, v in lengths.items()
    }
    np.testing.assert_allclose(
        boundary_weights(labels, voxel_size=(40, 4, 5), **lengths),
        boundary_weights(labels, voxel_size=(0.04, 0.004, 0.005), **in_microns),
        rtol=1e-6,
    )


def test_distances_are_in_the_unit_of_the_voxel_size():
    labels = np.array([[[1, 1, 1, 2, 2, 2, 2]]])
    weights = boundary_weights(labels, voxel_size=(40, 8, 4), length=10, reach=7)[0, 0]
    expected = [1 / 1.7, 1 / 1.4, 1, 1, 1 / 1.4, 1 / 1.7, 1 / 1.7]
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_boundaries_between_instances_leave_background_out():
    labels = np.array([[[1, 1, 1, 0, 0, 3, 3, 2, 2]]])
    weights = boundary_weights(labels, between="instances")[0, 0]
    expected = 1 / (1 + np.array([6, 5, 4, 3, 2, 1, 0, 0, 1]))
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    only_background = boundary_weights(np.array([[[1, 1, 0, 2]]]), between="instances")
    np.testing.assert_array_equal(only_background, 1)
    bounded = boundary_weights(np.array([[[1, 1, 0, 2]]]), between="instances", reach=1)
    np.testing.assert_array_equal(bounded, 0.5)


def test_sections_do_not_see_each_other():
    labels = np.array([[[1, 1, 1, 2]], [[1, 1, 1, 1]]])
    weights = boundary_weights(labels, dimensions=2, voxel_size=(1, 8, 8))
    np.testing.assert_allclose(weights, [[[1 / 3, 1 / 2, 1, 1]], [[1, 1, 1, 1]]], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": np.ones((2, 3), int)}, "labels must be 3D"),
        ({"form": "linear"}, "form must be 'inverse' or 'gaussian'"),
        ({"between": "objects"}, "between must be 'all' or 'instances'"),
        ({"dimensions": 1}, "dimensions must be 2 or 3"),
        ({"sigma": 0}, "must be positive"),
        ({"sigma": float("nan")}, "must be positive"),
        ({"length": -1}, "must be positive"),
        ({"reach": -1}, "must be positive"),
        ({"voxel_size": (1, 0, 1)}, "must be positive"),
        ({"mask": np.ones((2, 3, 5), bool)}, "mask must have the shape"),
    ],
    ids=[
        "2D",
        "form",
        "between",
        "dimensions",
        "zero sigma",
        "no sigma",
        "length",
        "reach",
        "flat voxel",
        "mask of another shape",
    ],
)
def test_rejects(options, message):
    with pytest.raises(ValueError, match=message):
        boundary_weights(**{"labels": np.ones((2, 3, 4), int)} | options)
