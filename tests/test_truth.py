"""Labels as objects or as classes, whatever volume they come from; and which of them count."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from funlib.geometry import Roi

from custom.datasets import CropDataset
from custom.errors import InputError
from custom.features.cache import open_cache
from custom.live import FeatureVolume, live_volumes
from custom.preprocessing import Preprocessor
from custom.targets.classes import ClassSettings
from custom.targets.settings import TargetSettings, target_settings
from custom.transforms import LabelsToTargetsd
from custom.truth import Truth
from tests.test_datasets import FEATURES, VIT

SHAPE = (14, 18, 16)
VOXEL_SIZE = [8.0, 4.0, 5.0]
CLASSES = np.array([0, 3, 1, 250])
CROP = (4, 6, 5)


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class ids with gaps, the first sections not annotated."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    np.save(folder / "raw.npy", rng.integers(0, 256, SHAPE, dtype=np.uint8))
    blocks = rng.integers(0, 4, (5, 6, 6)).repeat(3, 0).repeat(3, 1).repeat(3, 2)
    np.save(folder / "labels.npy", CLASSES[blocks[:14, :18, :16]].astype(np.int64))
    mask = np.ones(SHAPE, np.uint8)
    mask[:5] = 0
    np.save(folder / "mask.npy", mask)
    entry = {"id": "a", "raw": "raw.npy", "labels": "labels.npy", "mask": "mask.npy"}
    entry |= {"voxel_size_nm": {"raw": VOXEL_SIZE, "labels": VOXEL_SIZE}}
    path = folder / "datalist.json"
    path.write_text(json.dumps({"name": "classes", "training": [entry]}))
    return path


@pytest.fixture(scope="module", params=["cache", "raw"])
def volume(
    request: pytest.FixtureRequest, datalist: Path, tmp_path_factory: pytest.TempPathFactory
) -> FeatureVolume:
    if request.param == "raw":
        return live_volumes(str(datalist), "training", {**VIT, "seed": 0}, FEATURES)[0]
    folder = tmp_path_factory.mktemp("cache")
    backbone = {**VIT, "seed": 0}
    Preprocessor(datalist, folder, backbone, FEATURES, ["training"], show_progress=False).run()
    return open_cache(folder)[0]


def source(datalist: Path) -> tuple[np.ndarray, np.ndarray]:
    folder = datalist.parent
    return np.load(folder / "labels.npy"), np.load(folder / "mask.npy") != 0


def crops(volume: FeatureVolume, targets: TargetSettings, **options: Any) -> CropDataset:
    given = {"num_samples": 8, "use_tokens": False, "transform": LabelsToTargetsd(targets)}
    return CropDataset([volume], CROP, targets, **{**given, **options})


def test_classes_keep_their_ids(volume: FeatureVolume, datalist: Path) -> None:
    labels, mask = source(datalist)
    read, counts = Truth(volume, ClassSettings(4, 250)).read(Roi((-1, 2, 3), (15, 5, 20)))
    box = (slice(0, 14), slice(2, 7), slice(3, 16))
    inside = (slice(1, 15), slice(0, 5), slice(0, 13))
    expected = labels[box]
    np.testing.assert_array_equal(read[inside], np.where(expected == 250, 0, expected))
    np.testing.assert_array_equal(counts[inside], mask[box] & (expected != 250))
    assert not counts[0].any() and not counts[..., 13:].any(), "outside nothing counts"


def test_objects_stay_as_they_are(volume: FeatureVolume) -> None:
    box = Roi((0, 0, 0), SHAPE)
    labels, mask = volume.read_labels(box)
    for one, other in zip(Truth(volume, None).read(box), (labels, mask), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_id_that_is_no_class_is_told_before_training(volume: FeatureVolume) -> None:
    targets = target_settings([], None, output_type="labels", num_classes=4)
    with pytest.raises(InputError, match="labels of volume 'a' hold the id 250, but"):
        crops(volume, targets)


def test_a_sample_of_classes_is_the_crop_of_the_source(
    volume: FeatureVolume, datalist: Path
) -> None:
    targets = target_settings(
        [], None, output_type="labels", num_classes=4, ignore_label=250, boundary_power=1.0
    )
    labels, mask = source(datalist)
    windows = np.lib.stride_tricks.sliding_window_view(labels, CROP)
    lightest = 1.0
    for sample in (crops(volume, targets)[number] for number in range(8)):
        class_id, valid, weight = sample["label"].numpy()
        same = np.argwhere(((windows == class_id) | (valid == 0)).all(axis=(3, 4, 5)))
        assert any((_counts(mask, labels, place) == valid).all() for place in same)
        assert ((weight > 0) & (weight <= 1)).all()
        lightest = min(lightest, weight.min())
    assert lightest < 1


def _counts(mask: np.ndarray, labels: np.ndarray, place: np.ndarray) -> np.ndarray:
    box = tuple(slice(p, p + n) for p, n in zip(place, CROP, strict=True))
    return (mask & (labels != 250))[box]


def test_every_object_is_foreground(volume: FeatureVolume) -> None:
    targets = target_settings([], None, output_type="labels", class_of_labels="foreground")
    found = torch.stack([crops(volume, targets)[number]["label"] for number in range(4)])
    assert set(found[:, 0].unique().tolist()) == {0.0, 1.0}


class OnlyBackground:
    """A volume with labels that are all 0."""

    id, shape, voxel_size_nm = "empty", SHAPE, tuple(VOXEL_SIZE)
    has_labels = True
    raw_window = (0.0, 255.0)

    def label_ids(self) -> np.ndarray:
        return np.zeros(1, np.uint64)

    def read_raw(self, roi: Roi) -> np.ndarray:
        return np.zeros(tuple(roi.shape), np.uint8)

    def read_labels(self, roi: Roi) -> tuple[np.ndarray, np.ndarray]:
        shape = tuple(roi.shape)
        return np.zeros(shape, np.uint32), np.ones(shape, bool)


def test_background_alone_is_a_class_but_no_object() -> None:
    empty: Any = OnlyBackground()
    classes = target_settings([], None, output_type="labels")
    assert (crops(empty, classes)[0]["label"][0] == 0).all()
    with pytest.raises(InputError, match="none of 1000 random crops"):
        crops(empty, target_settings([[1, 0, 0]], None))


def test_a_mask_is_eroded_at_its_own_edge_and_not_at_that_of_a_crop(
    volume: FeatureVolume,
) -> None:
    targets = target_settings([[0, 0, 1]], None, mask_erosion=2)
    inner = (3, 14, 12)  # at most one section deep, where what counts is 5 sections away from it
    dataset = CropDataset(
        [volume],
        inner,
        targets,
        8,
        use_tokens=False,
        min_labelled=0.01,
        transform=LabelsToTargetsd(targets),
    )
    seen = set()
    for number in range(40):
        depth, height, width = dataset._draw(np.random.default_rng((0, number)))[1]
        z, y, x = np.ogrid[depth : depth + 3, height : height + inner[1], width : width + inner[2]]
        far = (z >= 7) & (z < 12) & (y >= 2) & (y < 16) & (x >= 2) & (x < 14)
        expected = far & (x < 13)
        np.testing.assert_array_equal(dataset[number]["label"][targets.layout.valid][0], expected)
        seen.add(depth)
    assert {5, 6, 8} <= seen


def test_where_erosion_leaves_nothing_no_crop_is_taken(volume: FeatureVolume) -> None:
    """Nine sections are annotated, within the volume's border."""
    with pytest.raises(InputError, match="none of 1000 random crops"):
        crops(volume, target_settings([[1, 0, 0]], None, mask_erosion=[5, 0, 0]))
    crops(volume, target_settings([[1, 0, 0]], None, mask_erosion=[3, 0, 0]))


def test_an_offset_longer_than_the_crop_is_refused(volume: FeatureVolume) -> None:
    with pytest.raises(InputError, match=r"holds \[0, 0, -5\], which leads out of every crop"):
        crops(volume, target_settings([[0, 0, -5]], None))
