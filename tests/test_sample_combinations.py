"""Samples with many settings at once: everything stays in register, and targets are fresh ones."""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from funlib.geometry import Roi
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandGaussianNoised,
    RandScaleIntensityFixedMeand,
    RandShiftIntensityd,
)

from custom.artefacts import RandBlackoutd, RandMissingSectionsd, RandStreaksd
from custom.augmentation import RandOrientationd
from custom.blur import RandBlurd, RandDefocusd
from custom.context import context_in
from custom.datasets import CropDataset, CropSampler
from custom.errors import InputError
from custom.features.triplane import PlaneGrid, average, crop
from custom.loaders import training_loader
from custom.membranes import RandMembranesd
from custom.networks.context import sample_context
from custom.planes import PLANES
from custom.shifts import RandShiftedSectionsd
from custom.targets.affinities import affinities
from custom.targets.blocks import target_block
from custom.targets.masks import eroded
from custom.targets.parts import lsd_part, weight_part
from custom.targets.settings import TargetSettings, target_settings
from custom.transforms import LabelsToTargetsd, inner_box
from tests.features.cached import SPEC
from tests.planted import KEYS, assert_in_register, blob, tokens_of_blob
from tests.test_datasets import assert_same

pytestmark = pytest.mark.slow

ISOTROPIC, SECTIONS = (8.0, 8.0, 8.0), (40.0, 8.0, 8.0)
IDS = np.array([0, 7, 2**40, 2**63, 2**64 - 1], np.uint64)
SHIFT = 2
DRAWS = 4
ELASTIC = {"elastic_nm": 12.0, "spacing_nm": 80.0, "zoom": [0.9, 1.2]}


class MemoryVolume:
    """A feature volume in memory; see ``FeatureVolume``."""

    basis = None
    raw_window = (0.0, 255.0)
    has_labels = True
    offset_nm = (0.0, 0.0, 0.0)

    def __init__(
        self,
        shape: tuple[int, int, int],
        voxel_size_nm: tuple[float, float, float],
        raw: np.ndarray,
        labels: np.ndarray,
        mask: np.ndarray,
        planes: Sequence[str] = (),
        steps: tuple[float, ...] = (2.5, 2.5, 2.5),
        layout: str = "tokens",
        centre: tuple[float, ...] = (0.0, 0.0, 0.0),
    ) -> None:
        self.id, self.shape, self.voxel_size_nm = f"volume {shape}", shape, voxel_size_nm
        self.raw, self.labels, self.mask = raw, labels.astype(np.uint32), mask
        self.spec = SPEC.__class__(
            **{**SPEC.__dict__, "planes": tuple(planes) or PLANES, "layout": layout}
        )
        self.grids = {p: tokens_of_blob(shape, centre, p, steps) for p in planes}
        self.metadata: Mapping[str, Any] = {}

    def label_ids(self) -> np.ndarray:
        return IDS[: self.labels.max() + 1]

    def plane_grid(self, plane: str, roi: Roi | None = None) -> PlaneGrid:
        grid = self.grids[plane]
        return grid if roi is None else crop(grid, tuple(roi.begin), tuple(roi.shape))

    def read_features(self, roi: Roi | None = None) -> torch.Tensor:
        whole = average(self.grids, self.shape)
        return whole if roi is None else whole[:, *roi.to_slices()]

    def read_raw(self, roi: Roi) -> np.ndarray:
        return self._padded(self.raw, roi)

    def read_labels(self, roi: Roi) -> tuple[np.ndarray, np.ndarray]:
        return self._padded(self.labels, roi), self._padded(self.mask, roi)

    def _padded(self, values: np.ndarray, roi: Roi) -> np.ndarray:
        part = roi.intersect(Roi((0, 0, 0), self.shape))
        found = np.zeros(tuple(roi.shape), values.dtype)
        if not part.empty:
            found[(part - roi.offset).to_slices()] = values[part.to_slices()]
        return found


