from collections import Counter
from collections.abc import Hashable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from custom.artefacts import RandBlackoutd, RandMissingSectionsd, RandStreaksd, hide
from custom.features.triplane import PlaneGrid
from custom.planes import NORMAL_AXIS, PLANES
from custom.sections import Sections
from tests.crops import (
    HALO,
    SHAPE,
    VOXEL_SIZE,
    all_planes,
    assert_alike,
    assert_unchanged,
    copied,
    random_crop,
)

BOXES = [
    (slice(0, 2), slice(3, 7), slice(4, 5)),
    (slice(5, 6), slice(0, 7), slice(0, 9)),
]


def inside(boxes: list[tuple[slice, slice, slice]], shape: tuple[int, ...]) -> torch.Tensor:
    """Voxel by voxel."""
    found = torch.zeros(shape, dtype=torch.bool)
    for box in boxes:
        for place in product(*(range(n) for n in shape)):
            if all(s.start <= p < s.stop for p, s in zip(place, box, strict=True)):
                found[place] = True
    return found


def share_in(low: float, step: float, side: slice, size: int) -> float:
    """Of 64 points of an entry, which is moved into the crop where it sticks out."""
    low = min(max(low, 0), size - step)
    voxels = [np.floor(low + step * (k + 0.5) / 64) for k in range(64)]
    return float(np.mean([side.start <= voxel < side.stop for voxel in voxels]))


class TestHide:
    """Boxes of one grey value, and what they hide."""

    def test_raw_and_mask_change_in_the_same_voxels_whatever_the_halo(self) -> None:
        sample = all_planes()
        kept = copied(sample)
        found = hide(sample, ["image"], BOXES, [-1.0, 0.25], mask=True, tokens=False)
        expected = inside(BOXES, SHAPE)
        assert torch.equal(found["image"][0] != kept["image"][0], expected)
        assert (found["image"][0][BOXES[0]] == -1).all()
        assert (found["image"][0][BOXES[1]] == 0.25).all()
        z, y, x = (slice(h, h + n) for h, n in zip(HALO, SHAPE, strict=True))
        counts = kept["mask"].clone()
        counts[0, z, y, x] &= ~expected
        assert torch.equal(found["mask"], counts)
        assert_unchanged(found, kept, but=("image", "mask"))
        assert_unchanged(sample, kept)

    def test_labels_go_on_counting_on_request(self) -> None:
        sample = random_crop()
        found = hide(sample, ["image"], BOXES, [-1.0, -1.0], mask=False, tokens=True)
        assert_unchanged(found, sample, but=("image",))

    def test_tokens_are_hidden_that_lie_in_a_box_by_half_at_least(self) -> None:
        sample = all_planes()
        found = hide(sample, ["image"], BOXES, [-1.0, -1.0], mask=True, tokens=True)
        hidden = 0
        for plane in PLANES:
            name = f"tokens_{plane}"
            grid = PlaneGrid.placed(sample[name], sample[f"placement_{plane}"])
            for place in product(*(range(n) for n in grid.values.shape[1:])):
                low = [b + p * s for b, p, s in zip(grid.start, place, grid.step, strict=True)]
                sides = [list(zip(low, grid.step, box, SHAPE, strict=True)) for box in BOXES]
                share = max(np.prod([share_in(*side) for side in along]) for along in sides)
                if abs(share - 0.5) < 0.05:
                    continue
                gone = share > 0.5
                hidden += gone
                values = sample[name][:, *place]
                expected = torch.zeros_like(values) if gone else values
                assert torch.equal(found[name][:, *place], expected), (plane, place)
        assert hidden > 10
        names = [f"tokens_{plane}" for plane in PLANES]
        assert_unchanged(found, sample, but=("image", "mask", *names))

    @pytest.mark.parametrize("section", [0, 3, -1])
    @pytest.mark.parametrize("axis", range(3))
    def test_a_missing_section_hides_the_tokens_of_its_own_slice_alone(
        self, axis: int, section: int
    ) -> None:
        sample = all_planes(steps=(2.5, 3.0, 4.0))
        section %= SHAPE[axis]
        box = Sections(axis, section, section + 1).box(SHAPE)
        found = hide(sample, ["image"], [box], [0.0], mask=False, tokens=True)
        for plane in PLANES:
            gone = (found[f"tokens_{plane}"] == 0).all(0)
            expected = torch.zeros_like(gone)
            if NORMAL_AXIS[plane] == axis:
                expected.narrow(axis, section, 1).fill_(True)
            assert torch.equal(gone, expected), plane

    def test_dense_features_are_hidden_voxel_by_voxel(self) -> None:
        sample: dict[Hashable, Any] = {**random_crop(), "features": torch.ones(2, *SHAPE)}
        found = hide(sample, ["image"], BOXES, [-1.0, -1.0], mask=True, tokens=True)
        assert torch.equal(found["features"][1] == 0, inside(BOXES, SHAPE))

    def test_what_monai_tracks_goes_on_being_tracked(self) -> None:
        sample = {**random_crop(), "image": MetaTensor(random_crop()["image"])}
        found = hide(sample, ["image"], BOXES, [-1.0, 0.25], mask=True, tokens=False)
        assert isinstance(found["image"], MetaTensor)
        assert torch.equal(found["image"][0] != sample["image"][0], inside(BOXES, SHAPE))


