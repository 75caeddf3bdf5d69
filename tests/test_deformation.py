import math
from typing import Any

import numpy as np
import pytest
from funlib.geometry import Roi
from hypothesis import given
from hypothesis import strategies as st

from custom.deformation import LARGEST_DISPLACEMENT, Deformation, RandDeformation, rand_deformation
from custom.errors import InputError

ROI = Roi((7, 3, 11), (9, 14, 11))
VOXEL_SIZE = (20.0, 6.0, 9.0)
SPACING = 50.0
ELASTIC = {"elastic_nm": 10.0, "spacing_nm": SPACING}


def places(*counts: int) -> list[np.ndarray[Any, Any]]:
    return [np.arange(n, dtype=float) for n in counts]


def drawn(seed: int = 0, **changes: Any) -> Deformation:
    rand = RandDeformation(**{**ELASTIC, "zoom": [0.5, 2.0], **changes})
    rand.set_random_state(seed=seed)
    return rand.draw(ROI, VOXEL_SIZE)


def still(zoom: tuple[float, float, float], centre: tuple[float, float, float]) -> Deformation:
    return Deformation(VOXEL_SIZE, centre, zoom, SPACING, np.zeros((3, 1, 1, 1)))


class TestDeformation:
    """Where voxels come from."""

    def test_without_zoom_and_displacement_everything_stays_exactly_where_it_is(self) -> None:
        deformation = still((1.0, 1.0, 1.0), (1 / 3, 0.1, math.pi))
        assert not deformation.shifts(places(4, 6, 5)).any()

    def test_the_centre_of_a_zoom_stays_and_the_rest_comes_from_nearer_to_it(self) -> None:
        z, y, x = still((2.0, 4.0, 0.5), (1.0, 2.5, 3.0)).shifts(places(3, 6, 5))
        np.testing.assert_allclose(z[:, 0, 0], [0.5, 0, -0.5])
        np.testing.assert_allclose(y[0, :, 0], 0.75 * (2.5 - np.arange(6)))
        np.testing.assert_allclose(x[0, 0], np.arange(5) - 3)

    def test_equal_control_points_move_everything_alike(self) -> None:
        displacements = np.broadcast_to(np.reshape([4.0, -3.0, 9.0], (3, 1, 1, 1)), (3, 4, 5, 6))
        deformation = Deformation(VOXEL_SIZE, (0.3, 0.0, 7.0), (1, 1, 1), SPACING, displacements)
        expected = np.reshape([4 / 20, -3 / 6, 9 / 9], (3, 1, 1, 1))
        np.testing.assert_allclose(
            deformation.shifts(places(7, 8, 9)), expected + np.zeros(504).reshape(1, 7, 8, 9)
        )

    def test_a_single_control_point_moves_its_surroundings_by_a_cubic_b_spline(self) -> None:
        """Its values at the points themselves are 2/3, and 1/6 next to them."""
        displacements = np.zeros((3, 4, 5, 6))
        displacements[2, 1, 0, 0] = 9.0
        size = (SPACING, SPACING, SPACING)
        deformation = Deformation(size, (2.0, 0.0, 0.0), (1, 1, 1), SPACING, displacements)
        z, y, x = deformation.shifts(places(7, 1, 1)) * SPACING
        assert not z.any() and not y.any()
        peak = 9 * (2 / 3) ** 2  # both other axes are at their control point
        expected = [
            peak * w for w in (1 / 6, 0, 1 / 6, 2 / 3, 1 / 6, 0, 1 / 6)
        ]  # the 4 points repeat
        np.testing.assert_allclose(x[:, 0, 0], expected, atol=1e-12)

    @given(st.integers(0, 99))
    def test_displacements_are_smooth_and_bounded_wherever_they_are_asked_for(
        self, seed: int
    ) -> None:
        along = [np.linspace(-300, 300, 1201), np.array([3.2]), np.array([-40.0])]
        shifts = drawn(seed, zoom=[1, 1]).shifts(along) * np.reshape(VOXEL_SIZE, (3, 1, 1, 1))
        assert 0.5 < np.abs(shifts).max() <= ELASTIC["elastic_nm"]
        step_nm = 0.5 * VOXEL_SIZE[0]
        assert (
            np.abs(np.diff(shifts, axis=1)).max() <= 2 * ELASTIC["elastic_nm"] * step_nm / SPACING
        )

    @given(st.integers(0, 99), st.tuples(*[st.integers(0, 4)] * 3))
    def test_a_place_has_one_shift_whatever_else_is_asked_for(
        self, seed: int, first: tuple[int, int, int]
    ) -> None:
        deformation, all_places = drawn(seed), places(9, 14, 11)
        part = [along[f : f + 5] for along, f in zip(all_places, first, strict=True)]
        box = tuple(slice(f, f + 5) for f in first)
        whole = deformation.shifts(all_places)
        np.testing.assert_array_equal(deformation.shifts(part), whole[:, *box])

    @given(st.integers(0, 99))
    def test_anisotropic_voxels_are_deformed_isotropically_in_nm(self, seed: int) -> None:
        """The same nm of another voxel grid move by the same nm."""
        one = drawn(seed)
        fine = np.divide(VOXEL_SIZE, (5, 2, 3))
        centre = tuple(c * v / f for c, v, f in zip(one.centre, VOXEL_SIZE, fine, strict=True))
        other = Deformation(tuple(fine), centre, one.zoom, SPACING, one.displacements_nm)
        coarse_places = places(5, 4, 6)
        fine_places = [p * n for p, n in zip(coarse_places, (5, 2, 3), strict=True)]
        nm = [np.reshape(size, (3, 1, 1, 1)) for size in (VOXEL_SIZE, fine)]
        np.testing.assert_allclose(
            one.shifts(coarse_places) * nm[0], other.shifts(fine_places) * nm[1], atol=1e-9
        )

    @given(st.integers(0, 99), st.booleans())
    def test_the_largest_displacements_allowed_do_not_fold(self, seed: int, zoomed: bool) -> None:
        """Along no axis and in no direction: the Jacobian keeps its sign."""
        zoom = (1.0, 2.0, 1.3) if zoomed else (1.0, 1.0, 1.0)
        rng = np.random.default_rng(seed)
        limit = LARGEST_DISPLACEMENT * SPACING / np.reshape(zoom, (3, 1, 1, 1))
        displacements = limit * rng.choice([-1.0, 1.0], (3, 4, 4, 4))
        step = (SPACING / 8,) * 3
        deformation = Deformation(step, (0, 0, 0), zoom, SPACING, displacements)
        along = places(32, 32, 32)
        sources = np.stack(np.meshgrid(*along, indexing="ij")) + deformation.shifts(along)
        jacobian = np.stack([np.gradient(s, axis=(0, 1, 2)) for s in sources])
        assert np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1))).min() > 0

    @pytest.mark.parametrize(
        ("zoom", "spacing", "displacements", "message"),
        [
            ((1.0, 0.0, 1.0), 50.0, np.zeros((3, 1, 1, 1)), "must be positive"),
            ((1.0, math.nan, 1.0), 50.0, np.zeros((3, 1, 1, 1)), "must be positive"),
            ((1.0, 1.0, 1.0), 0.0, np.zeros((3, 1, 1, 1)), "must be positive"),
            ((1.0, 1.0, 1.0), 50.0, np.zeros((2, 1, 1, 1)), r"must be \(3, nz, ny, nx\), got \(2"),
            ((1.0, 1.0, 1.0), 50.0, np.full((3, 4, 4, 4), 20.5), "20.5 nm may fold"),
            ((1.0, 1.0, 1.5), 50.0, np.full((3, 4, 4, 4), -15.0), "22.5 nm may fold"),
            ((1.0, 1.0, 1.0), 50.0, np.full((3, 4, 4, 4), math.nan), "may fold"),
        ],
    )
    def test_what_is_no_deformation_is_refused(
        self,
        zoom: tuple[float, float, float],
        spacing: float,
        displacements: np.ndarray[Any, Any],
        message: str,
    ) -> None:
        with pytest.raises(ValueError, match=message):
            Deformation(VOXEL_SIZE, (0.0, 0.0, 0.0), zoom, spacing, displacements)


