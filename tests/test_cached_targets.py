"""Targets in a cache: as those computed, whenever a process ends, and nothing else touched."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from funlib.geometry.roi import Roi
from monai.transforms import Compose

from custom import cached_targets, volume_making
from custom.augmentation import RandOrientationd
from custom.cached_targets import refuse_other_targets, remove_targets, update_targets
from custom.datasets import CropDataset
from custom.errors import InputError
from custom.features import target_files
from custom.features.cache import CachedVolume, open_cache
from custom.features.cache_check import check_cache
from custom.features.cache_files import TARGET_ARRAYS, VolumeFiles
from custom.features.cache_prune import removable
from custom.features.target_files import TargetWriter
from custom.live import live_volumes
from custom.targets.affinities import affinities
from custom.targets.blocks import restored
from custom.targets.settings import TargetSettings, target_settings
from custom.transforms import LabelsToTargetsd
from tests.features.cached import SHAPE, request, voxels, write
from tests.test_preprocessing import preprocessor, write_datalist

pytestmark = pytest.mark.slow

OFFSETS = [[1, 0, 0], [0, -2, 0], [0, 0, 3]]
SIGMA_NM = 6.0
SETTINGS = target_settings(OFFSETS, SIGMA_NM, boundary_power=1.5)
OTHERS = target_settings(OFFSETS[:2], 8.0)
CROP = (6, 5, 8)


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    """Two labelled volumes, one without labels."""
    for index, labels in enumerate((True, False, True)):
        write(VolumeFiles(tmp_path / "cache", index), request(index), labels=labels)
    return tmp_path / "cache"


def update(cache_dir: Path, settings: TargetSettings = SETTINGS) -> list[str]:
    return [files.name for files in update_targets(cache_dir, settings, show_progress=False)]


def stored(cache_dir: Path, index: int = 0) -> tuple[Mapping[str, Any] | None, Any]:
    """Settings and arrays of a volume's targets; the volume must be sound."""
    volume = CachedVolume(VolumeFiles(cache_dir, index).arrays)
    settings = volume.metadata.get("targets")
    arrays = None if settings is None else volume.read_targets(Roi((0, 0, 0), SHAPE))
    return settings, arrays


def other_files(cache_dir: Path) -> dict[Path, tuple[int, bytes]]:
    """Everything that is not about targets."""
    names = (*TARGET_ARRAYS, ".targets")
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(cache_dir.rglob("*"))
        if path.is_file()
        and not path.name.endswith("_metadata.json")
        and not set(names) & set(path.parts)
    }


def defects(cache_dir: Path) -> list[str]:
    return list(check_cache(cache_dir, show_progress=False).defects)


# --- writing ---


def test_labelled_volumes_get_the_targets_of_their_labels(cache_dir: Path) -> None:
    before = other_files(cache_dir)
    assert update(cache_dir) == ["volume_000000", "volume_000002"]
    for index in (0, 2):
        settings, (target, weights) = stored(cache_dir, index)
        assert settings == SETTINGS.to_json()
        assert target.shape == (13, *SHAPE) and weights.shape == SHAPE
        expected, _ = affinities(voxels()["gt"], OFFSETS)
        np.testing.assert_array_equal(restored(target)[:3], expected)
    assert stored(cache_dir, 1) == (None, None)
    assert other_files(cache_dir) == before
    assert defects(cache_dir) == []
    assert removable(cache_dir) == []


def test_volumes_that_have_these_targets_are_kept(cache_dir: Path) -> None:
    update(cache_dir)
    before = {p: p.stat().st_mtime_ns for p in cache_dir.rglob("*")}
    assert update(cache_dir) == []
    assert before == {p: p.stat().st_mtime_ns for p in cache_dir.rglob("*")}


def test_other_settings_replace_the_targets_and_nothing_else(
    cache_dir: Path, tmp_path: Path
) -> None:
    fresh = shutil.copytree(cache_dir, tmp_path / "fresh")
    before = other_files(cache_dir)
    update(cache_dir)
    assert update(cache_dir, OTHERS) == ["volume_000000", "volume_000002"]
    update(fresh, OTHERS)
    for one, other in zip(stored(cache_dir)[1], stored(fresh)[1], strict=True):
        np.testing.assert_array_equal(one, other)
    assert other_files(cache_dir) == before
    assert defects(cache_dir) == []


