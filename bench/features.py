"""What extraction, cache and loading of features cost, as ratios measured in one run."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from funlib.geometry import Roi

from bench.figures import Figure
from bench.loading import memory_growth
from custom.datalist import open_entry, parse_datalist
from custom.features.backbone import Backbone
from custom.features.cache import CachedVolume, open_cache
from custom.features.cache_files import bytes_on_disk, open_array, token_array
from custom.features.extraction import extract_planes
from custom.features.settings import load_backbone_and_spec
from custom.features.triplane import entries_for
from custom.planes import NORMAL_AXIS
from custom.volumes import create_ome_zarr_array, open_volume

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"
VIT_S: Mapping[str, Any] = {
    "model_type": "dinov3_vit",
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "patch_size": 16,
    "num_register_tokens": 4,
}
VOXELS_PER_PATCH = 8
BATCH = 8


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Args:
        backbone: folder, hub id, or configuration for random weights.
        cube: edge of the cube that is cached, voxels.
        crop: edge of a sample, voxels.
        samples: drawn per epoch.
        data: OME-Zarr with raw and labels/neurons; None for a synthetic volume.
    """

    backbone: str | Mapping[str, Any]
    cube: int = 128
    crop: int = 64
    samples: int = 20
    data: Path | None = None


def feature_figures(setting: Setting, folder: Path) -> list[Figure]:
    """All figures; ``folder`` gets data and cache."""
    folder.mkdir(parents=True, exist_ok=True)
    datalist, features = _datalist(setting, folder), _scale(setting)
    backbone, _ = load_backbone_and_spec(setting.backbone, features)
    windows = 3 * setting.cube
    before = _seconds_of_forward_passes(backbone, features["window"], windows // 2)
    peak_mib = _preprocess(setting, datalist, folder, features)
    after = _seconds_of_forward_passes(backbone, features["window"], windows - windows // 2)
    (volume,) = open_cache(folder / "cache", "training")
    extraction = volume.metadata["timing"]["seconds"]
    voxels = setting.cube**3
    if volume.metadata["timing"]["windows"] != windows:
        raise RuntimeError(f"expected {windows} windows, got {volume.metadata['timing']}")
    return [
        Figure("features.extract_over_backbone", extraction / (before + after), "1"),
        Figure("features.extract_voxels_per_second", voxels / extraction, "1/s"),
        Figure("features.extract_peak_memory", peak_mib, "MiB"),
        Figure("features.cache_bytes_per_voxel", bytes_on_disk(volume.path) / voxels, "bytes"),
        *_dense(setting, datalist, folder, features),
        *_loading(setting, volume, backbone, datalist),
        *_int8(setting, datalist, folder, features),
        Figure(
            "features.memory_epoch_10_over_1",
            memory_growth(volume, setting.crop, 6 * setting.samples, folder / "copy"),
            "1",
        ),
    ]


def cached_cube(
    setting: Setting, folder: Path, features: Mapping[str, Any] | None = None
) -> CachedVolume:
    """The cube with its features, by default of ``_scale``.

    ``folder`` gets data, the datalist ``cube.json`` and ``cache``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _preprocess(setting, _datalist(setting, folder), folder, features or _scale(setting))
    (volume,) = open_cache(folder / "cache", "training")
    return volume


def _scale(setting: Setting) -> dict[str, float]:
    """Settings of features with one patch per ``VOXELS_PER_PATCH`` and one window per slice."""
    patch = load_backbone_and_spec(setting.backbone, {"window": 224})[0].patch_size
    return {
        "pixels_per_voxel": patch / VOXELS_PER_PATCH,
        "window": setting.cube * patch // VOXELS_PER_PATCH,
    }


def _datalist(setting: Setting, folder: Path) -> Path:
    """A datalist of one cube."""
    if setting.data is None:
        size = str(setting.cube)
        _python("-m", "scripts.synthetic", "--out", str(folder), "--size", size)
        raw, labels = (folder / "synthetic.zarr" / p for p in ("raw", "labels/cells"))
    else:
        raw, labels = (_cut(setting, p, folder) for p in ("raw", "labels/neurons"))
    roi = {"offset": [0, 0, 0], "shape": [setting.cube] * 3}
    entry = {"id": "cube", "raw": str(raw), "labels": str(labels), "roi": roi}
    path = folder / "cube.json"
    path.write_text(json.dumps({"name": "bench", "training": [entry]}))
    return path


def _cut(setting: Setting, name: str, folder: Path) -> Path:
    """The first cube of a volume as a volume of its own, so that its windows end where it does."""
    assert setting.data is not None
    source = open_volume(str(setting.data / name))
    values = source.read(Roi((0, 0, 0), [setting.cube] * 3))
    voxel_size_nm, shape = source.metadata.voxel_size_nm, values.shape
    array = create_ome_zarr_array(
        folder / "cube.zarr", name, shape, str(values.dtype), "zyx", voxel_size_nm,
        (0.0, 0.0, 0.0), (64, 64, 64), {},
    )  # fmt: skip
    array.write(values).result()
    return folder / "cube.zarr" / name


def _seconds_of_forward_passes(backbone: Backbone, window: int, count: int) -> float:
    """Bare forward passes of so many windows, in batches as extraction makes them."""
    images = torch.randn(BATCH, 3, window, window)
    backbone(images)
    start = time.perf_counter()
    for at in range(0, count, BATCH):
        backbone(images[: min(BATCH, count - at)])
    return time.perf_counter() - start


def _dense(
    setting: Setting, datalist: Path, folder: Path, features: Mapping[str, Any]
) -> list[Figure]:
    """The same cube in the dense layout; its cache is removed."""
    settings = {**features, "layout": "dense"}
    peak_mib = _preprocess(setting, datalist, folder, settings, "dense_cache")
    (volume,) = open_cache(folder / "dense_cache", "training")
    size, seconds = bytes_on_disk(volume.path), volume.metadata["timing"]["seconds"]
    shutil.rmtree(folder / "dense_cache")
    return [
        Figure("features.dense_cache_bytes_per_voxel", size / setting.cube**3, "bytes"),
        Figure("features.dense_extract_peak_memory", peak_mib, "MiB"),
        Figure("features.dense_extract_seconds", seconds, "s"),
    ]


def _preprocess(
    setting: Setting,
    datalist: Path,
    folder: Path,
    features: Mapping[str, Any],
    cache: str = "cache",
) -> float:
    """The preprocessing run as a user starts it; returns its peak memory in MiB."""
    timing = folder / "timing.json"
    _python(
        *("-m", "scripts.timed", str(timing), sys.executable, "-m", "monai.bundle", "run"),
        *("preprocessing", "--config_file", "configs/preprocess.json", "--sections", "training,"),
        *("--datalist", str(datalist), "--cache_dir", str(folder / cache)),
        *("--backbone", str(setting.backbone)),
        *(part for key, value in features.items() for part in (f"--features#{key}", str(value))),
    )
    peak: float = json.loads(timing.read_text())["peak_mib"]
    return peak


def _python(*arguments: str) -> None:
    status = subprocess.run([sys.executable, *arguments], cwd=BUNDLE, check=False).returncode
    if status:
        raise SystemExit(f"{' '.join(arguments)} failed with status {status}")


def _loading(
    setting: Setting, volume: CachedVolume, backbone: Backbone, datalist: Path
) -> list[Figure]:
    """One sample's features: from the cache, read bare, and extracted on the fly."""
    rois = _crops(setting)
    arrays = {p: open_array(volume.path / token_array(p)) for p in volume.spec.planes}

    def read_bare(roi: Roi) -> object:
        boxes = {p: _box(volume, p, roi, array.shape) for p, array in arrays.items()}
        return [arrays[p][box].read().result() for p, box in boxes.items()]

    opened = open_entry(parse_datalist(datalist).training[0])
    window = tuple(volume.metadata["intensity_window"])

    def extract(roi: Roi) -> object:
        shape = opened.raw.metadata.shape
        return extract_planes(
            opened.source.read, shape, roi, backbone, volume.spec, window, raw_axes=opened.raw_axes
        )

    _forget(volume.path)
    cold = _median_seconds(lambda roi: _load(volume, roi), rois[:1])
    load, read = _side_by_side([lambda roi: _load(volume, roi), read_bare], rois)
    extraction = _median_seconds(extract, rois[:1])
    return [
        Figure("features.load_seconds", load, "s"),
        Figure("features.load_over_read", load / read, "1"),
        Figure("features.load_over_extract", extraction / load, "1"),
        Figure("features.load_over_extract_cold", extraction / cold, "1"),
    ]


def _int8(
    setting: Setting, datalist: Path, folder: Path, features: Mapping[str, float]
) -> list[Figure]:
    """Size and speed of the same cache with its features as int8."""
    _preprocess(setting, datalist, folder, {**features, "dtype": "int8"}, "int8_cache")
    (volume,) = open_cache(folder / "int8_cache", "training")
    (load,) = _side_by_side([lambda roi: _load(volume, roi)], _crops(setting))
    size = bytes_on_disk(volume.path) / setting.cube**3
    return [
        Figure("features.int8_cache_bytes_per_voxel", size, "bytes"),
        Figure("features.int8_load_seconds", load, "s"),
    ]


def _crops(setting: Setting) -> list[Roi]:
    """Random crops of the cube."""
    random = np.random.default_rng(0)
    return [
        Roi(random.integers(0, setting.cube - setting.crop + 1, 3), (setting.crop,) * 3)
        for _ in range(setting.samples)
    ]


def _load(volume: CachedVolume, roi: Roi) -> object:
    return [volume.plane_grid(plane, roi) for plane in volume.spec.planes]


def _box(volume: CachedVolume, plane: str, roi: Roi, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The entries that a crop needs, as TensorStore reads them."""
    normal = NORMAL_AXIS[plane]
    first, count = entries_for(*volume.placement(plane), roi.offset, roi.shape)
    sizes = list(shape[1:])
    sizes.insert(normal, sizes.pop(0))
    box = [slice(max(0, f), min(n, f + c)) for f, c, n in zip(first, count, sizes, strict=True)]
    box.insert(0, box.pop(normal))
    return (slice(None), *box)


def _median_seconds(work: Callable[[Roi], object], rois: list[Roi]) -> float:
    seconds = []
    for roi in rois:
        start = time.perf_counter()
        work(roi)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _side_by_side(ways: Sequence[Callable[[Roi], object]], rois: list[Roi]) -> list[float]:
    """Median seconds of every way, by turns, after one round that brings all files into memory."""
    rounds = [[_median_seconds(way, [roi]) for way in ways] for roi in rois * 4]
    return [statistics.median(seconds) for seconds in zip(*rounds[len(rois) :], strict=True)]


def _forget(folder: Path) -> None:
    """Drop these files from the operating system's cache, where that can be asked for."""
    if hasattr(os, "posix_fadvise"):
        for file in (path for path in folder.rglob("*") if path.is_file()):
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