class TestMissingSections:
    """Whole sections of one grey value."""

    def test_one_run_of_sections_has_one_value(self) -> None:
        transform = RandMissingSectionsd("image", 1.0, (1, 3), value=(-1.0, 0.5), hide_labels=True)
        values = set()
        for seed in range(30):
            sample = random_crop(seed=seed)
            found = transform.set_random_state(seed)(sample)
            box = transform.sections.box(SHAPE)
            assert found["image"][0][box].unique().tolist() == [pytest.approx(transform.value)]
            assert torch.equal(found["image"] != sample["image"], inside([box], SHAPE)[None])
            z, y, x = (slice(h, h + n) for h, n in zip(HALO, SHAPE, strict=True))
            assert not found["mask"][0, z, y, x][box].any()
            values.add(transform.value)
        assert -1 <= min(values) < -0.8 and 0.3 < max(values) <= 0.5

    def test_labels_count_by_default_and_tokens_are_hidden(self) -> None:
        sample = all_planes(voxel_size=VOXEL_SIZE, steps=(2.5, 3.0, 4.0))
        found = RandMissingSectionsd("image", 1.0)(sample)
        assert_unchanged(found, sample, but=("image", "tokens_xy"))
        assert not torch.equal(found["tokens_xy"], sample["tokens_xy"])
        plain = RandMissingSectionsd("image", 1.0, hide_tokens=False)(sample)
        assert_unchanged(plain, sample, but=("image",))


class TestBlackout:
    """Boxes at any place."""

    def test_every_place_is_drawn_alike_edges_included(self) -> None:
        transform = RandBlackoutd("image", 1.0, boxes=1, size=0.5).set_random_state(0)
        sample, total = random_crop((6, 8, 4)), 4000
        starts: Counter[tuple[int, int]] = Counter()
        for _ in range(total):
            transform.randomize(sample)
            starts.update((axis, side.start) for axis, side in enumerate(transform.boxes[0]))
        for axis, (size, edge) in enumerate(((6, 3), (8, 4), (4, 2))):
            places = size - edge + 1
            assert_alike([starts[axis, start] for start in range(places)], total / places)
        assert sum(starts.values()) == 3 * total

    def test_numbers_and_sizes_stay_in_their_ranges(self) -> None:
        transform = RandBlackoutd("image", 1.0, boxes=(2, 4), size=(0.1, 0.4), value=(-1, 1))
        transform.set_random_state(0)
        counts: Counter[int] = Counter()
        for _ in range(900):
            transform.randomize(random_crop((10, 20, 30)))
            counts[len(transform.boxes)] += 1
            for box in transform.boxes:
                edges = [s.stop - s.start for s in box]
                assert all(0.1 <= e / n <= 0.4 for e, n in zip(edges, (10, 20, 30), strict=True))
            assert len(set(transform.values)) == len(transform.values) == len(transform.boxes)
        assert counts.keys() == {2, 3, 4}
        assert_alike(list(counts.values()), 300)

    def test_a_box_has_a_voxel_at_least_and_the_crop_at_most(self) -> None:
        for size, edges in ((0.0, (1, 1, 1)), (1.0, SHAPE)):
            transform = RandBlackoutd("image", 1.0, size=size)
            transform.randomize(random_crop())
            assert {tuple(s.stop - s.start for s in box) for box in transform.boxes} == {edges}

    def test_labels_do_not_count_and_tokens_are_hidden_by_default(self) -> None:
        sample = all_planes()
        found = RandBlackoutd("image", 1.0, size=0.6).set_random_state(2)(sample)
        for name in ("image", "mask", "tokens_xy"):
            assert not torch.equal(found[name], sample[name])
        kept = RandBlackoutd("image", 1.0, hide_labels=False, hide_tokens=False)(sample)
        assert_unchanged(kept, sample, but=("image",))


class TestStreaks:
    """Bands through all sections."""

    @pytest.mark.parametrize(("axis", "across"), [("z", {1, 2}), ("y", {0, 2}), ("x", {0, 1})])
    def test_bands_run_through_all_sections(self, axis: str, across: set[int]) -> None:
        transform = RandStreaksd("image", 1.0, streaks=1, thickness=(1, 2), axis=axis)
        drawn: Counter[tuple[int, int]] = Counter()
        for seed in range(60):
            sample = random_crop(seed=seed)
            added = transform.set_random_state(seed)(sample)["image"] - sample["image"]
            normal, start, stop, strength = transform.bands[0]
            band = added[0].movedim(normal, 0)
            torch.testing.assert_close(
                band[start:stop], torch.full_like(band[start:stop], strength)
            )
            assert not band[:start].any() and not band[stop:].any()
            drawn[normal, stop - start] += 1
        assert drawn.keys() == set(product(across, (1, 2)))

    def test_every_place_is_drawn_alike_edges_included(self) -> None:
        transform = RandStreaksd("image", 1.0, streaks=(1, 3), thickness=2).set_random_state(0)
        sample, starts = random_crop((4, 5, 6)), Counter()
        for _ in range(3000):
            transform.randomize(sample)
            starts.update((axis, start) for axis, start, _, _ in transform.bands)
        total = sum(starts.values())
        assert abs(total / 3000 - 2) < 0.06, "one to three, each as likely"
        for axis, size in enumerate((4, 5, 6)):
            places = size - 1
            assert_alike([starts[axis, s] for s in range(places)], total / 3 / places)

    @pytest.mark.parametrize("axis", ["auto", "z", "y", "x"])
    def test_a_streak_never_covers_a_crop_of_a_single_section(self, axis: str) -> None:
        flat = random_crop((1, 6, 7))
        for seed in range(20):
            transform = RandStreaksd("image", 1.0, 1, 50, axis=axis).set_random_state(seed)
            assert (transform(flat)["image"] == flat["image"]).any()

    def test_nothing_but_raw_changes(self) -> None:
        sample = all_planes()
        kept = copied(sample)
        assert_unchanged(RandStreaksd("image", 1.0)(sample), kept, but=("image",))
        assert_unchanged(sample, kept)
