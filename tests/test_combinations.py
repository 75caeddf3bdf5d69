"""Settings together: whatever they are, a cache holds what is computed on the fly and from raw."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from funlib.geometry import Roi
from torch import Tensor

from custom.datasets import CropDataset, CropSampler
from custom.features import (
    cache_basis,
    cache_files,
    cache_writer,
    dense_writer,
    target_files,
)
from custom.features.cache import CachedVolume, open_cache
from custom.features.cache_check import check_cache
from custom.features.cache_prune import removable
from custom.features.copies import IntensityChange, plan_copies
from custom.features.intensity import to_unit_range
from custom.features.pca import BASIS_FILE
from custom.features.pool import pooled
from custom.features.triplane import PlaneGrid, average
from custom.live import FeatureVolume, live_volumes
from custom.loaders import training_loader
from custom.planes import PLANES
from custom.preprocessing import Preprocessor
from custom.samples import Sample
from custom.targets.affinities import affinities
from custom.targets.settings import TargetSettings, target_settings
from custom.volume_datasets import CachedVolumeDataset, RawVolumeDataset
from tests import test_finer_raw
from tests.features.guided import HUBCONF, write_hub
from tests.test_datasets import VIT, assert_same
from tests.test_preprocessing import assert_same_arrays

pytestmark = pytest.mark.slow

VIT_8 = {**VIT, "seed": 3}
CONVNEXT = {
    "model_type": "dinov3_convnext",
    "hidden_sizes": [4, 6, 8, 10],
    "depths": [1, 1, 1, 1],
    "seed": 3,
}
FEATURES = {
    "pixels_per_voxel": [1.0, 2.0, 1.15],
    "window": 32,
    "precision": "float32",
}
DENSE = {"layout": "dense"}
STAGES = {"layers": [2, 3], "final_norm": False}
SIZES = {"equal": test_finer_raw.COARSE, "finer": test_finer_raw.FINE}
LABEL_SIZE = test_finer_raw.COARSE
RAW_SHAPE = {"equal": (11, 16, 16), "finer": test_finer_raw.RAW_SHAPE}
LABEL_SHAPE = test_finer_raw.LABEL_SHAPE
CORNER = [s * v for s, v in zip(test_finer_raw.START, LABEL_SIZE, strict=True)]
ROI = {"offset": [1, 2, 0], "shape": [8, 11, 13]}
ONE_SLICE = {"offset": [4, 0, 2], "shape": [1, 14, 11]}
BEYOND = {"offset": [-1, 3, -2], "shape": [9, 11, 15], "beyond_labels": True}
OFFSETS = [[1, 0, 0], [0, -2, 0], [0, 0, 3]]
SIGMA_NM = 12.0
INTENSITY = {"contrast": [0.8, 1.3], "gamma": [0.6, 0.8], "noise": [0.02, 0.05]}


@dataclass(frozen=True)
class Case:
    """Settings that are used together."""

    features: dict[str, Any]
    raw: str = "finer"
    roi: dict[str, Any] = field(default_factory=lambda: ROI)
    dtype: str = "uint16"
    classes: bool = False
    guided: bool = False
    backbone: dict[str, Any] = field(default_factory=lambda: VIT_8)
    compression: str = "none"

    @property
    def offsets(self) -> list[list[int]]:
        """Those that fit into the ROI."""
        shape = self.roi["shape"]
        return [o for o in OFFSETS if all(abs(a) < n for a, n in zip(o, shape, strict=True))]

    @property
    def targets(self) -> TargetSettings:
        """Of the cache and of crops."""
        return target_settings(self.offsets, SIGMA_NM, boundary_power=1.0)


CASES = {
    "pca-int8-finer": Case({"pca": 5, "dtype": "int8", "overlap": 8}),
    "pca-dense-stride": Case({"pca": 4, **DENSE, "stride": 4, "overlap": 16}, "equal", BEYOND),
    "pca-dense-int8-steps-finer": Case(
        {"pca": 6, **DENSE, "dtype": "int8", "slice_step": [2, 3, 1]}, dtype="uint8"
    ),
    "dense-int8-finer-classes": Case(
        {**DENSE, "dtype": "int8", "planes": ["xy", "yz"]}, classes=True, compression="lz4"
    ),
    "guided-pca-finer": Case({**DENSE, "pca": 3, "overlap": 8}, guided=True, dtype="float32"),
    "guided-int8-one-slice": Case(
        {**DENSE, "dtype": "int8", "planes": ["xy"]}, "equal", ONE_SLICE, guided=True
    ),
    "stages-pca-finer": Case({**STAGES, "pca": 4}, backbone=CONVNEXT, classes=True),
    "stages-dense-steps": Case(
        {**STAGES, **DENSE, "slice_step": 2}, "equal", backbone=CONVNEXT, dtype="uint8"
    ),
    "stages-guided-int8-finer": Case(
        {**STAGES, **DENSE, "dtype": "int8"}, backbone=CONVNEXT, guided=True
    ),
    "stride-steps-pca-beyond-finer": Case(
        {"stride": 2, "slice_step": [1, 2, 3], "pca": 4, "dtype": "float32"}, roi=BEYOND
    ),
    "dense-one-slice-finer-classes": Case(
        {**DENSE, "dtype": "float32", "stride": 4}, roi=ONE_SLICE, classes=True
    ),
}


def write_project(folder: Path, case: Case) -> Path:
    """Raw, and labels that begin inside it; as one volume or as two classes."""
    rng = np.random.default_rng(1)
    shape, size = RAW_SHAPE[case.raw], SIZES[case.raw]
    grey = 90 + 90 * test_finer_raw.blob(shape, size, (0, 0, 0)) + rng.normal(scale=70, size=shape)
    raw = (grey.clip(0, 255) * {"uint16": 100}.get(case.dtype, 1)).astype(case.dtype)
    ids = test_finer_raw.IDS[rng.integers(0, 4, LABEL_SHAPE)]
    names: dict[str, Any] = {}
    for name, labels in (
        ("cells", ids),
        ("spots", np.where(rng.random(LABEL_SHAPE) > 0.8, ids, 0)),
    ):
        names[name] = test_finer_raw.write(folder, name, labels, LABEL_SIZE, CORNER)
    truth = {"classes": names} if case.classes else {"labels": names["cells"]}
    entry = {
        "id": "a",
        "raw": test_finer_raw.write(folder, "raw", raw, size, (0, 0, 0)),
        **truth,
        "roi": case.roi,
    }
    path = folder / "datalist.json"
    path.write_text(json.dumps({"name": "x", "training": [entry]}))
    return path


@dataclass(frozen=True)
class Project:
    """A case, preprocessed with one copy and with targets."""

    case: Case
    datalist: Path
    cache_dir: Path
    features: dict[str, Any]

    def live(self, datalist: Path | None = None) -> FeatureVolume:
        arguments = str(datalist or self.datalist), "training", self.case.backbone, self.features
        (volume,) = live_volumes(*arguments, cache_dir=self.cache_dir)
        return volume

    def cached(self) -> CachedVolume:
        return open_cache(self.cache_dir, "training")[0]

    def copy(self) -> CachedVolume:
        return open_cache(self.cache_dir, "training", copies=True)[1]

    def from_raw(self) -> Sample:
        arguments = str(self.datalist), "training", self.case.backbone, self.features
        return RawVolumeDataset(*arguments, model_dir=str(self.cache_dir))[0]


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Project:
    case, folder = request.param, tmp_path_factory.mktemp("project")
    faint = HUBCONF.replace("unit.std() > 0.05", "unit.std() > 0.01")  # what antialiasing leaves
    hub = {"upsampler": write_hub(folder / "hub", faint)} if case.guided else {}
    found = Project(
        case,
        write_project(folder, case),
        folder / "cache",
        {**FEATURES, **case.features, **hub},
    )
    Preprocessor(
        found.datalist,
        found.cache_dir,
        case.backbone,
        found.features,
        ("training",),
        show_progress=False,
        compression=case.compression,
        targets=case.targets.to_json(),
        copies=plan_copies(1, INTENSITY),
    ).run()
    return found


def voxelwise(sample: Sample) -> Tensor:
    """Features (C, D, H, W) float32 of a sample, in either layout."""
    if "features" in sample:
        return sample["features"].float()
    grids = {
        plane: PlaneGrid.placed(sample[f"tokens_{plane}"], sample[f"placement_{plane}"])
        for plane in PLANES
        if f"tokens_{plane}" in sample
    }
    return average(grids, sample["image"].shape[1:])


def whole(volume: FeatureVolume) -> Sample:
    return CachedVolumeDataset([volume])[0]


def rounding(volume: CachedVolume) -> float:
    """What storing may change in a value."""
    arrays = volume.metadata["arrays"].values()
    steps = [scale for array in arrays for scale in array.get("scales", [])]
    largest = float(voxelwise(whole(volume)).abs().max())
    return max(steps, default=0.0) / 2 + 2e-3 * largest


def assert_close(found: Sample, expected: Sample, within: float) -> None:
    assert found.keys() == expected.keys()
    torch.testing.assert_close(voxelwise(found), voxelwise(expected), atol=within, rtol=0)
    for key in found.keys() - {"features", *(f"tokens_{plane}" for plane in PLANES)}:
        if isinstance(found[key], Tensor):
            torch.testing.assert_close(found[key], expected[key], atol=1e-5, rtol=0, msg=key)
        else:
            assert found[key] == expected[key]


def test_a_cached_volume_is_the_live_one_and_that_of_inference_from_raw(project: Project) -> None:
    volume = project.cached()
    found, within = whole(volume), rounding(volume)
    assert voxelwise(found).std() > 10 * within
    assert_close(whole(project.live()), found, within)
    from_raw = project.from_raw()
    assert_close(from_raw, {key: found[key] for key in from_raw}, within)


def test_crops_are_the_whole_volume_cropped(project: Project) -> None:
    volume, live = project.cached(), project.live()
    features = voxelwise(whole(volume))
    size = [min(5, n) for n in volume.shape]
    crops = CropDataset([volume], size, project.case.targets, 3, min_labelled=0.01)
    others = CropDataset([live], size, project.case.targets, 3, min_labelled=0.01)
    for number in range(3):
        sample = crops[number]
        assert_close(others[number], sample, rounding(volume))
        _, offset, _ = crops._draw(np.random.default_rng((0, number)))
        box = (slice(None), *Roi(offset, size).to_slices())
        torch.testing.assert_close(voxelwise(sample), features[box], atol=1e-3, rtol=1e-3)


def test_threads_and_a_pool_give_the_samples_of_the_cache(project: Project) -> None:
    volumes = open_cache(project.cache_dir, "training", copies=True)
    size = [min(4, n) for n in project.cached().shape]

    def samples(pool_gib: float, workers: int) -> list[Sample]:
        dataset = CropDataset(
            pooled(volumes, pool_gib),
            *(size, project.case.targets, 6),
            min_labelled=0.01,
            cached_targets=True,
            feature_dtype="float32",
        )
        return list(training_loader(dataset, 2, CropSampler(dataset), workers, "threads"))

    for found, expected in zip(samples(1.0, 3), samples(0, 0), strict=True):
        assert_same(found, expected)
        for key, value in expected.items():
            if key.startswith(("features", "tokens_")):
                assert value.dtype == torch.float32


def test_a_copy_is_the_volume_of_the_changed_file(project: Project) -> None:
    copy, folder = project.copy(), project.datalist.parent
    raw = zarr.open(folder / "x.zarr" / "raw" / "s0", mode="r")[:]
    change = IntensityChange(**copy.metadata["intensity_change"])
    changed = change(to_unit_range(raw, tuple(copy.metadata["intensity_window"])), (0, 0, 0))
    size = SIZES[project.case.raw]
    path = test_finer_raw.write(folder, "changed", changed, size, (0, 0, 0))
    values = json.loads(project.datalist.read_text())
    values["training"][0] |= {"raw": path, "intensity_window": [0, 1]}
    datalist = folder / "changed.json"
    datalist.write_text(json.dumps(values))
    found, within = whole(copy), rounding(copy)
    assert_close(whole(project.live(datalist)), found, within)
    unlike = (voxelwise(found) - voxelwise(whole(project.cached()))).abs().max()
    assert unlike > 2 * within


def test_targets_are_those_of_the_cached_labels(project: Project) -> None:
    for volume in (project.cached(), project.copy()):
        box = Roi((0, 0, 0), volume.shape)
        labels, mask = volume.read_labels(box)
        target, _ = volume.read_targets(box)
        offsets = project.case.offsets
        expected, _ = affinities(labels, offsets)
        np.testing.assert_array_equal(target[: len(offsets)], expected * 255)
        assert mask.any() and labels.any() and len(target) == len(offsets) + 10
        ids = volume.label_ids()
        assert (ids[-1] == 2) if project.case.classes else ids[-1] > 2**32


def test_check_and_prune_find_nothing(project: Project) -> None:
    assert check_cache(project.cache_dir, show_progress=False).defects == ()
    assert removable(project.cache_dir, {"a"}, copies=1) == []


# --- killed and taken up ---

KILLED = Case({**DENSE, "pca": 3, "dtype": "int8"}, "equal")
MODULES = (cache_files, cache_writer, dense_writer, target_files)
WRITES = ("write_json", "write_array", "create_array")


def run(datalist: Path, cache_dir: Path, **changes: Any) -> None:
    arguments = {
        "targets": KILLED.targets.to_json(),
        "copies": plan_copies(1, INTENSITY),
        "show_progress": False,
        **changes,
    }
    features = {**FEATURES, **KILLED.features}
    Preprocessor(datalist, cache_dir, VIT_8, features, ("training",), **arguments).run()


class Writes:
    """Counts what is written to a cache; from a number on, the process is dead."""

    def __init__(self, patch: pytest.MonkeyPatch, allowed: float = float("inf")) -> None:
        self.count, self.allowed = 0, allowed
        for module in MODULES:
            for name in (name for name in WRITES if hasattr(module, name)):
                patch.setattr(module, name, self._counted(getattr(module, name)))
        basis = self._counted(cache_basis.write_atomically)
        patch.setattr(cache_basis, "write_atomically", basis)

    def _counted(self, action: Any) -> Any:
        def act(*args: Any) -> Any:
            self.count += 1
            if self.count > self.allowed:
                raise KeyboardInterrupt
            return action(*args)

        return act


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    """Datalist, cache, and how often something was written to it."""
    folder = tmp_path_factory.mktemp("whole")
    datalist = write_project(folder, KILLED)
    with pytest.MonkeyPatch.context() as patch:
        writes = Writes(patch)
        run(datalist, folder / "cache")
    return datalist, folder / "cache", writes.count


@pytest.mark.parametrize("writes", range(0, 75, 5))  # an odd step: arrays and markers
def test_a_run_killed_anywhere_ends_with_the_same_cache(
    uninterrupted: tuple[Path, Path, int], tmp_path: Path, writes: int
) -> None:
    datalist, expected, count = uninterrupted
    assert writes < count <= 75
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Writes(patch, writes)
        run(datalist, tmp_path)
    run(datalist, tmp_path)
    assert_same_arrays(expected, tmp_path)
    assert (tmp_path / BASIS_FILE).read_bytes() == (expected / BASIS_FILE).read_bytes()
    assert check_cache(tmp_path, show_progress=False).defects == ()
    assert removable(tmp_path, {"a"}, copies=1) == []
    names = [sorted(str(p.relative_to(f)) for p in f.rglob("*")) for f in (expected, tmp_path)]
    assert names[0] == names[1]


def test_targets_that_change_while_copies_are_made_are_the_last_ones(
    uninterrupted: tuple[Path, Path, int], tmp_path: Path
) -> None:
    datalist, expected, count = uninterrupted
    other = {"affinity_offsets": [[0, 0, 5]], "lsd_sigma_nm": None}
    run(datalist, tmp_path, copies=None, targets=other)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Writes(patch, count // 3)
        run(datalist, tmp_path)
    assert open_cache(tmp_path)[0].metadata["targets"]["affinity_offsets"] == [[0, 0, 5]]
    run(datalist, tmp_path)
    assert_same_arrays(expected, tmp_path)