class TargetMemoryVolume(MemoryVolume):
    """One with targets ready, as a cache has them."""

    def with_targets(self, targets: TargetSettings) -> "TargetMemoryVolume":
        whole = Roi((0, 0, 0), self.shape)
        read = self.read_labels
        self.ready = target_block(read, self.shape, whole, self.voxel_size_nm, targets)
        self.metadata = {"targets": targets.to_json()}
        return self

    def read_targets(self, roi: Roi) -> tuple[np.ndarray, np.ndarray]:
        target, weights = self.ready
        return target[:, *roi.to_slices()], weights[roi.to_slices()]


def planted_volume(
    shape: tuple[int, int, int],
    voxel_size_nm: tuple[float, float, float],
    planes: Sequence[str] = (),
    layout: str = "tokens",
) -> MemoryVolume:
    """One blob in raw, labels, mask and tokens."""
    centre = tuple(f * n for f, n in zip((0.45, 0.55, 0.4), shape, strict=True))
    ball = blob(shape, centre).numpy()
    raw = np.rint(ball * 255).astype(np.uint8)
    return MemoryVolume(
        shape, voxel_size_nm, raw, ball > 0.5, ball > 0.1, planes, layout=layout, centre=centre
    )


@dataclass(frozen=True)
class Register:
    """What a sample goes through, and how exact it stays."""

    crop: tuple[int, int, int]
    voxel_size: tuple[float, float, float] = ISOTROPIC
    planes: Sequence[str] = ()
    layout: str = "tokens"
    dimensions: int = 3
    changes: dict[str, Any] = field(default_factory=dict)
    shift: bool = True
    larger: int = 2
    margin: float = 0.01


REGISTER = {
    "cube-all-planes-context": Register(
        (17, 17, 17), planes=PLANES, shift=False, changes={"context_factor": 2}
    ),
    "sections-odd-xy-shift": Register((9, 25, 23), SECTIONS, ("xy",)),
    "sections-square-context-shift": Register(
        (9, 23, 23), SECTIONS, ("xy",), changes={"context_factor": [1, 2, 2]}
    ),
    "dense-context-shift": Register(
        (15, 15, 15), planes=("xy",), layout="dense", changes={"context_factor": 2}, shift=False
    ),
    "whole-volume": Register((15, 17, 9), planes=PLANES, shift=False, larger=0),
    "raw-only-elastic-shift": Register(
        (9, 25, 23), changes={"use_tokens": False, "deformation": ELASTIC}, margin=0.2
    ),
    "sections-elastic-in-plane": Register(
        (9, 25, 25),
        SECTIONS,
        changes={"use_tokens": False, "deformation": {**ELASTIC, "in_plane": True}},
        margin=0.2,
    ),
    "two-dimensions-elastic": Register(
        (1, 25, 25),
        dimensions=2,
        shift=False,
        changes={"use_tokens": False, "deformation": {**ELASTIC, "in_plane": True}},
        margin=0.2,
    ),
    "two-dimensions-thick-xy-shift": Register((9, 23, 23), planes=("xy",), dimensions=2),
    "float16-half-tokens": Register(
        (15, 15, 15), planes=PLANES, shift=False, changes={"feature_dtype": "float16"}
    ),
}


@pytest.mark.parametrize("case", REGISTER.values(), ids=REGISTER)
def test_a_blob_stays_on_itself_through_all_that_moves_it(case: Register) -> None:
    offsets = [(0, 1, 0), (0, 0, 2)]
    targets = target_settings(offsets, 16.0, dimensions=case.dimensions)
    shape = tuple(n + case.larger for n in case.crop)
    volume = planted_volume(shape, case.voxel_size, case.planes, case.layout)
    moves: list[Any] = [RandOrientationd(KEYS, targets=targets)]
    if case.shift:
        moves.append(RandShiftedSectionsd("image", 1.0, (1, 2), "z", SHIFT))
    arguments = {"use_tokens": bool(case.planes), **case.changes}
    dataset = CropDataset(
        [volume], case.crop, targets, DRAWS, min_labelled=0.2, transform=Compose(moves), **arguments
    )
    known = torch.zeros(case.crop, dtype=torch.bool)
    known[:, SHIFT:-SHIFT, SHIFT:-SHIFT] = True
    for number in range(DRAWS):
        sample = dataset[number]
        assert sample["image"].shape[1:] == case.crop
        sample["image"] = (sample["image"] + 1) / 2
        planes = case.planes if case.layout == "tokens" else ()
        assert_in_register(sample, planes, known, case.margin, tokens=0.13)
        if case.layout == "dense":
            assert (sample["features"][0] - sample["image"][0]).abs()[known].max() < 0.1
        if "context_factor" in case.changes:
            assert_context_in_register(sample, known, case.shift)


