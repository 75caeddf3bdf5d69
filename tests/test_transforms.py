import numpy as np
import pytest
import torch

from custom.channels import ChannelLayout
from custom.losses import BoundaryWeightedAffinityLoss
from custom.targets.boundary_weights import boundary_weights
from custom.targets.halo import target_halo
from custom.targets.lsds import local_shape_descriptors
from custom.targets.settings import target_settings
from custom.transforms import LabelsToTargetsd
from tests.oracles import affinities_by_loop, lsds_by_loop

OFFSETS = [(1, 0, 0), (0, -3, 1), (0, 0, 2)]
SIGMA_NM = 4.0
VOXEL_SIZE = (8.0, 4.0, 5.0)
INNER = (3, 5, 4)
HALO = target_halo(target_settings(OFFSETS, SIGMA_NM), VOXEL_SIZE)
BOX = tuple(slice(h, h + n) for h, n in zip(HALO, INNER, strict=True))


def sample(ids=(0, 5, 2**40), seed=0, mask_share=0.8):
    rng = np.random.default_rng(seed)
    shape = tuple(n + 2 * h for n, h in zip(INNER, HALO, strict=True))
    return {
        "image": torch.from_numpy(rng.random((1, *INNER), dtype=np.float32)),
        "labels": torch.from_numpy(np.array(ids)[rng.integers(0, len(ids), (1, *shape))]),
        "mask": torch.from_numpy(rng.random((1, *shape)) < mask_share),
        "voxel_size_nm": torch.tensor(VOXEL_SIZE),
        "tokens_xy": torch.ones(1),
    }


def to_targets(sigma=SIGMA_NM, **settings):
    return LabelsToTargetsd(target_settings(OFFSETS, sigma, **settings))


def test_every_target_channel_equals_its_oracle():
    given = sample()
    labels, mask = given["labels"][0].numpy(), given["mask"][0].numpy()
    transform = to_targets(boundary_power=2.0)
    target, layout = transform(given)["label"].numpy(), transform.layout
    affinity, valid = affinities_by_loop(labels, OFFSETS, mask)
    np.testing.assert_array_equal(target[layout.affinities], affinity[:, *BOX])
    np.testing.assert_array_equal(target[layout.valid], valid[:, *BOX])
    descriptors = lsds_by_loop(labels, (SIGMA_NM,) * 3, VOXEL_SIZE)[:, *BOX]
    np.testing.assert_allclose(target[layout.lsds], descriptors, atol=1e-4)
    np.testing.assert_array_equal(target[layout.lsd_mask][0], (mask & (labels != 0))[BOX])
    weights = boundary_weights(labels, power=2.0, voxel_size=VOXEL_SIZE, mask=mask)[BOX]
    np.testing.assert_allclose(target[layout.weight][0], weights, rtol=1e-6)
    assert target.shape == (layout.num_targets, *INNER)
    assert target.dtype == np.float32


def test_downsampled_lsds_are_those_of_the_function():
    given = sample()
    transform = to_targets(lsd_downsample=(1, 2, 2))
    found = transform(given)["label"][transform.layout.lsds].numpy()
    labels = given["labels"][0].numpy()
    exact, expected = (
        local_shape_descriptors(labels, SIGMA_NM, VOXEL_SIZE, downsample=d)[:, *BOX]
        for d in (1, (1, 2, 2))
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not np.allclose(found, exact, atol=1e-3)


def test_labels_and_mask_make_way_for_the_target():
    given = sample()
    names = set(given)
    found = to_targets()(given)
    assert set(found) == (names - {"labels", "mask"}) | {"label"}
    assert set(given) == names, "the argument is left alone"
    assert found["image"] is given["image"]


def test_power_zero_weighs_all_voxels_alike():
    transform = to_targets(boundary_power=0)
    weight = transform(sample())["label"][transform.layout.weight]
    assert (weight == 1).all()


def test_without_sigma_there_are_no_lsds():
    with_lsds, without = (to_targets(sigma) for sigma in (SIGMA_NM, None))
    assert (with_lsds.layout.num_lsds, without.layout.num_lsds) == (10, 0)
    full, short = (transform(sample())["label"] for transform in (with_lsds, without))
    assert len(full) - len(short) == 10
    assert torch.equal(full[with_lsds.layout.valid], short[without.layout.valid])


def test_labels_without_halo_lose_the_affinities_that_leave_them():
    given = sample(mask_share=1.1)
    for name in ("labels", "mask"):
        given[name] = given[name][:, *BOX]
    transform = to_targets()
    valid = transform(given)["label"][transform.layout.valid]
    _, expected = affinities_by_loop(given["labels"][0].numpy(), OFFSETS)
    np.testing.assert_array_equal(valid, expected)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_labels_that_the_mask_hides_do_not_change_the_affinity_loss(power):
    given = sample(seed=3)
    hidden = {**given, "labels": given["labels"].masked_fill(~given["mask"], 99)}
    transform = to_targets(None, boundary_power=power)
    prediction = torch.randn(1, 3, *INNER, generator=torch.Generator().manual_seed(0))
    loss = BoundaryWeightedAffinityLoss(ChannelLayout(3, 0))
    one, other = (loss(prediction, transform(s)["label"][None]) for s in (given, hidden))
    torch.testing.assert_close(one, other)
    shown = {**given, "labels": given["labels"].masked_fill(given["mask"], 99)}
    assert not torch.isclose(one, loss(prediction, transform(shown)["label"][None]))


def test_cached_targets_are_taken_as_they_are():
    given = sample()
    layout = to_targets().layout
    stored = np.random.default_rng(1).integers(0, 256, (layout.num_outputs, *INNER), np.uint8)
    weights = torch.rand(1, *INNER, generator=torch.Generator().manual_seed(0))
    cached = {**given, "target": torch.from_numpy(stored), "boundary_weights": weights}
    transform = to_targets()
    found, computed = transform(cached), transform(given)
    assert found.keys() == computed.keys()
    label = found["label"]
    np.testing.assert_allclose(label[: layout.num_outputs], stored / 255, atol=1e-6)
    assert torch.equal(label[layout.weight], weights)
    for part in (layout.valid, layout.lsd_mask):
        assert torch.equal(label[part], computed["label"][part])
