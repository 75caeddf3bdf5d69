from collections import Counter
from collections.abc import Hashable
from itertools import product
from typing import Any

import pytest
import torch

from custom.errors import InputError
from custom.planes import NORMAL_AXIS, PLANES
from custom.sections import Sections
from custom.shifts import RandShiftedSectionsd, shift_sections
from tests.crops import HALO, SHAPE, VOXEL_SIZE, all_planes, assert_alike, assert_unchanged, copied
from tests.planted import assert_in_register, planted

SHIFTS = [
    (Sections(0, 2, 4), (0, 2, -3)),
    (Sections(0, 0, 1), (0, -1, 0)),
    (Sections(1, 6, 7), (2, 0, 3)),
    (Sections(2, 3, 5), (-2, 1, 0)),
]


def lies(place: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return all(0 <= p < n for p, n in zip(place, shape, strict=True))


@pytest.mark.parametrize(("sections", "shift"), SHIFTS, ids=str)
def test_raw_labels_and_mask_come_from_where_they_were_or_do_not_count(
    sections: Sections, shift: tuple[int, int, int]
) -> None:
    sample = all_planes()
    kept = copied(sample)
    found = shift_sections(sample, ["image"], sections, shift)
    image, labels, mask = (found[key][0] for key in ("image", "labels", "mask"))
    unknown = 0
    for place in product(*(range(n) for n in labels.shape)):
        inner = tuple(p - h for p, h in zip(place, HALO, strict=True))
        moves = sections.start <= inner[sections.axis] < sections.stop
        by = shift if moves else (0, 0, 0)
        source = tuple(p - d for p, d in zip(place, by, strict=True))
        origin = tuple(p - d for p, d in zip(inner, by, strict=True))
        known = lies(source, labels.shape)
        if known:
            assert labels[place] == kept["labels"][0][source]
        if lies(inner, SHAPE):
            if lies(origin, SHAPE):
                assert image[inner] == kept["image"][0][origin]
            else:
                known = False
        unknown += not known
        assert mask[place] == (known and kept["mask"][0][source])
    assert unknown
    assert_unchanged(sample, kept)


@pytest.mark.parametrize("plane", PLANES)
def test_a_planted_blob_stays_on_itself_in_a_shifted_section(plane: str) -> None:
    axis, shape = NORMAL_AXIS[plane], (18, 21, 24)
    sample = planted(shape, halo=(3, 3, 3))
    shift = [2, -3, 1]
    shift[axis] = 0
    sections = Sections(axis, 4, 9)
    found = shift_sections(sample, ["image"], sections, (shift[0], shift[1], shift[2]))
    known = torch.ones(shape, dtype=torch.bool)
    part = known.narrow(axis, sections.start, sections.stop - sections.start)
    for other, distance in enumerate(shift):
        if distance:
            start = 0 if distance > 0 else shape[other] + distance
            part.narrow(other, start, abs(distance)).fill_(False)
    assert_in_register(found, [plane], known)
    with pytest.raises(AssertionError):  # tokens that stay are seen
        assert_in_register({**found, f"tokens_{plane}": sample[f"tokens_{plane}"]}, [plane], known)
    for other_plane in PLANES:
        if other_plane != plane:
            name = f"tokens_{other_plane}"
            moved = (found[name] != sample[name]).any(0).any(dim=NORMAL_AXIS[other_plane])
            assert moved.any(), "of five sections, each token of which has two or three"


def test_tokens_of_planes_that_cross_one_section_stay() -> None:
    sample = all_planes(steps=(4.0, 3.0, 2.5))
    found = shift_sections(sample, ["image"], Sections(0, 3, 4), (0, 3, -1))
    assert_unchanged(found, sample, but=("image", "labels", "mask", "tokens_xy"))
    before, after = sample["tokens_xy"].float(), found["tokens_xy"].float()
    assert torch.equal(after[:, :3], before[:, :3]) and torch.equal(after[:, 4:], before[:, 4:])
    along_y = before[:, 3, [0, 0, 1], :]  # one step of three voxels; its border repeats
    along_x = torch.cat([along_y[..., 1:], along_y[..., -1:]], -1)
    expected = torch.lerp(along_y, along_x, 1 / 2.5)
    torch.testing.assert_close(after[:, 3], expected, rtol=0, atol=2e-3)


def test_dense_features_move_with_raw() -> None:
    image = all_planes()["image"]
    sample: dict[Hashable, Any] = {**all_planes(), "features": torch.cat([image, 2 * image])}
    found = shift_sections(sample, ["image"], *SHIFTS[2])
    torch.testing.assert_close(found["features"], torch.cat([found["image"], 2 * found["image"]]))


def test_every_shift_but_none_is_drawn_alike() -> None:
    transform = RandShiftedSectionsd("image", 1.0, max_shift=2).set_random_state(0)
    sample, total = all_planes(), 7200
    drawn: Counter[tuple[int, ...]] = Counter()
    for _ in range(total):
        transform.randomize(sample)
        axis = transform.sections.axis
        drawn[axis, *transform.shift] += 1
        assert transform.shift[axis] == 0 and any(transform.shift)
    assert len(drawn) == 3 * 24
    assert_alike(list(drawn.values()), total / 72)


def test_a_draw_is_applied_as_drawn() -> None:
    sample = all_planes(voxel_size=VOXEL_SIZE)
    transform = RandShiftedSectionsd("image", 1.0).set_random_state(3)
    found = transform(sample)
    expected = shift_sections(sample, ["image"], transform.sections, transform.shift)
    assert_unchanged(found, expected)
    assert not torch.equal(found["labels"], sample["labels"])


def test_targets_of_a_cache_and_shifts_beyond_the_crop_are_refused() -> None:
    sample = all_planes()
    with pytest.raises(InputError, match="cached_targets cannot be used with RandShiftedSections"):
        RandShiftedSectionsd("image", 1.0)({**sample, "target": torch.zeros(1)})
    with pytest.raises(InputError, match=r"max_shift of .* is 7, as large as the crop \[6, 7, 9\]"):
        RandShiftedSectionsd("image", 1.0, axis="z", max_shift=7)(sample)
