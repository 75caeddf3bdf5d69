import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from funlib.geometry import Roi
from torch.utils.data import DataLoader

from custom.datasets import CropDataset, CropSampler
from custom.errors import InputError
from custom.features.cache import open_cache
from custom.features.cache_files import FORMAT
from custom.features.pool import GIB, PooledVolume, bytes_in_memory
from custom.features.triplane import PlaneGrid, upsample
from custom.live import LiveVolume, live_volumes
from custom.loaders import training_loader
from custom.model_files import model_description
from custom.planes import PLANES
from custom.preprocessing import Preprocessor
from custom.targets.settings import TargetSettings, target_settings
from custom.training import training_volumes
from custom.volume_datasets import CachedVolumeDataset
from tests.test_datasets import (
    CROP,
    FEATURES,
    FINER,
    OFFSETS,
    SIGMA_NM,
    VIT,
    assert_same,
    write_datalist,
)

WITH_SEED = {**VIT, "seed": 0}


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_datalist(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def cache_dir(datalist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    sections = ("training", "validation")
    Preprocessor(datalist, folder, WITH_SEED, FEATURES, sections, show_progress=False).run()
    return folder


def live(datalist: Path, section: str = "training") -> list[LiveVolume]:
    return list(live_volumes(str(datalist), section, WITH_SEED, FEATURES))


def crops(volumes: object) -> CropDataset:
    return CropDataset(volumes, CROP, target_settings(OFFSETS, SIGMA_NM), num_samples=6)  # type: ignore[arg-type]


def dense_features(sample: dict[str, torch.Tensor], plane: str) -> torch.Tensor:
    """What the network makes of a plane's tokens: entries that no voxel needs do not count."""
    grid = PlaneGrid.placed(sample.pop(f"tokens_{plane}"), sample[f"placement_{plane}"])
    return upsample(grid, CROP, plane)


def test_live_samples_are_those_of_the_cache(datalist: Path, cache_dir: Path) -> None:
    """uint8 and uint16 raw, fractional scales, ROIs at and off the volume's border."""
    from_raw, from_cache = crops(live(datalist)), crops(open_cache(cache_dir, "training"))
    for number in range(6):
        one, other = from_raw[number], from_cache[number]
        for plane in PLANES:  # bfloat16 rounds differently in batches of other sizes
            dense = (dense_features(sample, plane) for sample in (one, other))
            torch.testing.assert_close(*dense, rtol=0, atol=2e-2)
        assert_same(one, other)


def test_live_samples_of_finer_features_are_those_of_the_cache(
    datalist: Path, tmp_path: Path
) -> None:
    Preprocessor(datalist, tmp_path, WITH_SEED, FINER, ("training",), show_progress=False).run()
    volumes = live_volumes(str(datalist), "training", WITH_SEED, FINER)
    from_raw, from_cache = crops(list(volumes)), crops(open_cache(tmp_path, "training"))
    for number in range(4):
        dense = (dense_features(samples[number], "xy") for samples in (from_raw, from_cache))
        torch.testing.assert_close(*dense, rtol=0, atol=1e-4)


@pytest.mark.parametrize("section", ["training", "validation"])
def test_live_volumes_are_those_of_the_cache(datalist: Path, cache_dir: Path, section: str) -> None:
    whole = CachedVolumeDataset(live(datalist, section))
    cached = CachedVolumeDataset(open_cache(cache_dir, section))
    assert len(whole) == len(cached)
    for number in range(len(whole)):
        assert_same(whole[number], cached[number])
        assert_same(whole[number], cached[number])  # again, from what was kept


def test_boxes_that_stick_out_are_padded_alike(datalist: Path, cache_dir: Path) -> None:
    roi = Roi((-2, 3, 4), (7, 30, 5))
    for volume, cached in zip(live(datalist), open_cache(cache_dir, "training"), strict=True):
        np.testing.assert_array_equal(volume.read_raw(roi), cached.read_raw(roi))
        for one, other in zip(volume.read_labels(roi), cached.read_labels(roi), strict=True):
            np.testing.assert_array_equal(one, other)
        outside = Roi((100, 0, 0), (2, 2, 2))
        assert not volume.read_raw(outside).any()
        assert not volume.read_labels(outside)[1].any()


def test_live_labels_of_classes_are_those_of_the_cache(datalist: Path, tmp_path: Path) -> None:
    values = json.loads(datalist.read_text())
    entry = next(e for e in values["training"] if "labels" in e)
    labels, roi = datalist.parent / entry["labels"], entry["roi"]
    np.save(datalist.parent / "part.npy", np.load(labels)[: roi["offset"][0] + 3])
    entry["classes"] = {"a": None, "b": "part.npy", "c": entry.pop("labels")}
    entry["roi"] = {**roi, "beyond_labels": True}
    path = datalist.parent / "classes.json"
    path.write_text(json.dumps({"training": [entry]}))
    Preprocessor(path, tmp_path, WITH_SEED, FEATURES, ("training",), show_progress=False).run()
    (volume,), (cached,) = live(path), open_cache(tmp_path)
    box = Roi((-1, 0, 1), (9, 5, 6))
    for one, other in zip(volume.read_labels(box), cached.read_labels(box), strict=True):
        np.testing.assert_array_equal(one, other)
    assert set(np.unique(volume.read_labels(box)[0])) == {0, 3}
    assert not volume.read_labels(Roi((3, 0, 0), (4, 4, 4)))[1].any()
    for found in (volume, cached):
        description = model_description([found], [found], TargetSettings(OFFSETS, SIGMA_NM))
        assert description["classes"] == {"a": 1, "b": 2, "c": 3}


@pytest.mark.slow
def test_workers_load_the_backbone_themselves(datalist: Path) -> None:
    dataset = crops(live(datalist))
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    for number, sample in enumerate(loader):
        assert_same(sample, dataset[number])


def test_threads_share_the_backbone(datalist: Path) -> None:
    dataset = crops(live(datalist))
    loader = training_loader(dataset, 1, CropSampler(dataset), 4, "threads")
    for number, batch in enumerate(loader):
        assert_same({name: values[0] for name, values in batch.items()}, dataset[number])


def test_a_pickled_volume_leaves_backbone_and_features_behind(datalist: Path) -> None:
    volume = live(datalist)[0]
    small = len(pickle.dumps(volume))
    volume.plane_grid("xy")
    assert len(pickle.dumps(volume)) == small
    weights = sum(p.numel() * 4 for p in volume.features.backbone.parameters())
    assert small < weights
    again = pickle.loads(pickle.dumps(volume))
    assert torch.equal(again.plane_grid("xz").values, volume.plane_grid("xz").values)


def test_the_source_is_one_of_two(datalist: Path, cache_dir: Path) -> None:
    arguments = (str(cache_dir), "training", WITH_SEED, FEATURES, 16)
    assert isinstance(training_volumes(*arguments, "raw", str(datalist))[0], LiveVolume)
    assert not isinstance(training_volumes(*arguments, "cache")[0], LiveVolume)
    with pytest.raises(InputError, match="source must be 'cache' or 'raw', got 'live'"):
        training_volumes(*arguments, "live")


def test_live_volumes_have_their_channels_checked_too(datalist: Path, cache_dir: Path) -> None:
    with pytest.raises(InputError, match=r"token_channels is 32, .* 'deep' have 16 channels"):
        training_volumes(str(cache_dir), "training", WITH_SEED, FEATURES, 32, "raw", str(datalist))


def test_volumes_are_chosen_by_id_or_position(datalist: Path, cache_dir: Path) -> None:
    for source in ("raw", "cache"):
        arguments = (str(cache_dir), "training", WITH_SEED, FEATURES, 16, source, str(datalist))
        for chosen, ids in [(["grey"], ["grey"]), ([0], ["deep"]), ([1, "deep"], ["deep", "grey"])]:
            volumes = training_volumes(*arguments, volume_indices=chosen)
            assert [volume.id for volume in volumes] == ids
        with pytest.raises(InputError, match=r"names 2, .* deep, grey nor"):
            training_volumes(*arguments, volume_indices=[2])


def test_a_volume_that_is_not_chosen_may_be_unfinished(datalist: Path, cache_dir: Path) -> None:
    arguments = (str(cache_dir), "training", WITH_SEED, FEATURES, 16)
    metadata = cache_dir / "volume_000001_metadata.json"
    progress = cache_dir / "volume_000001_progress.json"
    kept = metadata.read_text()
    metadata.unlink()
    progress.write_text(json.dumps({"format": FORMAT, "request": json.loads(kept)}))
    try:
        assert [v.id for v in training_volumes(*arguments, volume_indices=[0])] == ["deep"]
        with pytest.raises(InputError, match="'grey' is unfinished"):
            training_volumes(*arguments, volume_indices=[1])
    finally:
        metadata.write_text(kept)
        progress.unlink()


def test_a_pool_holds_volumes_of_a_cache(datalist: Path, cache_dir: Path) -> None:
    arguments = (str(cache_dir), "training", WITH_SEED, FEATURES)
    in_memory, on_disk = (training_volumes(*arguments, 16, pool_gib=gib) for gib in (1, 0))
    assert all(isinstance(volume, PooledVolume) for volume in in_memory)
    assert not any(isinstance(volume, PooledVolume) for volume in on_disk)
    one, other = crops(in_memory), crops(on_disk)
    for number in range(6):
        assert_same(one[number], other[number])
    room = sum(bytes_in_memory(volume, tokens=False) for volume in on_disk) / GIB
    raw_only = training_volumes(*arguments, 0, pool_gib=room)
    assert all(isinstance(volume, PooledVolume) for volume in raw_only)
    with pytest.raises(InputError, match="with source 'raw', set it to 0"):
        training_volumes(*arguments, 16, "raw", str(datalist), pool_gib=1)
