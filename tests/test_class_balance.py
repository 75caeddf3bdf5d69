import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from funlib.geometry import Roi
from numpy.typing import NDArray

from custom import class_balance as module
from custom.channels import ChannelLayout
from custom.class_balance import class_balance, count_answers, measured_weights
from custom.errors import InputError
from custom.losses import AffinityLoss
from custom.targets.affinities import affinities
from custom.targets.settings import target_settings

OFFSETS = [(1, 0, 0), (0, -2, 0), (0, 1, 3)]
TARGETS = target_settings(OFFSETS, 16.0, boundary_power=1.0)
SHAPE = (11, 9, 14)


@dataclass
class LabelVolume:
    """What is read of a volume: labels and mask in memory."""

    id: str
    labels: NDArray[np.uint32]
    mask: NDArray[np.bool_]
    has_labels: bool = True
    voxel_size_nm: tuple[float, float, float] = (8.0, 4.0, 5.5)
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.metadata = {
            "entry": {"id": self.id, "labels": "somewhere.zarr"},
            "roi": {"offset": [0, 0, 0], "shape": list(self.labels.shape)},
        }
        self.reads: list[Roi] = []

    @property
    def shape(self) -> tuple[int, ...]:
        return self.labels.shape

    def read_labels(self, roi: Roi) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
        self.reads.append(roi)
        labels, mask = np.zeros(roi.shape, np.uint32), np.zeros(roi.shape, np.bool_)
        part = roi.intersect(Roi((0, 0, 0), self.shape))
        here, there = (part - roi.offset).to_slices(), part.to_slices()
        labels[here], mask[here] = self.labels[there], self.mask[there]
        return labels, mask

    def label_ids(self) -> NDArray[np.uint64]:
        return IDS


IDS = np.array([0, 3, 1, 7], np.uint64)  # of the labels 0 to 3


def volume(name: str = "one", seed: int = 0) -> LabelVolume:
    rng = np.random.default_rng(seed)
    labels = np.kron(rng.integers(0, 4, (6, 5, 7)), np.ones((2, 2, 2)))[:11, :9, :14]
    return LabelVolume(name, labels.astype(np.uint32), rng.random(SHAPE) < 0.9)


def by_hand(volumes: list[LabelVolume]) -> list[list[int]]:
    """Negatives and positives of every offset, from whole volumes."""
    counts = np.zeros((len(OFFSETS), 2), int)
    for found in volumes:
        truth, valid = affinities(found.labels, OFFSETS, found.mask)
        for k in range(len(OFFSETS)):
            counts[k, 0] += np.sum(valid[k] & (truth[k] == 0))
            counts[k, 1] += np.sum(valid[k] & (truth[k] == 1))
    return counts.tolist()