def assert_context_in_register(
    sample: Mapping[Any, Any], known: torch.Tensor, shifted: bool
) -> None:
    """The context's raw, seen at the crop's voxels, is the crop's raw, a little smoother."""
    context = context_in(sample)
    image, placement = (context["image"][None] + 1) / 2, context["placement"][None]
    seen = sample_context(image, placement, (1, 1, 1), sample["image"].shape[1:])[0, 0]
    apart = (seen - sample["image"][0]).abs()
    if not shifted:  # sections that lie beside their place do not in the context
        assert apart[known].max() < 0.12
    assert apart[known].mean() < 0.12


# --- targets ---


def cells(shape: tuple[int, int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Blocky objects of four ids with holes, one of a single voxel, and a ragged mask."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 4, [n // 3 + 1 for n in shape])
    labels = coarse.repeat(3, 0).repeat(3, 1).repeat(3, 2)[tuple(slice(0, n) for n in shape)].copy()
    labels[tuple(n // 2 for n in shape)] = 4
    mask = np.ones(shape, np.bool_)
    mask[:, : shape[1] // 4] = False
    mask[-1:, :, -2:] = False
    return labels, mask


def cell_volume(
    shape: tuple[int, int, int],
    voxel_size_nm: tuple[float, float, float],
    kind: type[MemoryVolume] = MemoryVolume,
) -> Any:
    labels, mask = cells(shape)
    raw = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    return kind(shape, voxel_size_nm, raw, labels, mask, ("xy",))


def everything(targets: TargetSettings, moves: bool = True) -> list[Any]:
    """Every change of a sample, each of them certain."""
    both = {"keys": ["image", "context_image"], "allow_missing_keys": True, "prob": 1.0}
    return [
        RandOrientationd(KEYS, "auto" if moves else "none", targets=targets),
        RandMembranesd("image", 1.0, (1, 2)),
        *([RandShiftedSectionsd("image", 1.0, (1, 2), max_shift=SHIFT)] if moves else []),
        RandBlurd("image", 1.0),
        RandDefocusd("image", 1.0, (1, 2)),
        RandStreaksd("image", 1.0),
        RandScaleIntensityFixedMeand(factors=0.3, **both),
        RandShiftIntensityd(offsets=0.2, **both),
        RandAdjustContrastd(gamma=(0.7, 1.4), **both),
        RandGaussianNoised("image", 1.0, std=0.15),
        RandMissingSectionsd("image", 1.0, hide_labels=True),
        RandBlackoutd("image", 1.0),
    ]


def fresh_target(
    labels: np.ndarray, mask: np.ndarray, size: Sequence[float], targets: TargetSettings
) -> np.ndarray:
    """Target tensor of all of labels, from the functions that define its parts."""
    counts = eroded(mask, targets.mask_erosion)
    weights = weight_part(labels, mask, size, targets)[None]
    if targets.classes:
        return np.concatenate([labels[None], counts[None], weights])
    affinity, valid = affinities(
        labels, targets.affinity_offsets, counts, targets.affinity_background
    )
    lsds = [lsd_part(labels, size, targets)] if targets.lsd_sigma_nm else []
    return np.concatenate([affinity, *lsds, valid, (counts & (labels != 0))[None], weights])


OFFSETS = [(1, 0, 0), (0, -2, 0), (0, 1, 3)]
FLAT = [(0, -2, 0), (0, 1, 3)]
WEIGHTS = {"boundary_power": 1.0, "boundary_reach_nm": 20.0}
TARGETS = {
    "all": ((9, 9, 9), target_settings(OFFSETS, 12.0, **WEIGHTS)),
    "eroded-per-axis": ((9, 9, 9), target_settings(OFFSETS, None, mask_erosion=[2, 1, 0])),
    "joined": ((7, 9, 9), target_settings(OFFSETS, None, affinity_background="joined")),
    "sections": ((7, 7, 7), target_settings(FLAT, 12.0, dimensions=2, **WEIGHTS)),
    "sections-eroded": (
        (7, 7, 7),
        target_settings(FLAT, None, dimensions=2, mask_erosion=[0, 2, 1]),
    ),
    "one-section": ((1, 9, 9), target_settings(FLAT, 12.0, dimensions=2, mask_erosion=1)),
    "classes": (
        (9, 9, 9),
        target_settings([], None, output_type="labels", class_of_labels="foreground", **WEIGHTS),
    ),
    "classes-of-sections": (
        (7, 7, 7),
        target_settings([], None, output_type="labels", class_of_labels="foreground", dimensions=2),
    ),
}
DEFORMATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "elastic": {"deformation": {**ELASTIC, "in_plane": True}, "use_tokens": False},
    "context": {"context_factor": [1, 2, 2]},
    "no-raw": {"use_raw": False},
}


@pytest.mark.parametrize("changes", DEFORMATIONS.values(), ids=DEFORMATIONS)
@pytest.mark.parametrize(("size", "targets"), TARGETS.values(), ids=TARGETS)
def test_targets_are_fresh_ones_of_labels_after_every_change(
    size: tuple[int, int, int], targets: TargetSettings, changes: dict[str, Any]
) -> None:
    """In volumes of other sizes and voxel sizes, too."""
    volumes = [cell_volume((13, 16, 17), ISOTROPIC), cell_volume((11, 14, 19), SECTIONS)]

    def finish(sample: dict[Any, Any]) -> dict[Any, Any]:
        return LabelsToTargetsd(targets)(sample) | {k: sample[k] for k in ("labels", "mask")}

    transform = Compose([*everything(targets), finish])
    dataset = CropDataset(volumes, size, targets, DRAWS, transform=transform, **changes)
    drawn = set()
    for number in range(DRAWS):
        sample = dataset[number]
        labels, mask = sample["labels"][0].numpy(), sample["mask"][0].numpy()
        voxel_size = tuple(sample["voxel_size_nm"].tolist())
        drawn.add(voxel_size)
        inner = inner_box(labels.shape, size)
        expected = fresh_target(labels, mask, voxel_size, targets)[:, *inner]
        np.testing.assert_allclose(sample["label"].numpy(), expected, rtol=0, atol=1e-5)
        assert np.isfinite(expected).all()
        assert sample["image"].isfinite().all()
    assert len(drawn) == 2


@pytest.mark.parametrize("targets", [TARGETS["all"][1], TARGETS["sections"][1]], ids=["3d", "2d"])
@pytest.mark.parametrize("voxel_size", [ISOTROPIC, SECTIONS, (19.2, 19.2, 19.2)], ids=str)
def test_targets_from_a_cache_are_the_computed_ones_whatever_is_done_to_raw(
    targets: TargetSettings, voxel_size: tuple[float, float, float]
) -> None:
    """Three sigma are a half number of voxels of 19.2 nm: rounding must not decide."""
    targets = target_settings(
        targets.affinity_offsets, 80.0, boundary_power=1.0, dimensions=targets.dimensions
    )
    volume = cell_volume((30, 31, 32), voxel_size, TargetMemoryVolume).with_targets(targets)
    changes = [*everything(targets, moves=False), LabelsToTargetsd(targets)]
    cached, computed = (
        CropDataset([volume], (7, 8, 9), targets, 2, transform=Compose(changes), cached_targets=c)
        for c in (True, False)
    )
    layout = targets.layout
    for number in range(2):
        found, expected = cached[number]["label"], computed[number]["label"]
        for part in (layout.affinities, layout.valid, layout.lsd_mask):
            assert torch.equal(found[part], expected[part])
        assert (found[layout.lsds] - expected[layout.lsds]).abs().max() < 1 / 510 + 1e-5


def test_nothing_beyond_a_volume_is_read_and_nothing_is_missed() -> None:
    """Halos end with the volume, in whatever orientation a crop is."""

    def dataset(reach_nm: float) -> CropDataset:
        weights = {"boundary_power": 1.0, "boundary_reach_nm": reach_nm}
        targets = target_settings([(0, 4, 0)], 60.0, **weights)
        changes = [RandOrientationd(KEYS, "cube"), LabelsToTargetsd(targets)]
        volume = cell_volume((8, 13, 10), ISOTROPIC)
        transform = Compose(changes)
        return CropDataset([volume], (6, 6, 6), targets, 6, transform=transform, use_tokens=False)

    wide, clipped = dataset(200.0), dataset(1e9)
    assert clipped.halos == [(8, 13, 10)]
    wide.halos = [(25, 25, 25)]
    for number in range(6):
        found, expected = clipped[number]["label"], wide[number]["label"]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_sample_follows_from_its_number_wherever_it_is_made() -> None:
    targets = TARGETS["all"][1]
    volumes = [cell_volume((13, 16, 17), ISOTROPIC), cell_volume((11, 14, 19), SECTIONS)]
    changes = [*everything(targets), LabelsToTargetsd(targets)]
    changes[-2] = RandBlackoutd("image", 0.7, 1, 1.0)  # of which nothing is left: drawn anew
    dataset = CropDataset(
        volumes,
        (9, 9, 9),
        targets,
        8,
        transform=Compose(changes),
        deformation={**ELASTIC, "prob": 0.6},
        use_tokens=False,
    )
    elsewhere = pickle.loads(pickle.dumps(dataset))
    alone = [elsewhere[number] for number in reversed(range(8))][::-1]
    batches = list(training_loader(dataset, 2, CropSampler(dataset), 3, "threads"))
    for number, sample in enumerate(alone):
        batch = batches[number // 2]
        assert batch.keys() == sample.keys()
        assert_same({key: values[number % 2] for key, values in batch.items()}, sample)


# --- mistakes ---


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (RandMissingSectionsd("image", 0.01, (7, 8)), "sections of RandMissingSectionsd is at"),
        (RandShiftedSectionsd("image", 0.01, max_shift=9), "max_shift of .* is 9, as large as"),
        (RandOrientationd(KEYS, "cube"), "symmetry 'cube' swaps axes"),
    ],
)
def test_what_only_some_samples_would_meet_is_told_before_the_first(
    transform: Any, message: str
) -> None:
    """However rarely it is drawn, and whichever volume it fits."""
    targets = TARGETS["all"][1]
    volumes = [cell_volume((40, 40, 40), ISOTROPIC), cell_volume((9, 9, 9), SECTIONS)]
    size = (9, 9, 9) if isinstance(transform, RandOrientationd) else (7, 9, 9)
    with pytest.raises(InputError, match=message):
        CropDataset(volumes, size, targets, 1, transform=transform, use_tokens=False)


def test_shifts_from_a_cache_are_refused_however_rarely_they_are_drawn() -> None:
    targets = TARGETS["joined"][1]
    volume = cell_volume((12, 12, 12), ISOTROPIC, TargetMemoryVolume).with_targets(targets)
    shift = RandShiftedSectionsd("image", 0.0)
    with pytest.raises(InputError, match="cached_targets cannot be used with RandShifted"):
        CropDataset([volume], (7, 9, 9), targets, 1, transform=shift, cached_targets=True)


def test_auto_changes_sections_along_axes_that_have_enough_of_them() -> None:
    sample = {"image": torch.rand(1, 3, 9, 10), "voxel_size_nm": torch.tensor(ISOTROPIC)}
    missing = RandMissingSectionsd("image", 1.0, (4, 4))
    shifted = RandShiftedSectionsd("image", 1.0, max_shift=4)
    axes: dict[Any, set[int]] = {missing: set(), shifted: set()}
    for transform, drawn in axes.items():
        for _ in range(40):
            transform.randomize(sample)
            drawn.add(transform.sections.axis)
    assert list(axes.values()) == [{1, 2}, {0}]
