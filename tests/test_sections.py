from collections import Counter

import pytest

from custom.artefacts import RandMissingSectionsd
from custom.blur import RandDefocusd
from custom.errors import InputError
from custom.sections import RandSectionsd, Sections
from custom.shifts import RandShiftedSectionsd
from tests.crops import ISOTROPIC, VOXEL_SIZE, assert_alike, assert_unchanged, random_crop

KINDS = (RandMissingSectionsd, RandDefocusd, RandShiftedSectionsd)


def test_every_place_of_every_run_of_sections_is_drawn_alike_edges_included() -> None:
    transform = RandDefocusd("image", 1.0, sections=(1, 3)).set_random_state(0)
    sample, total, shape = random_crop((3, 4, 5)), 9000, (3, 4, 5)
    drawn: Counter[Sections] = Counter()
    for _ in range(total):
        transform.randomize(sample)
        drawn[transform.sections] += 1
    for axis, size in enumerate(shape):
        for count in (1, 2, 3):
            share = 1 / 3
            if size == 3:  # three are all of them: two are drawn
                share = {1: 1 / 3, 2: 2 / 3, 3: 0}[count]
            runs = [Sections(axis, s, s + count) for s in range(size - count + 1)]
            assert_alike([drawn[run] for run in runs], total / 3 * share / len(runs))
    assert sum(drawn.values()) == total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("axis", "voxel_size", "expected"),
    [
        ("auto", ISOTROPIC, {0, 1, 2}),
        ("auto", VOXEL_SIZE, {0}),
        ("auto", (4.0, 8.0, 8.0), {0}),
        ("z", ISOTROPIC, {0}),
        ("y", ISOTROPIC, {1}),
        ("x", VOXEL_SIZE, {2}),
    ],
    ids=str,
)
def test_sections_lie_along_z_unless_voxels_are_isotropic(
    kind: type[RandSectionsd], axis: str, voxel_size: tuple[float, ...], expected: set[int]
) -> None:
    transform = kind("image", prob=1.0, axis=axis).set_random_state(0)
    sample, drawn = random_crop(voxel_size=voxel_size), set()
    for _ in range(40):
        transform(sample)
        drawn.add(transform.sections.axis)
    assert drawn == expected


@pytest.mark.parametrize("voxel_size", [ISOTROPIC, VOXEL_SIZE], ids=str)
def test_a_crop_of_a_single_section_is_left_alone(voxel_size: tuple[float, ...]) -> None:
    flat = random_crop((1, 6, 7), voxel_size)
    transform = RandMissingSectionsd("image", 1.0).set_random_state(0)
    for _ in range(20):
        assert_unchanged(transform(flat), flat)
    with pytest.raises(InputError, match=r"crop of \[1, 6, 7\] voxels has a single section along"):
        RandMissingSectionsd("image", 1.0, axis="z")(flat)


def test_some_sections_of_a_crop_always_stay() -> None:
    transform = RandMissingSectionsd("image", 1.0, sections=(2, 50), value=3.0, axis="z")
    for seed in range(30):
        image = transform.set_random_state(seed)(random_crop())["image"][0]
        assert 2 <= (image == 3.0).all((1, 2)).sum() <= 5
    with pytest.raises(InputError, match="is at least 6, but a crop has only 6 along z; lower"):
        RandMissingSectionsd("image", 1.0, sections=(6, 50), axis="z")(random_crop())