@pytest.mark.parametrize("block", [3, 5, 96])
def test_counts_are_those_of_whole_volumes_whatever_the_blocks(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    volumes = [volume("one", 0), volume("two", 1)]
    assert count_answers(volumes, TARGETS).tolist() == by_hand(volumes)
    largest = max(max(roi.shape) for roi in volumes[0].reads)
    assert largest <= block + 2 * 3


def test_copies_count_once_and_unlabelled_volumes_do_not() -> None:
    one, copy, bare = volume("one"), volume("one"), volume("bare", 3)
    bare.has_labels = False
    assert count_answers([one, copy, bare], TARGETS).tolist() == by_hand([one])


@pytest.mark.parametrize("block", [4, 96])
def test_classes_are_counted_where_they_count(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    one, two = volume("one", 0), volume("two", 1)
    targets = target_settings([], None, output_type="labels", num_classes=5, ignore_label=7)
    ids = [IDS[v.labels][v.mask] for v in (one, two)]
    expected = np.bincount(np.concatenate(ids).astype(int), minlength=8)
    assert expected[7] > 0
    assert count_answers([one, two], targets).tolist() == expected[:5].tolist()
    objects = target_settings(
        [], None, output_type="labels", num_classes=2, class_of_labels="foreground"
    )
    background = int(expected[0])
    assert count_answers([one, two], objects).tolist() == [
        background,
        int(expected.sum()) - background,
    ]


def test_a_mask_that_is_eroded_counts_less() -> None:
    labelled = volume()
    labelled.mask = np.ones(SHAPE, np.bool_)
    labelled.mask[:, :3] = False
    targets = target_settings([], None, output_type="labels", num_classes=9, mask_erosion=[1, 2, 0])
    known = labelled.labels[1:-1, 5:-2]
    expected = np.bincount(IDS[known].astype(int).ravel(), minlength=9)
    assert count_answers([labelled], targets).tolist() == expected.tolist()


def test_the_weight_of_a_class_is_the_inverse_of_its_share() -> None:
    weights = measured_weights(np.array([600, 300, 0, 100]))
    raw = np.array([1000 / (4 * 600), 1000 / (4 * 300), 1000 / (4 * 100)])
    assert weights[2] == 1
    np.testing.assert_allclose([weights[i] for i in (0, 1, 3)], raw / raw.mean())
    assert measured_weights(np.zeros(3, np.int64)) == [1, 1, 1]
    rare = measured_weights(np.array([10**9, 1]))
    assert rare[1] / rare[0] == pytest.approx(100 / 0.5)


def test_weights_are_the_ratio_within_limits() -> None:
    counts = np.array([[30, 60], [1, 1000], [500, 0], [0, 0], [40, 8]])
    assert measured_weights(counts) == [0.5, 0.01, 100.0, 1.0, 5.0]


def test_balanced_by_what_was_measured_both_sides_cost_the_same() -> None:
    labelled = volume()
    truth, valid = affinities(labelled.labels, OFFSETS, labelled.mask)
    layout = ChannelLayout(len(OFFSETS), 0)
    target = torch.ones(1, layout.num_targets, *SHAPE)
    target[0, layout.affinities] = torch.from_numpy(truth)
    target[0, layout.valid] = torch.from_numpy(valid).float()
    weights = measured_weights(count_answers([labelled], TARGETS))
    loss = AffinityLoss(layout, positive_weight=weights)
    logits = torch.zeros(1, layout.num_outputs, *SHAPE, requires_grad=True)
    loss(logits, target).backward()
    assert logits.grad is not None
    for k in range(len(OFFSETS)):  # a guess of one half: no pull to either side
        pull = logits.grad[0, k]
        assert pull.abs().max() > 0
        assert abs(pull.sum()) < 1e-5


def test_measured_once_then_taken_from_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tmp_path / "model" / "class_balance.json")
    labelled = volume()
    with caplog.at_level(logging.INFO):
        first = class_balance("measured", [labelled], TARGETS, path)
    assert "class balance measured" in caplog.text
    labelled.reads.clear()
    other_lsds = target_settings(OFFSETS, 99.0)  # does not matter
    assert class_balance("measured", [labelled], other_lsds, path) == first
    assert labelled.reads == []
    assert json.loads(Path(path).read_text())["weights"] == first


@pytest.mark.parametrize("change", ["offsets", "id", "roi", "labels", "erosion"])
def test_measured_again_when_what_it_depends_on_has_changed(tmp_path: Path, change: str) -> None:
    path = str(tmp_path / "class_balance.json")
    class_balance("measured", [volume()], TARGETS, path)
    labelled = volume("two" if change == "id" else "one", seed=2)
    if change == "roi":
        labelled.metadata["roi"] = {"offset": [5, 0, 0], "shape": list(SHAPE)}
    if change == "labels":
        labelled.metadata["entry"]["labels"] = "elsewhere.zarr"
    offsets = [(0, 0, 1)] if change == "offsets" else OFFSETS
    targets = target_settings(offsets, 16.0, mask_erosion=1 if change == "erosion" else 0)
    again = class_balance("measured", [labelled], targets, path)
    assert again == measured_weights(count_answers([labelled], targets))
    assert json.loads(Path(path).read_text())["weights"] == again


@pytest.mark.parametrize("wanted", [None, 2.0, [1.0, 2.0, 0.5]])
def test_given_weights_are_handed_on_and_nothing_is_read(tmp_path: Path, wanted: Any) -> None:
    path = tmp_path / "class_balance.json"
    labelled = volume()
    assert class_balance(wanted, [labelled], TARGETS, str(path)) == wanted
    assert labelled.reads == []
    assert not path.exists()


def test_other_words_and_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "class_balance.json"
    with pytest.raises(InputError, match=r"null, 'measured' or a list .* did you mean 'measured'"):
        class_balance("mesured", [volume()], TARGETS, str(path))
    path.write_text("{")
    with pytest.raises(InputError, match=r"class balance '.*class_balance\.json' is not valid"):
        class_balance("measured", [volume()], TARGETS, str(path))
