import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from funlib.geometry.roi import Roi

from custom.errors import InputError
from custom.features.cache import open_cache
from custom.features.cache_files import VolumeFiles
from custom.features.triplane import upsample
from custom.planes import PLANES
from custom.preprocessing import Preprocessor
from custom.targets.classes import ClassSettings
from custom.volume_datasets import (
    CachedVolumeDataset,
    RawVolumeDataset,
    dataset_spec,
    inference_dataset,
    validation_dataset,
)
from tests.features import cached
from tests.test_datasets import (
    FEATURES,
    FINER,
    ROI,
    SHAPE,
    VIT,
    VOXEL_SIZE,
    assert_same,
    grid,
    raw_dataset,
    write_datalist,
)


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_datalist(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def cache_dir(datalist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    sections = ("training", "validation")
    Preprocessor(datalist, folder, VIT, FEATURES, sections, show_progress=False).run()
    return folder


def test_finer_features_of_one_plane_are_those_of_raw(datalist: Path, tmp_path: Path) -> None:
    Preprocessor(datalist, tmp_path, VIT, FINER, ("training",), show_progress=False).run()
    raw = RawVolumeDataset(str(datalist), "training", VIT, FINER)
    cached = CachedVolumeDataset(open_cache(tmp_path, "training"))
    assert dataset_spec(raw) == dataset_spec(cached)
    assert {"tokens_xy", "tokens_xz", "tokens_yz"} & set(raw[0]) == {"tokens_xy"}
    for index in range(2):
        for name in ("tokens_xy", "placement_xy"):
            torch.testing.assert_close(raw[index][name], cached[index][name], rtol=0, atol=1e-5)


class TestCacheAndRaw:
    """Training reads a cache, inference starts from raw."""

    @pytest.mark.parametrize("section", ["training", "validation"])
    def test_samples_are_equal(self, datalist: Path, cache_dir: Path, section: str) -> None:
        cached = CachedVolumeDataset(open_cache(cache_dir, section))
        raw = raw_dataset(datalist, section)
        assert len(cached) == len(raw)
        for one, other in zip(cached, raw, strict=False):
            assert one["tokens_xy"].dtype == torch.float16
            for name in ("label", "mask"):
                one.pop(name, None)
            assert_same(one, other)

    @pytest.mark.parametrize("index", [0, 1])
    def test_a_roi_sees_what_the_whole_volume_sees_there(
        self, datalist: Path, cache_dir: Path, index: int
    ) -> None:
        volume = open_cache(cache_dir, "training")[index]
        everything = raw_dataset(datalist, region="volume")[index]
        box = Roi(volume.metadata["roi"]["offset"], volume.shape).to_slices()
        cached = CachedVolumeDataset([volume])[0]
        assert everything["image"].shape == (1, *SHAPE)
        assert torch.equal(everything["image"][:, *box], cached["image"])
        for plane in PLANES:
            dense = upsample(grid(everything, plane), SHAPE, plane)[:, *box]
            found = upsample(grid(cached, plane), volume.shape, plane)
            assert (found - dense).abs().max() < 1e-2

    def test_places_are_physical(self, datalist: Path) -> None:
        roi, volume = (raw_dataset(datalist, region=r)[0] for r in ("roi", "volume"))
        step = [o * v for o, v in zip(ROI["offset"], VOXEL_SIZE, strict=True)]
        assert (roi["offset_nm"] - volume["offset_nm"]).tolist() == step
        assert roi["voxel_size_nm"].tolist() == VOXEL_SIZE

    def test_raw_is_between_minus_one_and_one(self, datalist: Path) -> None:
        deep, grey = raw_dataset(datalist, use_tokens=False, region="volume")
        raw = np.load(datalist.parent / "grey.npy").astype(np.float64)
        expected = np.clip((raw - 20) / 220, 0, 1) * 2 - 1
        np.testing.assert_allclose(grey["image"][0], expected, atol=1e-6)
        assert (deep["image"].min(), deep["image"].max()) == (-1, 1)
        assert not any(name.startswith("tokens") for name in deep)

    def test_inference_chooses_its_source(self, datalist: Path, cache_dir: Path) -> None:
        arguments = (str(datalist), "validation", str(cache_dir), VIT, FEATURES)
        raw, cache = (inference_dataset(source, *arguments) for source in ("raw", "cache"))
        assert isinstance(raw, RawVolumeDataset) and isinstance(cache, CachedVolumeDataset)
        assert dataset_spec(raw) == dataset_spec(cache)
        with pytest.raises(InputError, match="source must be 'raw' or 'cache', got 'disk'"):
            inference_dataset("disk", *arguments)

    def test_labels_that_do_not_count_are_zero(self, datalist: Path, cache_dir: Path) -> None:
        sample = CachedVolumeDataset(open_cache(cache_dir, "training"), use_tokens=False)[0]
        box = Roi(ROI["offset"], ROI["shape"]).to_slices()
        labels, mask = (np.load(datalist.parent / f"{n}.npy")[box] for n in ("labels", "mask"))
        np.testing.assert_array_equal(sample["label"][0], np.where(mask, labels, 0))
        np.testing.assert_array_equal(sample["mask"][0], mask)
        assert not any(name.startswith("tokens") for name in sample)
        assert "label" not in CachedVolumeDataset(open_cache(cache_dir, "validation"))[0]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [({"region": "box"}, "region must be one of roi, volume, got 'box'")],
    )
    def test_rejects(self, datalist: Path, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            raw_dataset(datalist, **changes)

    def test_an_empty_section_is_refused(self, tmp_path: Path) -> None:
        datalist = write_datalist(tmp_path)
        datalist.write_text(json.dumps({**json.loads(datalist.read_text()), "test": []}))
        with pytest.raises(InputError, match="has no entries in its section 'test'"):
            raw_dataset(datalist, "test")


def test_a_raw_only_network_needs_no_backbone(datalist: Path) -> None:
    dataset = RawVolumeDataset(
        str(datalist), "training", "no/such-backbone", FEATURES, use_tokens=False
    )
    assert dataset_spec(dataset) is None
    assert not [key for key in dataset[0] if key.startswith("tokens")]


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (None, [0, 1, 2, 3, 4]),
        (ClassSettings(2, of_labels="foreground"), [0, 1, 1, 1, 1]),
        (ClassSettings(2, ignore_label=2**40, of_labels="foreground"), [0, 1, -1, 1, 1]),
    ],
)
def test_the_truth_is_objects_or_classes_and_unknown_is_told_from_background(
    tmp_path: Path, classes: ClassSettings | None, expected: list[int]
) -> None:
    """Ids of the source are 0, 7, 2^40, 2^63 and 2^64 - 1."""
    cached.write(VolumeFiles(tmp_path, 0), cached.request())
    item = CachedVolumeDataset(open_cache(tmp_path, "training"), False, classes)[0]
    known = cached.voxels()["mask"]
    meant = np.array(expected)[cached.voxels()["gt"]]
    label = item["label"][0].numpy()
    np.testing.assert_array_equal(label, np.where(known, meant, 0 if classes is None else -1))


