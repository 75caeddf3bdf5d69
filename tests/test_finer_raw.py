"""Raw that is finer than its labels, from the datalist to samples and scores."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from funlib.geometry import Roi
from numpy.typing import NDArray

from custom import preprocessing
from custom.datalist import open_entry, parse_datalist
from custom.datasets import CropDataset
from custom.errors import InputError
from custom.evaluation import SegmentationEvaluator
from custom.features.cache import open_cache
from custom.features.triplane import average, upsample
from custom.live import LiveVolume, live_volumes
from custom.output import warn_of_scale
from custom.planes import PLANES
from custom.preprocessing import Preprocessor
from custom.targets.settings import target_settings
from custom.volume_datasets import CachedVolumeDataset, RawVolumeDataset
from custom.volumes import create_ome_zarr_array
from tests.features.test_extraction import PatchMeans, spec_of
from tests.test_datasets import VIT, assert_same

pytestmark = pytest.mark.slow

FINE = (10.0, 4.0, 2.0)
COARSE = (20.0, 6.0, 6.0)  # 2, 1.5 and 3 voxels of raw
RAW_SHAPE = (22, 24, 48)
LABEL_SHAPE = (9, 14, 13)
START = (1, 1, 2)  # of labels in the working grid
FEATURES = {"pixels_per_voxel": [1.0, 1.5, 3.0], "window": 32, "overlap": 8, "dtype": "float32"}
DTYPES = ["uint8", "uint16", "int16", "float32"]
CENTRE_NM = (113.0, 50.5, 49.5)
IDS = np.array([0, 7, 2**32 + 1, 2**63 + 5], np.uint64)


def write(folder: Path, name: str, values: NDArray[Any], size: Any, corner: Any) -> str:
    """An OME-Zarr image whose first voxel begins at a place in nm, and is centred as is right."""
    z, y, x = (c + s / 2 for c, s in zip(corner, size, strict=True))
    array = create_ome_zarr_array(
        folder / "x.zarr", name, values.shape, values.dtype, "zyx", size, (z, y, x), (8,) * 3, {}
    )
    array.write(values).result()
    return f"x.zarr/{name}"


def blob(shape: tuple[int, ...], size: tuple[float, ...], corner: Any) -> NDArray[np.float64]:
    """A ball of about 12 nm, physically in one place."""
    axes = [c + (np.arange(n) + 0.5) * s for n, s, c in zip(shape, size, corner, strict=True)]
    grid = np.meshgrid(*axes, indexing="ij", sparse=True)
    return np.exp(-sum((a - c) ** 2 for a, c in zip(grid, CENTRE_NM, strict=True)) / 400)


def write_datalist(folder: Path, dtype: str = "uint8") -> Path:
    """Raw of fine voxels around a ball, labels of coarse ones: the ball and its surroundings."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    raw = 40 + 150 * blob(RAW_SHAPE, FINE, (0, 0, 0)) + rng.normal(scale=3, size=RAW_SHAPE)
    raw = {"uint16": 100 * raw, "int16": 100 * raw - 9000, "float32": raw / 7 - 10}.get(dtype, raw)
    corner = [s * v for s, v in zip(START, COARSE, strict=True)]
    ball = blob(LABEL_SHAPE, COARSE, corner)
    ids = IDS[(ball > 0.3) + (rng.random(LABEL_SHAPE) > 0.2) * 1 + (ball > 0.9)]
    entry = {
        "id": dtype,
        "raw": write(folder, "raw", raw.astype(dtype), FINE, (0, 0, 0)),
        "labels": write(folder, "labels/cells", ids, COARSE, corner),
        "roi": {"offset": [1, 2, 0], "shape": [8, 11, 13]},
    }
    path = folder / "datalist.json"
    path.write_text(json.dumps({"name": "fine", "training": [entry]}))
    return path


