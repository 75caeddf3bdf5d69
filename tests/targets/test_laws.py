"""What holds for affinities, LSDs, weights and validity together, whatever the settings."""

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from custom.targets.affinities import affinities
from custom.targets.halo import target_halo
from custom.targets.masks import eroded
from custom.targets.parts import lsd_part, weight_part
from custom.targets.settings import TargetSettings, target_settings
from custom.transforms import LabelsToTargetsd

VOXEL_SIZE = (8.0, 4.0, 5.0)
CUBE = (4.0, 4.0, 4.0)
INNER = (2, 3, 4)
ORIENTATIONS = list(product(permutations(range(3)), product((1, -1), repeat=3)))
WEIGHTS = [
    {"boundary_power": 0.0},
    {"boundary_power": 1.5, "boundary_reach_nm": 9.0},
    {"boundary_power": 1.0, "boundary_reach_nm": 13.0, "boundary_between": "instances"},
    {"boundary_power": 0.5, "boundary_reach_nm": 10.0, "boundary_length_nm": 3.0},
    {
        "boundary_power": 1.0,
        "boundary_form": "gaussian",
        "boundary_sigma_nm": 6.0,
        "boundary_reach_nm": 12.0,
    },
]
OFFSETS = st.lists(st.tuples(*[st.integers(-3, 3)] * 3).filter(any), min_size=1, max_size=3)


@st.composite
def target_kinds(draw: st.DrawFn) -> TargetSettings:
    """Settings in three dimensions and in sections; one part decides how far they reach."""
    dimensions = draw(st.sampled_from([2, 3]))
    part = draw(st.sampled_from(["offsets", "lsds", "weights", "classes"]))
    offsets = draw(OFFSETS) if part == "offsets" else [(0, 1, 0), (0, 0, -1)]
    if dimensions == 2:
        offsets = [(0, y, x or 1) for _, y, x in offsets]
    return target_settings(
        offsets,
        6.0 if part == "lsds" else None,
        output_type="labels" if part == "classes" else None,
        dimensions=dimensions,
        affinity_background=draw(st.sampled_from(["apart", "joined"])),
        mask_erosion=draw(st.sampled_from([0, 1, [0, 2, 1]])),
        num_classes=4,
        **(draw(st.sampled_from(WEIGHTS)) if part in ("weights", "classes") else {}),
    )


def target(labels, mask, targets, inner=INNER, voxel_size=VOXEL_SIZE):
    """Target tensor of the centre of labels with a halo."""
    sample = {
        "image": torch.zeros(1, *inner),
        "labels": torch.from_numpy(np.ascontiguousarray(labels, np.int64))[None],
        "mask": torch.from_numpy(np.ascontiguousarray(mask))[None],
        "voxel_size_nm": torch.tensor(voxel_size),
    }
    return LabelsToTargetsd(targets)(sample)["label"].numpy()


def whole_target(labels, mask, targets):
    """Target tensor of a whole volume, from the functions that its parts are made with."""
    counts = eroded(mask, targets.mask_erosion)
    weights = weight_part(labels, mask, VOXEL_SIZE, targets)[None]
    if targets.classes:
        return np.concatenate([labels[None], counts[None], weights])
    affinity, valid = affinities(
        labels, targets.affinity_offsets, counts, targets.affinity_background
    )
    lsds = [lsd_part(labels, VOXEL_SIZE, targets)] if targets.lsd_sigma_nm else []
    return np.concatenate([affinity, *lsds, valid, (counts & (labels != 0))[None], weights])


