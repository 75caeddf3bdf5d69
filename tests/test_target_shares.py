import numpy as np
import pytest
import torch

from custom.channels import ChannelLayout
from custom.target_shares import target_shares


def test_the_share_of_positive_affinities_is_that_among_those_that_count() -> None:
    layout = ChannelLayout(2, 0)
    target = torch.zeros(2, layout.num_targets, 1, 2, 3)
    target[:, layout.valid] = torch.tensor([[1.0, 1, 0], [1, 0, 0]])  # 3 of 6, in 2 x 2 channels
    target[:, layout.affinities] = torch.tensor([[1.0, 0, 1], [0, 1, 1]])
    target[1, layout.affinities] = 1.0
    assert target_shares(target, layout) == {"share_positive": pytest.approx((2 * 1 + 2 * 3) / 12)}


@pytest.mark.parametrize("seed", [0, 1])
def test_shares_of_classes_are_those_of_the_voxels_that_count(seed: int) -> None:
    layout = ChannelLayout(0, 0, 3)
    random = np.random.default_rng(seed)
    target = torch.ones(2, layout.num_targets, 3, 4, 5)
    ids, valid = random.integers(0, 3, (2, 1, 3, 4, 5)), random.random((2, 1, 3, 4, 5)) < 0.4
    target[:, layout.class_id] = torch.from_numpy(ids).float()
    target[:, layout.valid] = torch.from_numpy(valid).float()
    found = target_shares(target, layout)
    expected = {f"share_class_{c}": float((ids[valid] == c).mean()) for c in range(3)}
    assert found == pytest.approx(expected)
    assert sum(found.values()) == pytest.approx(1)


def test_where_nothing_counts_there_are_no_shares() -> None:
    layout = ChannelLayout(3)
    assert target_shares(torch.zeros(1, layout.num_targets, 2, 2, 2), layout) == {}