class TestDraws:
    """What is drawn, and how often."""

    def test_the_probability_is_that_of_a_sample_to_be_deformed(self) -> None:
        rand = RandDeformation(zoom=[0.5, 2], prob=0.3)
        rand.set_random_state(seed=0)
        found = []
        for _ in range(4000):
            rand.randomize()
            found.append(rand.deforms)
        assert np.mean(found) == pytest.approx(0.3, abs=0.03)

    def test_the_state_decides(self) -> None:
        one, same, other = (drawn(seed) for seed in (3, 3, 4))
        np.testing.assert_array_equal(one.displacements_nm, same.displacements_nm)
        assert one.zoom == same.zoom != other.zoom

    def test_zooms_fill_their_range_alike_on_all_axes_unless_asked_otherwise(self) -> None:
        zooms = [drawn(seed, elastic_nm=0.0).zoom for seed in range(300)]
        assert all(z == y == x for z, y, x in zooms)
        np.testing.assert_allclose(np.histogram(zooms, 3, (0.5, 2))[0] / 900, 1 / 3, atol=0.1)
        apart = [drawn(seed, zoom_per_axis=True).zoom for seed in range(300)]
        assert abs(np.corrcoef(np.transpose(apart))[0, 1:]).max() < 0.2

    def test_the_centre_is_the_crops(self) -> None:
        assert drawn().centre == (11.0, 9.5, 16.0)

    def test_control_points_fill_their_range_and_none_counts_twice_in_a_crop(self) -> None:
        displacements = drawn().displacements_nm
        assert displacements.shape == (3, 4 + 4, 4 + 2, 4 + 2)  # 180, 84 and 99 nm
        assert 9.5 < displacements.max() <= 10 and -10 <= displacements.min() < -9.5

    @given(st.integers(0, 99), st.booleans())
    def test_in_plane_sections_stay_sections(self, seed: int, per_axis: bool) -> None:
        z, y, x = drawn(seed, in_plane=True, zoom_per_axis=per_axis).shifts(places(9, 14, 11))
        assert not z.any() and y.any() and x.any()

    def test_null_is_no_deformation_and_an_object_one_with_its_arguments(self) -> None:
        assert rand_deformation(None) is None
        rand = rand_deformation({"zoom": [0.8, 1.0], "in_plane": True})
        assert rand is not None
        assert (rand.zoom, rand.in_plane, rand.elastic_nm, rand.prob) == ((0.8, 1.0), True, 0, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("elastic", "deformation must be a JSON object, got 'elastic'"),
        ({"elastic": 3}, "deformation has the unknown key 'elastic'; did you mean 'elastic_nm'"),
        ({"elastic_nm": -1, "spacing_nm": 9}, "deformation.elastic_nm must be a number from 0"),
        ({"elastic_nm": math.nan, "spacing_nm": 9}, "deformation.elastic_nm must be a number"),
        ({"elastic_nm": 20}, "needs deformation.spacing_nm, .*: 50 or more"),
        ({"elastic_nm": 20, "spacing_nm": 0}, "deformation.spacing_nm must be above 0"),
        ({"elastic_nm": 20, "spacing_nm": math.inf}, "deformation.spacing_nm must be a number"),
        ({"elastic_nm": 21, "spacing_nm": 50}, "elastic_nm 21 could fold .* make it 20 or less"),
        ({"elastic_nm": 20, "spacing_nm": 50, "zoom": [1, 2]}, "zoom up to 2, make it 10 or less"),
        ({"zoom": 1.1}, "deformation.zoom must be a list of 2 numbers, got 1.1"),
        ({"zoom": [0, 1]}, r"smallest and the largest zoom, both from 0.1 to 10, got \[0, 1\]"),
        ({"zoom": [1, 11]}, r"smallest and the largest zoom, both from 0.1 to 10, got \[1, 11\]"),
        ({"zoom": [1.2, 0.8]}, "deformation.zoom must be the smallest and the largest zoom"),
        ({"zoom": [0.9, math.nan]}, "deformation.zoom must be a list of 2 numbers"),
        ({"zoom": [0.9, 1.1], "zoom_per_axis": "no"}, "deformation.zoom_per_axis must be true or"),
        ({"zoom": [0.9, 1.1], "in_plane": 1}, "deformation.in_plane must be true or false, got 1"),
        ({"zoom": [0.9, 1.1], "prob": 0}, "deformation.prob must be above 0 and at most 1, got 0"),
        ({"zoom": [0.9, 1.1], "prob": 1.5}, "deformation.prob must be above 0 and at most 1"),
        ({"zoom": [0.9, 1.1], "prob": "half"}, "deformation.prob must be a number from 0 on"),
        ({}, "deformation deforms nothing"),
        ({"spacing_nm": 50, "prob": 0.5}, "deformation deforms nothing"),
    ],
)
def test_mistakes_are_one_sentence(settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rand_deformation(settings)
