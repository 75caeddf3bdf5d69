from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from funlib.geometry.roi import Roi
from hypothesis import assume, given
from hypothesis import strategies as st

from custom.features.lattice import AxisLattice, plane_lattice
from custom.features.spec import FeatureSpec
from custom.planes import NORMAL_AXIS, PLANES, interpolation_matrix


@st.composite
def lattices(draw: st.DrawFn) -> AxisLattice:
    patch = draw(st.sampled_from([4, 14, 16]))
    window = patch * draw(st.integers(1, 6))
    overlap = patch * draw(st.integers(0, window // patch - 1))
    scale = draw(st.sampled_from([0.3, 0.5, 1.0, 2.0, 2.016, 3.5]))
    stride = draw(st.sampled_from([s for s in range(1, patch + 1) if patch % s == 0]))
    return AxisLattice(draw(st.integers(1, 90)), scale, patch, window, overlap, stride)


def all_windows(lattice: AxisLattice) -> list[int]:
    return lattice.windows_touching(range(lattice.num_patches))


@st.composite
def boxes(draw: st.DrawFn) -> tuple[AxisLattice, int, int]:
    lattice = draw(lattices())
    offset = draw(st.integers(0, lattice.size - 1))
    return lattice, offset, draw(st.integers(1, lattice.size - offset))


@given(lattices())
def test_entries_cover_the_volume_and_windows_cover_the_patches(lattice: AxisLattice) -> None:
    ends = lattice.corner, lattice.corner + lattice.num_patches * lattice.step
    assert ends[0] <= 0 and ends[1] >= lattice.size - 1e-3
    assert ends[0] + lattice.step > 0 and ends[1] - lattice.step < lattice.size
    held = {window: set(lattice.patches_of(window)) for window in all_windows(lattice)}
    wanted = set(range(lattice.num_patches))
    assert set().union(*held.values()) >= wanted
    for shift in range(lattice.shifts):
        own = [
            patches & wanted for window, patches in held.items() if window % lattice.shifts == shift
        ]
        if own:
            assert own[-1] - set().union(*own[:-1]), "the last window is of no use"


@given(lattices())
def test_a_patch_lies_around_the_centre_of_its_entry(lattice: AxisLattice) -> None:
    for window in all_windows(lattice):
        for i, patch in enumerate(lattice.patches_of(window)):
            place = first_pixel(lattice, window) + i * lattice.patch_size
            centre = (place + lattice.patch_size / 2) / lattice.pixels_per_voxel
            assert centre == pytest.approx(lattice.corner + (patch + 0.5) * lattice.step)


def first_pixel(lattice: AxisLattice, window: int) -> int:
    """Where a window begins: whole windows from the place of its shift."""
    shifts = lattice.patch_size // lattice.stride
    index, shift = divmod(window, shifts)
    return index * (lattice.window - lattice.overlap) + (shift - shifts // 2) * lattice.stride


@pytest.mark.parametrize(("stride", "corner"), [(12, 0), (6, -3), (4, 0), (3, -1.5), (1, -0.5)])
def test_shifted_entries_typed_by_hand(stride: int, corner: float) -> None:
    lattice = AxisLattice(24, 1.0, 12, 24, 0, stride)
    assert lattice.corner == corner
    assert lattice.num_patches == 24 / stride + (corner < 0)
    firsts = sorted(first_pixel(lattice, w) for w in range(lattice.shifts))
    assert firsts[0] + 6 - stride / 2 == corner, "the first patch's centre is the first entry's"
    assert [b - a for a, b in pairwise(firsts)] == [stride] * (12 // stride - 1)


def test_rounding_does_not_add_a_patch() -> None:
    assert AxisLattice(250, 504 / 250, 14, 504, 0, 14).num_patches == 36
    assert all_windows(AxisLattice(250, 504 / 250, 14, 504, 0, 14)) == [0]
    assert AxisLattice(251, 504 / 250, 14, 504, 0, 14).num_patches == 37
    assert AxisLattice(250, 504 / 250, 14, 504, 0, 7).num_patches == 73
    uneven = AxisLattice(25, 448 / 100, 14, 448, 0, 14)
    assert uneven.size / uneven.step > 8  # by rounding alone
    assert uneven.num_patches == 8


@given(boxes())
def test_windows_touching_are_all_that_hold_a_patch(box: tuple[AxisLattice, int, int]) -> None:
    lattice, offset, size = box
    patches = lattice.patches_for(offset, size)
    touching = lattice.windows_touching(patches)
    expected = {k for k in all_windows(lattice) if set(lattice.patches_of(k)) & set(patches)}
    assert len(touching) == len(expected) and set(touching) == expected


@given(lattices())
def test_shares_of_a_patch_sum_to_one(lattice: AxisLattice) -> None:
    total = torch.zeros(lattice.num_patches)
    for k in all_windows(lattice):
        for patch, share in zip(lattice.patches_of(k), lattice.blending(k), strict=True):
            assert share > 0
            if patch < lattice.num_patches:
                total[patch] += share
    torch.testing.assert_close(total, torch.ones_like(total))


def test_shares_are_linear_ramps_where_two_windows_overlap() -> None:
    lattice = AxisLattice(64, 1.0, 4, 24, 8, 4)  # 6 patches per window, the last 2 shared
    torch.testing.assert_close(lattice.blending(0), torch.tensor([1, 1, 1, 1, 0.75, 0.25]))
    torch.testing.assert_close(lattice.blending(1), torch.tensor([0.25, 0.75, 1, 1, 0.75, 0.25]))
    shifted = AxisLattice(64, 1.0, 4, 24, 8, 2)  # windows 0 and 2 are those of one shift
    torch.testing.assert_close(shifted.blending(0), lattice.blending(0))
    torch.testing.assert_close(shifted.blending(2), lattice.blending(1))


@given(boxes(), st.integers(0, 2**16))
def test_a_boxs_patches_interpolate_as_the_whole_volumes(
    box: tuple[AxisLattice, int, int], seed: int
) -> None:
    lattice, offset, size = box
    step, corner = lattice.step, lattice.corner
    values = torch.rand(lattice.num_patches, generator=torch.Generator().manual_seed(seed))
    whole = interpolation_matrix(lattice.size, lattice.num_patches, corner, step) @ values
    wanted = lattice.patches_for(offset, size)
    start = corner + wanted.start * step - offset
    part = interpolation_matrix(size, len(wanted), start, step) @ values[wanted.start : wanted.stop]
    torch.testing.assert_close(part, whole[offset : offset + size], atol=1e-4, rtol=0)


@given(lattices(), st.integers(0, 2**16))
def test_pixels_are_interpolated_at_their_place_and_reflected_beyond_the_volume(
    lattice: AxisLattice, seed: int
) -> None:
    assume(lattice.pixels_per_voxel >= 1)
    values = np.random.default_rng(seed).random(lattice.size)
    pad = 2 * lattice.window
    padded = np.pad(values, pad, mode="reflect") if lattice.size > 1 else np.repeat(values, 2 * pad)
    for k in all_windows(lattice):
        voxels, matrix = lattice.resampling(k)
        assert 0 <= voxels.start < voxels.stop <= lattice.size
        first = first_pixel(lattice, k)
        place = (np.arange(first, first + lattice.window) + 0.5) / lattice.pixels_per_voxel - 0.5
        expected = np.interp(place, np.arange(len(padded)) - pad, padded)
        found = matrix.numpy() @ values[voxels.start : voxels.stop]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_shrinking_is_antialiased_as_torch_does_it() -> None:
    lattice = AxisLattice(64, 0.25, 4, 16, 0, 4)
    voxels, matrix = lattice.resampling(0)
    values = torch.rand(64, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(
        values[None, None, None], size=(1, 16), mode="bilinear", antialias=True
    ).flatten()
    assert voxels == range(64)
    torch.testing.assert_close((matrix @ values)[1:-1], expected[1:-1])  # ends: reflected


@given(lattices())
def test_a_windows_pixels_depend_on_the_volume_alone(lattice: AxisLattice) -> None:
    for k in all_windows(lattice):
        torch.testing.assert_close(
            lattice.resampling(k)[1].sum(1), torch.ones(lattice.window), atol=1e-5, rtol=0
        )


def spec(**changes: object) -> FeatureSpec:
    values = {
        "backbone": "b",
        "digest": "d",
        "patch_size": 4,
        "channels": 2,
        "layers": (1,),
        "final_norm": True,
        "pixels_per_voxel": (0.5, 1.0, 2.0),
        "window": 16,
        "overlap": 4,
        "planes": PLANES,
        "intensity_percentiles": (0.1, 99.9),
        "image_mean": (0.5, 0.5, 0.5),
        "image_std": (0.2, 0.2, 0.2),
        "precision": "float32",
        "dtype": "float16",
        "layout": "tokens",
    }
    return FeatureSpec.from_json({**values, **changes})


@pytest.mark.parametrize("plane", PLANES)
def test_a_plane_has_slices_along_its_normal_and_patches_along_the_others(plane: str) -> None:
    roi = Roi((6, 8, 11), (5, 7, 9))
    lattice = plane_lattice(spec(), (40, 30, 20), roi, plane)
    normal = NORMAL_AXIS[plane]
    assert list(lattice.normal) == list(range(roi.begin[normal], roi.end[normal]))
    assert (lattice.start[normal], lattice.step[normal]) == (0, 1)
    for axis, patches in zip({0, 1, 2} - {normal}, lattice.patches, strict=True):
        size = (8.0, 4.0, 2.0)[axis]  # patch / pixels_per_voxel
        assert lattice.step[axis] == size
        assert lattice.start[axis] == patches.start * size - roi.offset[axis]


@pytest.mark.parametrize("plane", PLANES)
def test_slices_are_counted_from_the_volumes_first(plane: str) -> None:
    shape, roi = (40, 30, 20), Roi((6, 8, 11), (5, 7, 9))
    lattice = plane_lattice(spec(slice_step=[3, 4, 7]), shape, roi, plane)
    normal = NORMAL_AXIS[plane]
    expected = {"xy": [6, 9, 12], "xz": [8, 12, 16], "yz": [7, 14]}[plane]
    assert list(lattice.normal) == expected  # after 14 there is no slice 21 in 20 voxels
    assert lattice.step[normal] == (3, 4, 7)[normal]
    centre = lattice.start[normal] + lattice.step[normal] / 2
    assert centre == expected[0] - roi.offset[normal] + 0.5, "an entry's centre is its slice's"


@given(st.integers(1, 9), st.data())
def test_a_boxs_slices_interpolate_as_the_whole_volumes(every: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 40))
    offset = data.draw(st.integers(0, size - 1))
    count = data.draw(st.integers(1, size - offset))
    values = torch.rand(size, generator=torch.Generator().manual_seed(every))

    def dense(first: int, number: int) -> torch.Tensor:
        roi = Roi((first, 0, 0), (number, 4, 4))
        lattice = plane_lattice(spec(slice_step=[every, 1, 1]), (size, 4, 4), roi, "xy")
        taken = values[list(lattice.normal)]
        return interpolation_matrix(number, len(taken), lattice.start[0], every) @ taken

    whole = dense(0, size)
    torch.testing.assert_close(dense(offset, count), whole[offset : offset + count])
    torch.testing.assert_close(whole[::every], values[::every])