def forget_new_settings(cache_dir: Path) -> None:
    """Metadata as versions wrote them that knew four settings."""
    older = ("affinity_offsets", "lsd_sigma_nm", "lsd_downsample", "boundary_power")
    for index in (0, 2):
        path = VolumeFiles(cache_dir, index).metadata
        metadata = json.loads(path.read_text())
        metadata["targets"] = {key: metadata["targets"][key] for key in older}
        path.write_text(json.dumps(metadata))


def test_targets_of_earlier_versions_are_kept_unless_their_weights_had_no_end(
    cache_dir: Path,
) -> None:
    update(cache_dir, OTHERS)
    forget_new_settings(cache_dir)
    assert defects(cache_dir) == []
    assert update(cache_dir, OTHERS) == []
    refuse_other_targets(labelled(cache_dir), OTHERS)
    update(cache_dir)
    forget_new_settings(cache_dir)
    with pytest.raises(InputError, match=r"in boundary_reach_nm \(None, not 240\.0\): run python"):
        refuse_other_targets(labelled(cache_dir), SETTINGS)
    assert update(cache_dir) == ["volume_000000", "volume_000002"]
    refuse_other_targets(labelled(cache_dir), SETTINGS)


def labelled(cache_dir: Path) -> list[CachedVolume]:
    return [volume for volume in open_cache(cache_dir) if volume.has_labels]


def test_removed_targets_leave_the_cache_as_it_was(cache_dir: Path) -> None:
    before = {p: p.read_bytes() for p in cache_dir.rglob("*") if p.is_file()}
    update(cache_dir)
    assert [files.name for files in remove_targets(cache_dir)] == ["volume_000000", "volume_000002"]
    assert before == {p: p.read_bytes() for p in cache_dir.rglob("*") if p.is_file()}
    assert remove_targets(cache_dir) == []


WRITES = ("write_json", "write_array", "create_array", "_remove")
WITHOUT_LSDS = target_settings(OFFSETS, None, boundary_power=1.5)
OTHERS_WITHOUT_LSDS = target_settings(OFFSETS[:2], None)