def labels_and_mask(seed, shape):
    """Objects and background, small or large, and some voxels that are not annotated."""
    rng = np.random.default_rng(seed)
    size = int(rng.choice([1, 2, 5]))
    coarse = rng.integers(0, 4, [n // size + 1 for n in shape])
    labels = coarse.repeat(size, 0).repeat(size, 1).repeat(size, 2)
    return labels[tuple(slice(n) for n in shape)], rng.random(shape) < rng.choice([0.9, 1])


@settings(max_examples=200)
@given(targets=target_kinds(), seed=st.integers(0, 999))
def test_a_crop_of_the_whole_is_the_whole_of_a_crop(targets, seed):
    """The whole volume is not annotated beyond its borders, which a crop's halo may cross."""
    halo, margin = target_halo(targets, VOXEL_SIZE), (3, 2, 5)
    shape = [n + 2 * (h + m) for n, h, m in zip(INNER, halo, margin, strict=True)]
    labels, mask = labels_and_mask(seed, shape)
    border = tuple(slice(1, -1) for _ in shape)
    inside = np.zeros_like(mask)
    inside[border] = mask[border]
    near = tuple(slice(m, n - m) for m, n in zip(margin, shape, strict=True))
    crop = target(labels[near], inside[near], targets)
    box = tuple(slice(h + m, h + m + n) for n, h, m in zip(INNER, halo, margin, strict=True))
    whole = whole_target(labels, inside, targets)[:, *box]
    np.testing.assert_allclose(crop, whole, rtol=1e-5, atol=1e-5)


def channels_after(targets: TargetSettings, axes, signs):
    """Settings with turned offsets, and what becomes of every channel of the target."""
    turned = [
        tuple(s * offset[a] for a, s in zip(axes, signs, strict=True))
        for offset in targets.affinity_offsets
    ]
    layout = targets.layout

    def of_lsds(lsds):
        mean, variance, correlation, mass = lsds[0:3], lsds[3:6], lsds[6:9], lsds[9:]
        pairs = {frozenset(p): i for i, p in enumerate(((0, 1), (0, 2), (1, 2)))}
        mean = [mean[a] if s > 0 else 1 - mean[a] for a, s in zip(axes, signs, strict=True)]
        moved = [
            correlation[pairs[frozenset((axes[i], axes[j]))]] for i, j in ((0, 1), (0, 2), (1, 2))
        ]
        flipped = [signs[i] * signs[j] for i, j in ((0, 1), (0, 2), (1, 2))]
        signed = [c if f > 0 else 1 - c for c, f in zip(moved, flipped, strict=True)]
        return np.stack([*mean, *(variance[a] for a in axes), *signed, *mass])

    def turn(values):
        result = values.copy()
        if layout.num_lsds:
            own = np.any(values[layout.lsds] != 0, axis=0)
            result[layout.lsds] = np.where(own, of_lsds(values[layout.lsds]), 0)
        return result

    return turned, turn


@settings(max_examples=100)
@given(
    orientation=st.sampled_from(ORIENTATIONS),
    offsets=OFFSETS,
    weights=st.sampled_from(WEIGHTS),
    classes=st.booleans(),
    seed=st.integers(0, 999),
)
def test_the_target_of_turned_labels_is_the_turned_target(
    orientation, offsets, weights, classes, seed
):
    """Offsets turn with the crop, LSDs change place and sign; nothing else does."""
    axes, signs = orientation
    targets = target_settings(
        offsets,
        3.0,
        output_type="labels" if classes else None,
        num_classes=4,
        mask_erosion=1,
        **weights,
    )
    halo = target_halo(targets, CUBE)
    shape = [n + 2 * h for n, h in zip(INNER, halo, strict=True)]
    labels, mask = labels_and_mask(seed, shape)

    def turned(values):
        moved = values.transpose(*range(values.ndim - 3), *(values.ndim - 3 + a for a in axes))
        return moved[(..., *(slice(None, None, s) for s in signs))]

    turned_offsets, turn = channels_after(targets, axes, signs)
    expected = turned(turn(target(labels, mask, targets, voxel_size=CUBE)))
    fresh = target(
        turned(labels),
        turned(mask),
        replace(targets, affinity_offsets=tuple(turned_offsets)),
        [INNER[a] for a in axes],
        CUBE,
    )
    np.testing.assert_allclose(fresh, expected, rtol=1e-5, atol=1e-4)


@settings(max_examples=60)
@given(targets=target_kinds(), seed=st.integers(0, 999), ids=st.permutations([5, 2**32 + 1, 2**62]))
def test_other_ids_of_the_same_objects_change_nothing(targets, seed, ids):
    if targets.classes:
        targets = replace(targets, classes=None, affinity_offsets=((0, 1, 0),))
    shape = [n + 2 * h for n, h in zip(INNER, target_halo(targets, VOXEL_SIZE), strict=True)]
    labels, mask = labels_and_mask(seed, shape)
    renamed = np.array([0, *ids])[labels]
    np.testing.assert_array_equal(target(renamed, mask, targets), target(labels, mask, targets))


@settings(max_examples=30)
@given(labels=arrays(np.int64, (3, 4, 5), elements=st.sampled_from([0, 2**32 + 1, 2**32 + 2])))
def test_objects_of_one_voxel_survive_with_any_id(labels):
    lone = 2**40
    labels[1, 2, 3] = lone
    targets = target_settings([(0, 0, -1)], 3.0, boundary_power=1.0)
    layout, mask = targets.layout, np.ones(labels.shape, bool)
    found = target(labels, mask, targets, labels.shape)[:, 1, 2, 3]
    assert found[layout.affinities] == 0
    assert found[layout.lsd_mask] == 1
    assert found[layout.weight] == 1, "it is all boundary"
    assert 0 < found[layout.lsds][-1] < 1, "its mass"
    np.testing.assert_allclose(found[layout.lsds][:3], 0.5, atol=1e-6)
