import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from funlib.geometry.roi import Roi
from monai.engines import SupervisedTrainer
from monai.transforms import Compose, RandScaleIntensityd, RandShiftIntensityd
from torch import nn
from torch.utils.data import DataLoader

from custom.artefacts import RandBlackoutd
from custom.augmentation import RandOrientationd
from custom.datasets import CropDataset, CropSampler
from custom.errors import InputError
from custom.features.cache import CachedVolume, open_cache
from custom.features.triplane import PlaneGrid, crop
from custom.inferers import PrepareTokenBatch
from custom.networks.fusion import TokenFusion
from custom.planes import PLANES
from custom.preprocessing import Preprocessor
from custom.targets.halo import target_halo
from custom.targets.settings import target_settings
from custom.transforms import LabelsToTargetsd
from custom.volume_datasets import (
    CachedVolumeDataset,
    RawVolumeDataset,
)

VIT = {
    "model_type": "dinov3_vit",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_register_tokens": 4,
    "patch_size": 8,
}
FEATURES = {"pixels_per_voxel": [1.0, 2.0, 1.15], "window": 32, "overlap": 8}
SHAPE = (24, 22, 26)
ROI = {"offset": [3, 2, 5], "shape": [18, 15, 13]}
VOXEL_SIZE = [8.0, 4.0, 5.5]
OFFSETS = [(1, 0, 0), (0, -2, 0), (0, 0, 3)]
SIGMA_NM = 4.0
CROP = (6, 8, 7)
TARGETS = target_settings(OFFSETS, SIGMA_NM)