@pytest.fixture(scope="module", params=DTYPES)
def datalist(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_datalist(tmp_path_factory.mktemp("data"), request.param)


@pytest.fixture(scope="module")
def cache_dir(datalist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    Preprocessor(datalist, folder, VIT, FEATURES, ("training",), show_progress=False).run()
    return folder


def raw_dataset(datalist: Path, **changes: Any) -> RawVolumeDataset:
    return RawVolumeDataset(str(datalist), "training", VIT, FEATURES, **changes)


def live(datalist: Path) -> list[LiveVolume]:
    return list(live_volumes(str(datalist), "training", VIT, FEATURES))


def mass_centre(values: NDArray[Any]) -> list[float]:
    """Centre of what stands out, voxels from the corner."""
    values = values.astype(np.float64)
    weight = np.clip(values - np.percentile(values, 80), 0, None)
    return [
        float((weight.sum(tuple(a for a in range(3) if a != axis)) * (np.arange(n) + 0.5)).sum())
        / weight.sum()
        for axis, n in enumerate(values.shape)
    ]


def test_raw_labels_and_their_place_agree(datalist: Path, cache_dir: Path) -> None:
    (volume,) = open_cache(cache_dir)
    opened = open_entry(parse_datalist(datalist).training[0])
    assert volume.voxel_size_nm == COARSE
    assert opened.labels_offset == START
    assert opened.roi == Roi((2, 3, 2), (8, 11, 13))
    assert volume.offset_nm == pytest.approx([(2 + 0.5) * 20, (3 + 0.5) * 6, (2 + 0.5) * 6])
    whole = Roi((0, 0, 0), volume.shape)
    raw, (labels, mask) = volume.read_raw(whole), volume.read_labels(whole)
    assert raw.dtype == np.uint8 and mask.all()
    ids = volume.label_ids()[labels]
    np.testing.assert_array_equal(ids, opened.read_labels(opened.roi)[0])
    assert set(ids.ravel()) <= set(IDS) and ids.max() > 2**63
    corner = [o - s / 2 for o, s in zip(volume.offset_nm, COARSE, strict=True)]
    for found in (raw, ids == IDS[3]):
        place = [c + p * s for c, p, s in zip(corner, mass_centre(found), COARSE, strict=True)]
        apart = np.abs(np.subtract(place, CENTRE_NM)) / COARSE
        assert apart.max() < 0.5, apart


@pytest.mark.parametrize("scale", [(4.0, 4.0, 4.0), (2.0, 3.0, 1.3)], ids=str)
def test_features_are_where_the_ball_is(
    datalist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: tuple[float, ...]
) -> None:
    """Those of a backbone that sees how bright a patch is, one every pixel."""
    backbone = PatchMeans()
    spec = spec_of(backbone, pixels_per_voxel=scale, stride=1, window=64)
    monkeypatch.setattr(preprocessing, "load_backbone_and_spec", lambda *_: (backbone, spec))
    backbone.seed = None  # type: ignore[assignment]
    Preprocessor(datalist, tmp_path, VIT, FEATURES, ("training",), show_progress=False).run()
    (volume,) = open_cache(tmp_path)
    corner = [o - s / 2 for o, s in zip(volume.offset_nm, COARSE, strict=True)]
    for plane in PLANES:
        found = upsample(volume.plane_grid(plane), volume.shape, plane)[0].numpy()
        place = [c + p * s for c, p, s in zip(corner, mass_centre(found), COARSE, strict=True)]
        apart = np.abs(np.subtract(place, CENTRE_NM)) / COARSE
        assert apart.max() < 0.5, (plane, apart)


def test_cached_live_and_fresh_features_are_the_same(datalist: Path, cache_dir: Path) -> None:
    cached = CachedVolumeDataset(open_cache(cache_dir))[0]
    for other in (CachedVolumeDataset(live(datalist))[0], raw_dataset(datalist)[0]):
        for name in other:
            if name.startswith("tokens"):  # bfloat16 rounds otherwise in other batches
                torch.testing.assert_close(other[name], cached[name], atol=3e-2, rtol=0)
        assert_same(
            {k: v for k, v in other.items() if not k.startswith("tokens")},
            {k: cached[k] for k in other if not k.startswith("tokens")},
        )


def test_a_roi_sees_what_the_whole_volume_sees_there(datalist: Path) -> None:
    part, whole = raw_dataset(datalist)[0], raw_dataset(datalist, region="volume")[0]
    assert whole["image"].shape == (1, 11, 16, 16)
    box = (slice(None), slice(2, 10), slice(3, 14), slice(2, 15))
    assert torch.equal(part["image"], whole["image"][box])


def test_training_draws_crops_with_labels(datalist: Path, cache_dir: Path) -> None:
    for volumes in (open_cache(cache_dir), live(datalist)):
        sample = CropDataset(volumes, (4, 6, 5), target_settings([(1, 0, 0)], 8.0), num_samples=2)[
            1
        ]
        assert sample["image"].shape == (1, 4, 6, 5)
        assert sample["voxel_size_nm"].tolist() == list(COARSE)


def test_dense_features_have_voxels_of_labels(datalist: Path, tmp_path: Path) -> None:
    dense = {**FEATURES, "layout": "dense"}
    Preprocessor(datalist, tmp_path, VIT, dense, ("training",), show_progress=False).run()
    (cached,) = open_cache(tmp_path)
    (fresh,) = live_volumes(str(datalist), "training", VIT, dense)
    assert cached.read_features().shape == (16, 8, 11, 13)
    torch.testing.assert_close(cached.read_features(), fresh.read_features(), atol=3e-2, rtol=0)
    tokens = live(datalist)[0]
    grids = {plane: tokens.plane_grid(plane) for plane in PLANES}
    torch.testing.assert_close(
        fresh.read_features(), average(grids, (8, 11, 13)), atol=3e-2, rtol=0
    )


def test_the_intensity_window_is_that_of_the_file(datalist: Path, cache_dir: Path) -> None:
    (volume,) = open_cache(cache_dir)
    raw = open_entry(parse_datalist(datalist).training[0]).source
    expected = np.percentile(raw.read(raw.metadata.roi), (0.1, 99.9))
    assert volume.metadata["intensity_window"] == pytest.approx(expected)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_datalist(tmp_path / "data").parent


def perfect(folder: Path, kind: str) -> tuple[NDArray[np.uint64], dict[str, Any]]:
    """What inference would write where it makes no mistake, and its attributes."""
    opened = open_entry(parse_datalist(folder / "datalist.json").test[0])
    labels = opened.read_labels(opened.raw.metadata.roi)[0].astype(np.uint64)
    if kind == "classes":
        names = ["background", "foreground"]
        described = {"classes": {"names": names, "class_of_labels": "foreground"}}
        return (labels > 0).astype(np.uint64), described
    if kind == "sections":
        numbers = np.arange(len(labels), dtype=np.uint64)[:, None, None] * 10
        _, consecutive = np.unique(labels, return_inverse=True)
        ids = consecutive.reshape(labels.shape).astype(np.uint64)
        return np.where(ids > 0, ids + numbers, 0).astype(np.uint64), {"dimensions": 2}
    return labels, {}


@pytest.mark.parametrize("kind", ["objects", "sections", "classes"])
def test_a_segmentation_of_finer_raw_is_scored_against_its_labels(folder: Path, kind: str) -> None:
    content = json.loads((folder / "datalist.json").read_text())
    content["test"] = content.pop("training")
    (folder / "datalist.json").write_text(json.dumps(content))
    sample = RawVolumeDataset(
        str(folder / "datalist.json"), "test", VIT, FEATURES, "volume", use_tokens=False
    )[0]
    segments, attributes = perfect(folder, kind)
    assert segments.shape == sample["image"].shape[1:]
    z, y, x = sample["offset_nm"].tolist()
    create_ome_zarr_array(
        folder / "output" / "uint8.zarr", "labels/segmentation", segments.shape, segments.dtype,
        "zyx", tuple(sample["voxel_size_nm"].tolist()), (z, y, x), (8, 8, 8), attributes,
    ).write(segments).result()  # fmt: skip
    (scores,) = SegmentationEvaluator(
        folder / "datalist.json", "test", folder / "output", folder / "eval"
    ).run()
    found = scores.row()
    if kind == "classes":
        assert found["dice"] == found["iou"] == 1
        assert found["voxels"] == 8 * 11 * 13
        return
    assert (found["voi"], found["adapted_rand"]) == (0, 0)
    assert found["truth_objects"] == found["segments"]
    assert (found["truth_objects"] == 3) == (kind == "objects")


def test_another_voxel_size_of_raw_is_another_source(folder: Path, tmp_path: Path) -> None:
    def run(size: list[float]) -> None:
        content = json.loads((folder / "datalist.json").read_text())
        content["training"][0]["voxel_size_nm"] = {"raw": size}
        (folder / "datalist.json").write_text(json.dumps(content))
        Preprocessor(
            folder / "datalist.json", tmp_path / "cache", VIT, FEATURES, ("training",),
            show_progress=False,
        ).run()  # fmt: skip

    run([*FINE])
    run([*FINE])
    with pytest.raises(InputError, match=r"made from another source .* \[10.0, 4.0, 1.99\]"):
        run([10, 4, 1.99])


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_a_single_voxel_that_is_no_number_is_a_sentence(tmp_path: Path, bad: float) -> None:
    path = write_datalist(tmp_path / "data", "float32")
    content = json.loads(path.read_text())
    raw = np.random.default_rng(0).random(RAW_SHAPE).astype(np.float32)
    raw[9, 10, 11] = bad
    np.save(tmp_path / "data" / "raw.npy", raw)
    content["training"][0] |= {
        "raw": "raw.npy", "voxel_size_nm": {"raw": list(FINE)}, "intensity_window": [0, 1],
    }  # fmt: skip
    path.write_text(json.dumps(content))
    words = r"raw of entry 'float32' \('.*raw.npy'\) holds NaN or infinite values in"
    with pytest.raises(InputError, match=words):
        Preprocessor(path, tmp_path / "cache", VIT, FEATURES, show_progress=False).run()
    with pytest.raises(InputError, match=words):
        RawVolumeDataset(str(path), "training", VIT, FEATURES, use_tokens=False)[0]


@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "raw .* holds NaN or infinite"), (3.0, "raw .* is constant")]
)
def test_raw_without_grey_values_is_a_sentence(tmp_path: Path, value: float, message: str) -> None:
    path = write_datalist(tmp_path / "data", "float32")
    content = json.loads(path.read_text())
    np.save(tmp_path / "data" / "raw.npy", np.full(RAW_SHAPE, value, np.float32))
    content["training"][0] |= {"raw": "raw.npy", "voxel_size_nm": {"raw": list(FINE)}}
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        Preprocessor(path, tmp_path / "cache", VIT, FEATURES, show_progress=False).run()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((8, 8, 8), None),
        ((8.3, 7.7, 8), None),
        ((4, 4, 4), 'add "voxel_size_nm": {"labels": [8.0, 8.0, 8.0]} to its entry'),
        ((4, 8, 8), 'add "voxel_size_nm"'),
        ((40, 6, 6), None),
        ((30, 6, 6), 'add "voxel_size_nm": {"labels": [40.0, 6.0, 6.0]} to its entry'),
        ((16, 8, 8), "trained on [8.0, 8.0, 8.0] and [40.0, 6.0, 6.0] nm: expect a worse"),
        ((16, 4, 8), "expect a worse segmentation"),
    ],
)
def test_a_voxel_size_that_the_model_was_not_trained_on_is_said(
    caplog: pytest.LogCaptureFixture, size: tuple[float, ...], words: str | None
) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_scale("other", size, (8.0, 8.0, 8.0), (40.0, 6.0, 6.0))
    assert bool(caplog.records) == (words is not None)
    assert (words or "") in caplog.text