def test_an_id_that_is_no_class_is_said_before_the_first_step(tmp_path: Path) -> None:
    cached.write(VolumeFiles(tmp_path, 0), cached.request())
    with pytest.raises(InputError, match=r"'cube0' hold the id 7, .* num_classes 3"):
        CachedVolumeDataset(open_cache(tmp_path, "training"), False, ClassSettings(3))


@pytest.mark.parametrize(
    "classes",
    [ClassSettings(2, ignore_label=1), ClassSettings(2, ignore_label=1, of_labels="foreground")],
    ids=["ids", "foreground"],
)
@pytest.mark.parametrize("hidden", [False, True])
def test_labels_in_which_no_class_counts_are_said_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, classes: ClassSettings, hidden: bool
) -> None:
    """All of a class is masked, or all ids but background do not count; one volume is enough."""
    cached.write(VolumeFiles(tmp_path, 0), cached.request())
    (volume,) = open_cache(tmp_path, "training")
    labels = np.zeros(volume.shape, np.uint32)
    labels[-1, -1, -1] = 1
    mask = np.full(volume.shape, not hidden)
    monkeypatch.setattr(volume, "label_ids", lambda: np.array([0, 1], np.uint64))
    monkeypatch.setattr(
        volume, "read_labels", lambda roi: (labels[roi.to_slices()], mask[roi.to_slices()])
    )
    plain = replace(classes, ignore_label=None)
    with pytest.raises(InputError, match="labels of 'cube0' hold no class but background where"):
        CachedVolumeDataset([volume], False, plain if hidden else classes)
    if not hidden:
        CachedVolumeDataset([volume], False, plain)
    CachedVolumeDataset([volume], False)  # objects are not asked for


class TestValidation:
    """A network is scored on the volumes whose labels count somewhere."""

    def volumes(self, cache_dir: Path) -> tuple[Any, Any, Any]:
        """One with labels, one whose labels count nowhere, one without."""
        labelled, hidden = open_cache(cache_dir, "training")[:2]
        (bare,) = open_cache(cache_dir, "validation")

        def nothing(roi: Roi) -> Any:
            return np.ones(tuple(roi.shape), np.uint32), np.zeros(tuple(roi.shape), np.bool_)

        hidden.read_labels = nothing  # type: ignore[method-assign]
        return labelled, hidden, bare

    def test_volumes_without_labels_that_count_are_left_out(
        self, cache_dir: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        labelled, hidden, bare = volumes = self.volumes(cache_dir)
        with caplog.at_level("WARNING", "custom"):
            assert validation_dataset(volumes).volumes == [labelled]
        assert f"not scored: {hidden.id}, {bare.id}" in caplog.text

    def test_none_with_labels_that_count_is_said(self, cache_dir: Path) -> None:
        _, hidden, bare = self.volumes(cache_dir)
        with pytest.raises(InputError, match=f"volumes '{hidden.id}', '{bare.id}' has labels"):
            validation_dataset([hidden, bare])
