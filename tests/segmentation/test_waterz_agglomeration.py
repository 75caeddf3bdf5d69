import os

import numpy as np
import pytest
import waterz
from hypothesis import given, settings
from hypothesis import strategies as st
from waterz import _codegen

from custom.errors import InputError
from custom.segmentation.fragments import connected_components, consecutive
from custom.segmentation.region_graph import region_graph
from custom.segmentation.waterz_agglomeration import (
    QUANTILES,
    scoring_function,
    waterz_agglomerate,
    waterz_merge,
)
from tests.oracles import same_partition
from tests.segmentation.laws import IN_PLANE, OFFSETS, cells, flipped, perfect

NEAREST = OFFSETS[:3]
SCORINGS = ["mean", "hist_quant_50", "hist_quant_75", "hist_quant_25_initmax"]


def blocks(truth, size=3):
    """Pieces of objects, cut at a lattice."""
    lattice = sum(np.indices(truth.shape)[a] // size * 100**a for a in range(3))
    return connected_components(np.where(truth == 0, 0, truth.astype(int) * 10**7 + lattice))


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("threshold", [0.01, 0.5, 0.99])
def test_perfect_affinities_join_the_pieces_of_every_object(scoring, threshold):
    truth = cells()
    truth[truth == 2] = 0
    found = waterz_agglomerate(blocks(truth), perfect(truth), OFFSETS, threshold, scoring)
    assert found.dtype == np.uint64
    assert same_partition(found, truth)


def by_waterz(fragments, affinities, threshold, scoring):
    """What waterz itself makes of the arrays; its affinities lead back."""
    faces = np.zeros(affinities.shape, np.float32)
    faces[0, 1:], faces[1, :, 1:] = affinities[0, :-1] / 255, affinities[1, :, :-1] / 255
    faces[2, :, :, 1:] = affinities[2, :, :, :-1] / 255
    found = fragments.copy()
    function = scoring_function(scoring)
    (segments,) = waterz.agglomerate(
        faces, [1 - threshold], fragments=found, scoring_function=function
    )
    return segments


@settings(deadline=None)
@given(
    seed=st.integers(0, 9999),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.55, 0.8]),
    scoring=st.sampled_from(["mean", "hist_quant_50", "hist_quant_75", "hist_quant_15"]),
)
def test_equal_to_waterz_on_the_arrays(seed, threshold, scoring):
    """Ties included: the row of voxels has the same edges in the same order."""
    random = np.random.default_rng(seed)
    fragments = consecutive(random.integers(0, 12, (3, 4, 5)))
    affinities = random.integers(0, 256, (3, 3, 4, 5)).astype(np.uint8)
    found = waterz_agglomerate(fragments, affinities, NEAREST, threshold, scoring)
    assert same_partition(found, by_waterz(fragments, affinities, threshold, scoring))


def neck():
    """Two halves, and the affinities across their border: a fifth is open."""
    fragments = np.ones((5, 5, 8), np.uint64)
    fragments[..., 4:] = 2
    affinities = perfect(fragments, NEAREST)
    affinities[2, 2, :, 3] = 230
    return fragments, affinities


@pytest.mark.parametrize(
    ("scoring", "threshold", "objects"),
    [
        ("hist_quant_90", 0.85, 1),
        ("hist_quant_75", 0.85, 2),
        ("hist_quant_50_initmax", 0.85, 1),
        ("mean", 0.179, 1),
        ("mean", 0.182, 2),
    ],
)
def test_a_thin_neck_is_joined_by_the_scorings_that_see_it(scoring, threshold, objects):
    fragments, affinities = neck()
    found = waterz_agglomerate(fragments, affinities, NEAREST, threshold, scoring)
    assert found.max() == objects


@pytest.mark.parametrize("axis", range(3))
def test_seen_in_a_mirror_it_is_the_same(axis):
    random = np.random.default_rng(0)
    fragments = cells(number=30)
    affinities = random.integers(0, 256, (3, *fragments.shape)).astype(np.uint8)
    found = waterz_agglomerate(fragments, affinities, NEAREST, 0.5, "mean")
    mirrored = waterz_agglomerate(
        np.flip(fragments, axis), *flipped(affinities, NEAREST, axis), 0.5, "mean"
    )
    assert 1 < found.max() < fragments.max()
    assert same_partition(np.flip(mirrored, axis), found)


def test_background_and_sections_of_in_plane_offsets_stay_apart():
    fragments = np.arange(1, 4).reshape(3, 1, 1) * np.ones((3, 2, 6), int)
    fragments[..., 3:] += 10
    fragments[2, :, 3] = 0
    affinities = np.full((4, *fragments.shape), 255, np.uint8)
    found = waterz_agglomerate(fragments, affinities, IN_PLANE, 0.1)
    expected = np.where(fragments == 0, 0, fragments % 10)
    expected[2, :, 4:] = 9
    assert same_partition(found, expected)


def test_ids_may_be_large_and_arguments_are_left_alone():
    fragments, affinities = neck()
    large = fragments + 2**63
    kept = large.copy(), affinities.copy()
    assert waterz_agglomerate(large, affinities, NEAREST, 0.0).max() == 1
    np.testing.assert_array_equal(large, kept[0])
    np.testing.assert_array_equal(affinities, kept[1])


def test_nothing_in_nothing_out():
    empty = np.zeros((2, 3, 4), np.uint64)
    assert not waterz_agglomerate(empty, np.full((3, 2, 3, 4), 255, np.uint8), NEAREST, 0.0).any()
    lone = np.array([[[1, 0, 2, 0, 3]]])
    unlinked = region_graph(lone, np.full((1, 1, 1, 5), 255, np.uint8), [(0, 0, 1)])
    np.testing.assert_array_equal(waterz_merge(unlinked, 0.5), [1, 2, 3])


def test_it_prints_nothing(capfd):
    fragments, affinities = neck()
    waterz_agglomerate(fragments, affinities, NEAREST, 0.5)
    assert capfd.readouterr().out == ""
    os.write(1, b"after")
    assert capfd.readouterr().out == "after"


@pytest.mark.parametrize("ending", ["", "_initmax"])
@pytest.mark.parametrize("quantile", QUANTILES)
def test_every_scoring_is_compiled_already(quantile, ending):
    """In waterz's wheels: no user needs a compiler."""
    ready = {
        (_codegen.normalize(function), int(queue)) for function, queue in _codegen.iter_specs()
    }
    assert (_codegen.normalize(scoring_function("mean")), 0) in ready
    assert (_codegen.normalize(scoring_function(f"hist_quant_{quantile}{ending}")), 0) in ready


@pytest.mark.parametrize("name", ["median", "hist_quant_33", "hist_quant_5", "hist_quant_75_max"])
def test_other_scorings_are_refused(name):
    with pytest.raises(InputError, match=f"scoring must be 'mean'.*got '{name}'"):
        scoring_function(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": NEAREST[:2]}, "one channel for each of the 2 offsets"),
        ({"threshold": 1.1}, "threshold must be 0 to 1, got 1.1"),
        ({"fragments": np.ones((5, 5, 7), int)}, "fragments must have the shape"),
    ],
    ids=["offsets", "threshold", "shape"],
)
def test_rejects(change, message):
    fragments, affinities = neck()
    arguments = {"fragments": fragments, "offsets": NEAREST, "threshold": 0.5} | change
    with pytest.raises(ValueError, match=message):
        waterz_agglomerate(affinities=affinities, **arguments)