def write_datalist(folder: Path) -> Path:
    """Training volumes of 16 and 8 bits, one of floats without labels, one voxel under a mask."""
    rng = np.random.default_rng(0)
    np.save(folder / "deep.npy", rng.integers(500, 3000, SHAPE, dtype=np.uint16))
    np.save(folder / "grey.npy", rng.integers(0, 256, SHAPE, dtype=np.uint8))
    np.save(folder / "bare.npy", rng.normal(size=SHAPE).astype(np.float32))
    labels = rng.integers(0, 5, SHAPE).astype(np.uint64)
    labels[-1, -1, -1] = 1
    np.save(folder / "labels.npy", labels)
    shares = np.where(np.arange(SHAPE[2]) < 12, 0.9, 0.3)
    np.save(folder / "mask.npy", (rng.random(SHAPE) < shares).astype(np.uint8))
    np.save(folder / "hardly.npy", np.arange(np.prod(SHAPE)).reshape(SHAPE) == np.prod(SHAPE) - 1)
    size = {"voxel_size_nm": {"raw": VOXEL_SIZE, "labels": VOXEL_SIZE}}
    labelled = {**size, "labels": "labels.npy", "mask": "mask.npy"}
    window = {"intensity_window": [20, 240]}
    small = {"offset": [0, 0, 0], "shape": [8, 9, 10]}
    datalist = {
        "name": "cubes",
        "training": [
            {"id": "deep", "raw": "deep.npy", "roi": ROI, **labelled},
            {"id": "grey", "raw": "grey.npy", "roi": small, **labelled, **window},
        ],
        "validation": [{"id": "bare", "raw": "bare.npy", **size, "roi": ROI}],
        "test": [{"id": "hidden", "raw": "deep.npy", **labelled, "mask": "hardly.npy"}],
    }
    path = folder / "datalist.json"
    path.write_text(json.dumps(datalist))
    return path


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_datalist(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def cache_dir(datalist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    sections = ("training", "validation", "test")
    Preprocessor(datalist, folder, VIT, FEATURES, sections, show_progress=False).run()
    return folder


def crops(cache_dir: Path, section: str = "training", **changes: Any) -> CropDataset:
    arguments: dict[str, Any] = {
        "crop_size": CROP,
        "targets": TARGETS,
        "num_samples": 6,
        **changes,
    }
    return CropDataset(open_cache(cache_dir, section), **arguments)


def transform() -> Compose:
    """All that draws, and targets."""
    return Compose(
        [
            RandOrientationd(("image", "labels", "mask"), "box"),
            RandScaleIntensityd("image", factors=0.1, prob=0.5),
            RandShiftIntensityd("image", offsets=0.1, prob=0.5),
            LabelsToTargetsd(TARGETS),
        ]
    )


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            expected = torch.as_tensor(other[name])  # a number, before there is a batch of them
            torch.testing.assert_close(value, expected, rtol=0, atol=0, msg=name)
        else:
            assert value == other[name], name


def raw_dataset(datalist: Path, section: str = "training", **changes: Any) -> RawVolumeDataset:
    return RawVolumeDataset(str(datalist), section, VIT, FEATURES, **changes)


FINER = {
    **FEATURES,
    "window": 24,
    "overlap": 0,
    "stride": 4,
    "planes": ["xy"],
    "slice_step": 3,
    "pixels_per_voxel": [1.0, 1.2, 1.2],
    "dtype": "float32",
    "precision": "float32",
}


@pytest.fixture(scope="module")
def finer_cache(datalist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finer")
    Preprocessor(datalist, folder, VIT, FINER, ("training",), show_progress=False).run()
    return folder


def test_finer_features_of_one_plane_are_trained_on_as_they_are(finer_cache: Path) -> None:
    turn = RandOrientationd(("image", "labels", "mask"))
    dataset = crops(finer_cache, crop_size=(6, 7, 7), transform=turn, min_labelled=0.01)
    batch = next(iter(DataLoader(dataset, batch_size=len(dataset))))
    assert [name for name in batch if name.startswith("tokens")] == ["tokens_xy"]
    step = torch.tensor([3.0, 4 / 1.2, 4 / 1.2])
    torch.testing.assert_close(batch["placement_xy"][:, 1], step.expand(len(dataset), 3))
    fused = TokenFusion(16, 2)({"xy": batch["tokens_xy"]}, {"xy": batch["placement_xy"]}, (6, 7, 7))
    assert fused.shape == (len(dataset), 2, 6, 7, 7)


def grid(sample: dict[str, Any], plane: str) -> PlaneGrid:
    return PlaneGrid.placed(sample[f"tokens_{plane}"], sample[f"placement_{plane}"])


def offset_of(sample: dict[str, Any], whole: dict[str, Any]) -> tuple[int, ...]:
    """Where a crop of noise was cut out of its volume."""
    found = whole["image"][0].unfold(0, CROP[0], 1).unfold(1, CROP[1], 1).unfold(2, CROP[2], 1)
    places = (found == sample["image"][0]).flatten(3).all(-1).nonzero().tolist()
    assert len(places) == 1
    return tuple(places[0])


class TestCrops:
    """Random crops of a cache."""

    def test_a_training_crop_sees_what_inference_sees_there(
        self, datalist: Path, cache_dir: Path
    ) -> None:
        whole = raw_dataset(datalist)[0]
        dataset = crops(cache_dir, crop_size=CROP)
        dataset.volumes, dataset.shares = dataset.volumes[:1], np.ones(1)
        for number in range(8):
            sample = dataset[number]
            offset = offset_of(sample, whole)
            for plane in PLANES:
                expected, found = crop(grid(whole, plane), offset, CROP), grid(sample, plane)
                assert torch.equal(found.values, expected.values)
                assert found.start == pytest.approx(expected.start, abs=1e-5)

    def test_a_sample_is_a_crop_with_the_halo_its_targets_need(
        self, datalist: Path, cache_dir: Path
    ) -> None:
        dataset, halo = crops(cache_dir), target_halo(TARGETS, VOXEL_SIZE)
        volume = dataset.volumes[0]
        dataset.volumes, dataset.shares = dataset.volumes[:1], np.ones(1)
        whole = CachedVolumeDataset([volume])[0]
        for number in range(12):
            sample = dataset[number]
            offset = offset_of(sample, whole)
            labels, mask = volume.read_labels(Roi(offset, CROP).grow(halo, halo))
            np.testing.assert_array_equal(sample["labels"][0], labels)
            np.testing.assert_array_equal(sample["mask"][0], mask)
        assert sample["labels"].dtype == torch.int64
        assert sample["voxel_size_nm"].tolist() == VOXEL_SIZE

    def test_a_batch_says_where_its_samples_come_from(
        self, datalist: Path, cache_dir: Path
    ) -> None:
        wholes = {whole["id"]: whole for whole in raw_dataset(datalist)}
        dataset = crops(cache_dir, crop_size=CROP, transform=transform())
        (batch,) = DataLoader(dataset, batch_size=len(dataset))
        assert batch["sample_number"].tolist() == list(range(len(dataset)))
        plain = crops(cache_dir, crop_size=CROP)
        for number in range(len(dataset)):
            volume, offset = batch["sample_volume"][number], batch["sample_offset"][number].tolist()
            assert tuple(offset) == offset_of(plain[number], wholes[volume])

    def test_volumes_are_drawn_in_proportion_to_their_places(self, cache_dir: Path) -> None:
        dataset = crops(cache_dir)
        places = [
            np.prod([s - c + 1 for s, c in zip(v.shape, CROP, strict=True)])
            for v in dataset.volumes
        ]
        np.testing.assert_allclose(dataset.shares, np.array(places) / sum(places))
        drawn = [dataset._draw(np.random.default_rng(n))[0] for n in range(300)]
        assert np.mean(drawn) == pytest.approx(dataset.shares[1], abs=0.05)

    def test_every_place_is_drawn_up_to_the_end(self, cache_dir: Path) -> None:
        dataset = crops(cache_dir, crop_size=(17, 14, 13))
        dataset.volumes, dataset.shares = dataset.volumes[:1], np.ones(1)
        drawn = {dataset._draw(np.random.default_rng(n))[1] for n in range(60)}
        assert drawn == {(z, y, 0) for z in (0, 1) for y in (0, 1)}

    def test_numbers_and_seeds_decide(self, cache_dir: Path) -> None:
        one, other = (
            crops(cache_dir, transform=transform()),
            crops(cache_dir, transform=transform()),
        )
        for number in (5, 0, 1000):  # in any order
            assert_same(one[number], other[number])
        images = [one[n]["image"] for n in range(3)] + [crops(cache_dir, seed=1)[0]["image"]]
        for i, image in enumerate(images):
            assert not any(torch.equal(image, earlier) for earlier in images[:i])

    def test_tokens_are_left_out_on_request(self, cache_dir: Path) -> None:
        names = set(crops(cache_dir, use_tokens=False)[0])
        named = {"sample_number", "sample_volume", "sample_offset"}
        assert names == {"image", "labels", "mask", "voxel_size_nm", *named}

    def test_raw_is_left_out_on_request(
        self, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = crops(cache_dir)[3]
        monkeypatch.setattr(CachedVolume, "read_raw", None)
        found = crops(cache_dir, use_raw=False)[3]
        assert not found.pop("image").any() and expected.pop("image").shape == (1, *CROP)
        assert_same(found, expected)

    @pytest.mark.parametrize("dtype", [None, "float16", "float32"])
    def test_tokens_have_the_dtype_asked_for(self, cache_dir: Path, dtype: str | None) -> None:
        found, stored = crops(cache_dir, feature_dtype=dtype)[3], crops(cache_dir)[3]
        for plane in PLANES:
            values = found.pop(f"tokens_{plane}")
            assert values.dtype == getattr(torch, dtype or "float16")
            assert torch.equal(values, stored.pop(f"tokens_{plane}").to(values.dtype))
        assert_same(found, stored)

    def test_a_volume_smaller_than_the_crop_is_left_out(
        self, cache_dir: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        dataset = crops(cache_dir, crop_size=(9, 8, 7))
        assert [volume.id for volume in dataset.volumes] == ["deep"]
        assert "'grey' [8, 9, 10] is smaller than crop_size [9, 8, 7]" in caplog.text

    def test_crops_without_enough_labels_are_drawn_anew(self, cache_dir: Path) -> None:
        low, high = (crops(cache_dir, min_labelled=share) for share in (0.0, 0.75))
        assert min(_labelled(low, n) for n in range(30)) < 0.7
        assert min(_labelled(high, n) for n in range(30)) >= 0.75

    def test_samples_of_which_augmentation_leaves_nothing_are_drawn_anew(
        self, cache_dir: Path
    ) -> None:
        hidden = RandBlackoutd("image", 0.6, boxes=1, size=1.0)
        targets = target_settings(OFFSETS, None)
        valid = targets.layout.valid
        whole = Compose([hidden, LabelsToTargetsd(targets)])
        dataset, other = (crops(cache_dir, targets=targets, transform=whole) for _ in range(2))
        asked = crops(cache_dir, targets=targets, transform=Compose([hidden]))
        left = [bool((asked[number]["image"] != -1).any()) for number in range(40)]
        assert 8 < sum(left) < 24
        for number in reversed(range(40)):
            assert dataset[number]["label"][valid].any()
            assert_same(dataset[number], other[number])
            same = torch.equal(dataset[number]["image"], asked[number]["image"])
            assert same == left[number], "only what is hidden is drawn anew"

    def test_augmentation_that_leaves_nothing_of_any_sample_is_refused(
        self, cache_dir: Path
    ) -> None:
        hidden = RandBlackoutd("image", 1.0, size=1.0)
        transform = Compose([hidden, LabelsToTargetsd(TARGETS)])
        with pytest.raises(InputError, match=r"left nothing that counts in 200 of 200 random crop"):
            crops(cache_dir, transform=transform)

    @pytest.mark.parametrize(
        ("section", "changes", "message"),
        [
            ("training", {"crop_size": (6, 16, 7)}, r"\[6, 16, 7\] is larger than every training"),
            ("training", {"crop_size": (6, 7)}, "crop_size must be a list of 3 numbers"),
            ("training", {"crop_size": (6, 0, 7)}, "crop_size must be 3 whole numbers from 1 on"),
            (
                "training",
                {"min_labelled": 1.0},
                "1000 have too few labels, .* 100%.* mask_erosion, or lower train#dataset#min",
            ),
            ("training", {"feature_dtype": "int8"}, "feature_dtype must be null, 'float16' or"),
            ("validation", {}, "training volume 'bare' has no labels: name them"),
            ("test", {}, r"none of 1000 random crops of \[6, 8, 7\] can be learned from: 1000"),
            ("test", {"min_labelled": 0.0}, "0 have too few labels, .* and 1000 have no object"),
            (
                "training",
                {"transform": RandOrientationd(("image", "labels", "mask"), "cube")},
                "symmetry 'cube' swaps axes",
            ),
        ],
        ids=["size", "2D", "zero", "share", "dtype", "no labels", "mask", "mask and 0", "symmetry"],
    )
    def test_mistakes_speak_before_any_worker_starts(
        self, cache_dir: Path, section: str, changes: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            crops(cache_dir, section, **changes)


def _labelled(dataset: CropDataset, number: int) -> float:
    mask = dataset[number]["mask"][0].numpy()
    inner = tuple(
        slice((n - c) // 2, (n - c) // 2 + c) for n, c in zip(mask.shape, CROP, strict=True)
    )
    return float(mask[inner].mean())


class Numbers(CropDataset):
    """Notes which numbers are asked for."""

    asked: list[int]

    def __getitem__(self, number: int) -> dict[str, Any]:
        if not hasattr(self, "asked"):
            self.asked = []
        self.asked.append(number)
        return {"image": torch.full((1, 2, 2, 2), float(number)), "label": torch.zeros(1, 2, 2, 2)}


def train(dataset: Numbers, epochs: Sequence[int], batches: int = 0) -> list[int]:
    """Numbers that MONAI's trainer asks for in these epochs, resumed in the first."""
    network, sampler = nn.Conv3d(1, 1, 1), CropSampler(dataset)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs[-1],
        train_data_loader=DataLoader(dataset, batch_size=2, sampler=sampler),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), 0.0),
        loss_function=nn.MSELoss(),
        prepare_batch=PrepareTokenBatch(),
        decollate=False,
    )
    trainer.state.epoch = epochs[0] - 1
    trainer.state.iteration = (epochs[0] - 1) * 3 + batches
    sampler.begin_at(epochs[0], 2 * batches)
    dataset.asked = []
    trainer.run()
    return dataset.asked


def test_epochs_go_on_where_the_last_one_ended_and_so_does_a_resumed_run(cache_dir: Path) -> None:
    dataset = Numbers(open_cache(cache_dir, "training"), CROP, TARGETS, num_samples=6)
    uninterrupted = train(dataset, (1, 2, 3))
    assert uninterrupted == list(range(18))
    assert train(dataset, (1,)) + train(dataset, (2, 3)) == uninterrupted
    for batches in (1, 2):  # inside the second epoch
        assert train(dataset, (2, 3), batches) == uninterrupted[6 + 2 * batches :]


def test_a_sampler_alone_starts_at_the_first_epoch(cache_dir: Path) -> None:
    dataset = crops(cache_dir)
    sampler = CropSampler(dataset)
    assert (list(sampler), len(sampler)) == (list(range(6)), 6)
    sampler.set_epoch(4)
    assert list(sampler) == list(range(18, 24))