@pytest.fixture(scope="module")
def old_and_new(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A cache of one volume with old targets, and the same with new ones."""
    old, new = (tmp_path_factory.mktemp(name) / "cache" for name in ("old", "new"))
    for cache_dir, settings in ((old, WITHOUT_LSDS), (new, OTHERS_WITHOUT_LSDS)):
        write(VolumeFiles(cache_dir, 0), request(0))
        update(cache_dir, settings)
    return old, new


@pytest.mark.parametrize("moment", range(21))
def test_a_killed_update_leaves_old_targets_new_ones_or_none_and_goes_on(
    old_and_new: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    monkeypatch.setattr(cached_targets, "BLOCK", 16)
    cache_dir = shutil.copytree(old_and_new[0], tmp_path / "cache")
    old, new = (stored(path) for path in old_and_new)
    count = 0

    def killing(action: Any) -> Any:
        def act(*args: Any) -> Any:
            nonlocal count
            count += 1
            if count > moment:
                raise KeyboardInterrupt
            return action(*args)

        return act

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        for name in WRITES:
            patch.setattr(target_files, name, killing(getattr(target_files, name)))
        update(cache_dir, OTHERS_WITHOUT_LSDS)
    settings, arrays = stored(cache_dir)
    assert settings in (old[0], new[0], None)
    if settings is not None:
        expected = old if settings == old[0] else new
        for found, wanted in zip(arrays, expected[1], strict=True):
            np.testing.assert_array_equal(found, wanted)
    assert defects(cache_dir) == []
    left = shutil.copytree(cache_dir, tmp_path / "left")
    for item in removable(left):
        item.remove()
    assert defects(left) == [] and removable(left) == []
    for going_on in (cache_dir, left):
        update(going_on, OTHERS_WITHOUT_LSDS)
        found_settings, found = stored(going_on)
        assert found_settings == new[0]
        for one, other in zip(found, new[1], strict=True):
            np.testing.assert_array_equal(one, other)
        assert removable(going_on) == []


def test_a_killed_update_does_not_compute_its_blocks_again(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_targets, "BLOCK", 16)  # 2 x 1 x 2 blocks
    done: list[Roi] = []
    compute = cached_targets.target_block

    def limited(read: Any, shape: Any, block: Roi, *args: Any) -> Any:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(block)
        return compute(read, shape, block, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cached_targets, "target_block", limited)
        update(cache_dir)
    monkeypatch.setattr(
        cached_targets, "target_block", lambda *a: (done.append(a[2]), compute(*a))[1]
    )
    update(cache_dir)
    assert len(done) == len({(b.offset, b.shape) for b in done[:4]}) + 4 == 8


def test_check_sees_a_damaged_target(cache_dir: Path) -> None:
    update(cache_dir)
    chunk = cache_dir / "volume_000000.zarr" / "target" / "c" / "0" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    shutil.rmtree(cache_dir / "volume_000002.zarr" / "boundary_weights")
    found = defects(cache_dir)
    assert found[0].startswith("volume_000000 (cube0), target, c/0/0/0/0: ")
    assert found[1].startswith("volume_000002 (cube2), boundary_weights: ")
    assert len(found) == 2


TARGETS = {"affinity_offsets": [[1, 0, 0], [0, 0, 2]], "lsd_sigma_nm": 10.0}


def test_preprocessing_makes_targets_and_their_settings_never_extract_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datalist, cache_dir = write_datalist(tmp_path / "data"), tmp_path / "cache"
    preprocessor(datalist, cache_dir).run()
    before = {p: p.stat().st_mtime_ns for p in cache_dir.rglob("c/**/*") if p.is_file()}
    monkeypatch.setattr(volume_making, "PlaneExtraction", None)
    for sigma in (10.0, 20.0, None):
        targets = {**TARGETS, "lsd_sigma_nm": sigma}
        preprocessor(datalist, cache_dir, targets=targets).run()
        volumes = open_cache(cache_dir)
        assert [("targets" in v.metadata) for v in volumes] == [True, True, False]
        assert {v.metadata["targets"]["lsd_sigma_nm"] for v in volumes[:2]} == {sigma}
    preprocessor(datalist, cache_dir).run()
    assert open_cache(cache_dir)[0].metadata["targets"]["lsd_sigma_nm"] is None
    assert before == {p: p.stat().st_mtime_ns for p in before}
    with pytest.raises(InputError, match="targets has the unknown key 'sigma'"):
        preprocessor(datalist, cache_dir, targets={"sigma": 1})


# --- in training ---


def crops(cache_dir: Path, symmetry: str = "none", cached: bool = True, **settings: Any) -> Any:
    wanted = {
        "affinity_offsets": OFFSETS,
        "lsd_sigma_nm": SIGMA_NM,
        "boundary_power": 1.5,
        **settings,
    }
    targets = target_settings(**wanted)
    return CropDataset(
        labelled(cache_dir),
        CROP,
        targets,
        num_samples=12,
        transform=Compose(
            [RandOrientationd(("image", "labels", "mask"), symmetry), LabelsToTargetsd(targets)]
        ),
        cached_targets=cached,
    )


@pytest.mark.parametrize("erosion", [0, [0, 0, 1]])
def test_samples_with_cached_targets_equal_those_with_computed_ones(
    cache_dir: Path, erosion: Any
) -> None:
    update(cache_dir)
    layout = SETTINGS.layout
    cached, computed = (crops(cache_dir, cached=c, mask_erosion=erosion) for c in (True, False))
    for number in range(12):
        one, other = cached[number], computed[number]
        assert one.keys() == other.keys()
        assert [one[k] == other[k] for k in ("sample_number", "sample_volume")] == [True, True]
        for name in one.keys() - {"label", "sample_number", "sample_volume"}:
            assert torch.equal(one[name], other[name]), name
        for part in (layout.affinities, layout.valid, layout.lsd_mask):
            assert torch.equal(one["label"][part], other["label"][part])
        lsds = [sample["label"][layout.lsds] for sample in (one, other)]
        torch.testing.assert_close(*lsds, rtol=0, atol=0.5 / 255 + 1e-5)
        weights = [sample["label"][layout.weight] for sample in (one, other)]
        torch.testing.assert_close(*weights, rtol=1 / 2048, atol=0)
        assert not torch.all(weights[0] == 1)


def test_reading_targets_computes_none(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update(cache_dir)
    for name in ("affinity_part", "lsd_part", "weight_part"):
        monkeypatch.setattr(f"custom.transforms.{name}", None)
    assert crops(cache_dir)[3]["label"].shape == (SETTINGS.layout.num_targets, *CROP)


def test_targets_of_other_settings_or_none_are_refused(cache_dir: Path) -> None:
    with pytest.raises(InputError, match="volume 'cube0' has no targets in the cache: run python"):
        crops(cache_dir)
    update(cache_dir)
    with pytest.raises(InputError, match=r"'cube0' differ .* in lsd_sigma_nm \(6\.0, not 9\.0\)"):
        crops(cache_dir, lsd_sigma_nm=9.0)
    with pytest.raises(InputError, match=r"boundary_power \(1\.5, not 2\.0\)"):
        crops(cache_dir, boundary_power=2)
    assert len(crops(cache_dir, lsd_sigma_nm=9.0, cached=False)) == 12


def test_a_volume_without_labels_is_no_matter_of_targets(cache_dir: Path) -> None:
    """Updating targets would not help."""
    update(cache_dir)
    with pytest.raises(InputError, match="training volume 'cube1' has no labels"):
        volumes = open_cache(cache_dir)
        CropDataset(volumes, CROP, SETTINGS, 1, cached_targets=True)


@pytest.mark.parametrize("symmetry", ["auto", "box"])
def test_cached_targets_cannot_be_turned(cache_dir: Path, symmetry: str) -> None:
    update(cache_dir)
    with pytest.raises(RuntimeError) as caught:
        crops(cache_dir, symmetry)
    assert isinstance(caught.value.__cause__, InputError)
    assert f"cached_targets needs symmetry 'none', got '{symmetry}'" in str(caught.value.__cause__)


def test_a_word_is_no_switch(cache_dir: Path) -> None:
    with pytest.raises(InputError, match="cached_targets must be true or false, got 'false'"):
        crops(cache_dir, cached="false")  # type: ignore[arg-type]


def test_live_volumes_have_no_cached_targets(tmp_path: Path) -> None:
    np.save(tmp_path / "raw.npy", np.arange(24**3, dtype=np.uint16).reshape(24, 24, 24))
    size = {"raw": [8, 4, 5]}
    entry = {"id": "live", "raw": "raw.npy", "voxel_size_nm": size}
    (tmp_path / "datalist.json").write_text(json.dumps({"name": "x", "training": [entry]}))
    vit = {"model_type": "dinov3_vit", "hidden_size": 16, "intermediate_size": 16}
    vit |= {"num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
    volumes = live_volumes(str(tmp_path / "datalist.json"), "training", vit, {"window": 32})
    with pytest.raises(InputError, match="needs source 'cache': volume 'live' is not in a cache"):
        refuse_other_targets(volumes, SETTINGS)


def test_a_writer_of_other_settings_starts_anew(cache_dir: Path) -> None:
    files = VolumeFiles(cache_dir, 0)
    target, weights = np.ones((2, *SHAPE), np.uint8), np.ones(SHAPE, np.float16)
    TargetWriter(files, {"a": 1}, 2, SHAPE).write(Roi((0, 0, 0), SHAPE), target, weights)
    assert TargetWriter(files, {"a": 1}, 2, SHAPE).blocks_done == 1
    assert TargetWriter(files, {"a": 2}, 2, SHAPE).blocks_done == 0
