import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from funlib.geometry import Roi
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import center_of_mass, map_coordinates

from custom import warp
from custom.datalist import open_entry, parse_datalist
from custom.datasets import CropDataset
from custom.deformation import Deformation, RandDeformation
from custom.errors import InputError
from custom.features.cache import CachedVolume, open_cache
from custom.features.triplane import upsample
from custom.live import LiveVolume, live_volumes
from custom.planes import PLANES
from custom.preprocessing import Preprocessor
from custom.samples import image_tensor
from custom.targets.halo import target_halo
from custom.targets.settings import target_settings
from custom.transforms import LabelsToTargetsd
from custom.warp import WarpedVolume, refuse_undeformable
from tests import test_finer_raw as finer
from tests.features.test_extraction import WINDOW, PatchMeans, spec_of
from tests.test_datasets import CROP, FEATURES, TARGETS, VIT, assert_same, write_datalist

Box = tuple[tuple[int, int, int], tuple[int, int, int]]

SHAPE = (14, 24, 30)
VOXEL_SIZE = (20.0, 10.0, 8.0)
LARGE = 2**40 + 3
RAND = RandDeformation(40.0, 150.0, [0.7, 1.5], zoom_per_axis=True)


@dataclass
class ArrayVolume:
    """A volume of arrays in memory, without features; notes which boxes are read."""

    raw: NDArray[np.uint8]
    labels: NDArray[Any]
    mask: NDArray[np.bool_]
    read: list[Roi] = field(default_factory=list)
    id, spec, basis, metadata = "arrays", None, None, {}
    voxel_size_nm, offset_nm, raw_window, has_labels = VOXEL_SIZE, (0, 0, 0), (0, 255), True

    @property
    def shape(self) -> tuple[int, ...]:
        return self.raw.shape

    def read_raw(self, roi: Roi) -> NDArray[np.uint8]:
        return self._box(self.raw, roi)

    def read_labels(self, roi: Roi) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        return self._box(self.labels, roi), self._box(self.mask, roi)

    def _box(self, values: NDArray[Any], roi: Roi) -> NDArray[Any]:
        self.read.append(roi)
        part = roi.intersect(Roi((0, 0, 0), self.shape))
        result = np.zeros(tuple(roi.shape), values.dtype)
        result[(part - roi.offset).to_slices()] = values[part.to_slices()]
        return result


def volume_of(labels: NDArray[Any], seed: int = 0) -> ArrayVolume:
    """Noise beside labels."""
    rng = np.random.default_rng(seed)
    return ArrayVolume(rng.integers(1, 256, SHAPE, np.uint8), labels, rng.random(SHAPE) < 0.8)


def noise(dtype: Any = np.uint64) -> ArrayVolume:
    large = (2**24 + 1, 2**32 + 1, LARGE, LARGE + 1, 2**63 + 5, 2**63 + 6)
    ids = np.array([0, 1, *large], np.uint64).astype(dtype)
    return volume_of(ids[np.random.default_rng(1).integers(0, len(ids), SHAPE)])


def drawn(seed: int, rand: RandDeformation = RAND, roi: Roi | None = None) -> Deformation:
    rand.set_random_state(seed=seed)
    return rand.draw(roi or Roi((2, 3, 4), (10, 16, 20)), VOXEL_SIZE)


def still(zoom: tuple[float, float, float], centre: tuple[float, float, float]) -> Deformation:
    return Deformation(VOXEL_SIZE, centre, zoom, 100.0, np.zeros((3, 1, 1, 1)))


BOXES = st.tuples(
    st.tuples(*[st.integers(-3, n - 1) for n in SHAPE]), st.tuples(*[st.integers(1, 9)] * 3)
)


def ball(centre: Any, radius_nm: float) -> NDArray[np.bool_]:
    grid = np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij")
    parts = zip(grid, centre, VOXEL_SIZE, strict=True)
    return sum(((g - c) * v) ** 2 for g, c, v in parts) <= radius_nm**2


class TestRawAndLabels:
    """What is read of a deformed volume."""

    @given(BOXES, st.tuples(*[st.floats(-5, 40)] * 3))
    def test_without_zoom_and_displacement_a_volume_is_exactly_itself(
        self, box: Box, centre: tuple[float, float, float]
    ) -> None:
        volume, roi = noise(), Roi(*box)
        same = WarpedVolume(volume, still((1.0, 1.0, 1.0), centre))  # type: ignore[arg-type]
        np.testing.assert_array_equal(same.read_raw(roi), volume.read_raw(roi))
        for one, other in zip(same.read_labels(roi), volume.read_labels(roi), strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype

    @given(BOXES, st.integers(0, 50), st.sampled_from([2**21, 100]))
    def test_a_voxel_is_the_same_in_every_box(self, box: Box, seed: int, at_once: int) -> None:
        deformed = WarpedVolume(noise(), drawn(seed))  # type: ignore[arg-type]
        all_of_it = Roi((-3, -3, -3), [n + 12 for n in SHAPE])
        roi = Roi(*box)
        inside = (roi - all_of_it.offset).to_slices()
        raw, (labels, mask) = deformed.read_raw(all_of_it), deformed.read_labels(all_of_it)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(warp, "VOXELS_AT_ONCE", at_once)
            np.testing.assert_array_equal(deformed.read_raw(roi), raw[inside])
            found = deformed.read_labels(roi)
        np.testing.assert_array_equal(found[0], labels[inside])
        np.testing.assert_array_equal(found[1], mask[inside])

    @pytest.mark.parametrize("dtype", [np.uint64, np.int64, np.uint32, np.uint8])
    @given(seed=st.integers(0, 50))
    def test_ids_are_those_of_the_volume_in_its_type(self, dtype: Any, seed: int) -> None:
        volume = noise(dtype)
        labels, _ = WarpedVolume(volume, drawn(seed)).read_labels(  # type: ignore[arg-type]
            Roi((0, 0, 0), SHAPE)
        )
        assert labels.dtype == dtype
        assert set(np.unique(labels)) <= set(np.unique(volume.labels))
        assert len(np.unique(labels)) > 2

    @given(st.integers(0, 50))
    def test_nothing_counts_that_comes_from_outside(self, seed: int) -> None:
        volume, deformation, roi = noise(), drawn(seed), Roi((-4, -4, -4), [n + 8 for n in SHAPE])
        volume.mask[:] = True
        along = [np.arange(b, e, dtype=float) for b, e in zip(roi.begin, roi.end, strict=True)]
        sources = np.stack(np.meshgrid(*along, indexing="ij")) + deformation.shifts(along)
        ends = np.reshape(SHAPE, (3, 1, 1, 1)) - 0.5
        labels, mask = WarpedVolume(volume, deformation).read_labels(roi)  # type: ignore[arg-type]
        near = np.abs(np.stack([sources + 0.5, sources - ends])).min((0, 1)) < 1e-4
        np.testing.assert_array_equal(
            mask | near, ((sources > -0.5) & (sources < ends)).all(0) | near
        )
        assert not labels[~mask].any() and not mask.all()

    @given(st.integers(0, 50))
    def test_a_blob_stays_on_itself_in_raw_labels_and_mask(self, seed: int) -> None:
        centre = (6.4, 11.3, 15.8)
        inside = ball(centre, 45.0)
        volume = ArrayVolume(inside * np.uint8(200), inside * np.uint64(LARGE), inside)
        deformation = drawn(seed)
        deformed = WarpedVolume(volume, deformation)  # type: ignore[arg-type]
        whole = Roi((0, 0, 0), SHAPE)
        raw, (labels, mask) = deformed.read_raw(whole), deformed.read_labels(whole)
        np.testing.assert_array_equal(mask, labels == LARGE)
        place = np.array(center_of_mass(raw))
        np.testing.assert_allclose(place, center_of_mass(mask), atol=0.5)
        source = place + deformation.shifts([np.array([p]) for p in place])[:, 0, 0, 0]
        np.testing.assert_allclose(source, center_of_mass(inside), atol=1.0)  # the blob bends
        assert np.abs(place - center_of_mass(inside)).max() > 0.05

    def test_a_zoom_of_two_about_a_landmark_doubles_it_in_place(self) -> None:
        centre = (6.0, 12.0, 15.0)
        inside = ball(centre, 45.0)
        volume = ArrayVolume(inside * np.uint8(200), inside * np.uint64(LARGE), inside)
        deformed = WarpedVolume(volume, still((2.0, 2.0, 2.0), centre))  # type: ignore[arg-type]
        labels, _ = deformed.read_labels(Roi((0, 0, 0), SHAPE))
        grid = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"))
        z, y, x = np.rint((grid + np.reshape(centre, (3, 1, 1, 1))) / 2).astype(int)
        np.testing.assert_array_equal(labels != 0, inside[z, y, x])
        raw = deformed.read_raw(Roi((0, 0, 0), SHAPE))
        np.testing.assert_allclose(center_of_mass(raw), centre, atol=1e-6)
        assert raw.sum() == pytest.approx(8 * volume.raw.sum(), rel=0.1)

    def test_raw_is_interpolated_linearly_and_rounded_once(self) -> None:
        volume = noise()
        moved = np.broadcast_to(np.reshape([5.0, -2.5, 2.0], (3, 1, 1, 1)), (3, 1, 1, 1))
        deformation = Deformation(VOXEL_SIZE, (0, 0, 0), (1, 1, 1), 100.0, moved.copy())
        deformed = WarpedVolume(volume, deformation)  # type: ignore[arg-type]
        raw = volume.raw.astype(float)
        for axis, share in enumerate((0.25, -0.25, 0.25)):
            raw = (1 - abs(share)) * raw + abs(share) * np.roll(raw, -int(np.sign(share)), axis)
        np.testing.assert_array_equal(
            deformed.read_raw(Roi((1, 1, 1), (10, 20, 25))), np.rint(raw)[1:11, 1:21, 1:26]
        )

    @given(BOXES, st.integers(0, 50))
    def test_only_what_a_box_is_made_of_is_read(self, box: Box, seed: int) -> None:
        volume, roi = noise(), Roi(*box)
        rand = RandDeformation(40.0, 150.0, [1.0, 1.3])
        deformed = WarpedVolume(volume, drawn(seed, rand, roi))  # type: ignore[arg-type]
        deformed.read_raw(roi)
        deformed.read_labels(roi)
        reach = [int(np.ceil(40 / size)) + 1 for size in VOXEL_SIZE]
        assert all(roi.grow(reach, reach).contains(read) for read in volume.read)

    def test_all_else_is_the_sources(self) -> None:
        volume = noise()
        deformed = WarpedVolume(volume, drawn(0))  # type: ignore[arg-type]
        names = ("id", "shape", "spec", "basis", "metadata", "voxel_size_nm", "offset_nm")
        for name in (*names, "raw_window", "has_labels"):
            assert getattr(deformed, name) == getattr(volume, name)
        for extract in (lambda: deformed.plane_grid("xy"), deformed.read_features):
            with pytest.raises(ValueError, match="volume 'arrays' are extracted already"):
                extract()


def live_of(path: Path, stride: int = 1) -> LiveVolume:
    """The one entry of a datalist, features as bright as its patches."""
    backbone = PatchMeans()
    spec = spec_of(backbone, pixels_per_voxel=(2.0, 1.5, 3.0), stride=stride, window=32)
    features: Any = SimpleNamespace(backbone=backbone, spec=spec, windows_at_once=None)
    (entry,) = parse_datalist(path).section("training")
    return LiveVolume(open_entry(entry), features, WINDOW)


def ball_and_noise(folder: Path, noise: float) -> tuple[Path, NDArray[Any]]:
    """Raw of fine voxels, whose ball is labelled in coarse ones and lies off the ROI's centre."""
    folder.mkdir(exist_ok=True)
    fine = 30 + 160 * finer.blob(finer.RAW_SHAPE, finer.FINE, (0, 0, 0))
    fine += np.random.default_rng(0).normal(scale=noise, size=fine.shape)
    raw = fine.clip(0).astype(np.uint16)
    corner = np.multiply(finer.START, finer.COARSE)
    labels = finer.blob(finer.LABEL_SHAPE, finer.COARSE, corner) > 0.3
    entry = {
        "id": "ball",
        "raw": finer.write(folder, "raw", raw, finer.FINE, (0, 0, 0)),
        "labels": finer.write(folder, "labels", labels * np.uint64(LARGE), finer.COARSE, corner),
        "roi": {"offset": [1, 0, 2], "shape": [7, 14, 11]},
    }
    path = folder / "datalist.json"
    path.write_text(json.dumps({"name": "ball", "training": [entry]}))
    return path, raw


def bent(volume: LiveVolume, seed: int) -> Deformation:
    rand = RandDeformation(8.0, 40.0, [0.8, 1.25], zoom_per_axis=True)
    rand.set_random_state(seed=seed)
    return rand.draw(Roi((1, 2, 1), (5, 9, 9)), volume.voxel_size_nm)


def centre_of(values: NDArray[Any]) -> NDArray[np.float64]:
    """Centre of mass of what is brighter than half of the brightest."""
    over = np.clip(values - (values.min() + values.max()) / 2, 0, None)
    return np.array(center_of_mass(over))


class TestFeatures:
    """Features of deformed raw."""

    def test_without_zoom_and_displacement_they_are_exactly_the_volumes(
        self, tmp_path: Path
    ) -> None:
        datalist = write_datalist(tmp_path)
        for volume in live_volumes(str(datalist), "training", {**VIT, "seed": 0}, FEATURES):
            deformation = still((1.0, 1.0, 1.0), (3.3, 1.0, 0.1))
            same, roi = WarpedVolume(volume, deformation), Roi((1, 0, 2), (5, 8, 7))
            for plane in PLANES:
                for box in (None, roi):
                    one, other = same.plane_grid(plane, box), volume.plane_grid(plane, box)
                    assert torch.equal(one.values, other.values)
                    assert (one.start, one.step) == (other.start, other.step)
            assert torch.equal(same.read_features(roi), volume.read_features(roi))

    @pytest.mark.parametrize("seed", range(3))
    def test_they_are_those_of_a_file_that_holds_the_deformed_raw(
        self, tmp_path: Path, seed: int
    ) -> None:
        path, raw = ball_and_noise(tmp_path, noise=20.0)
        volume = live_of(path, stride=2)
        deformation = bent(volume, seed)
        nm = [(np.arange(n) + 0.5) * s for n, s in zip(raw.shape, finer.FINE, strict=True)]
        first = np.add(volume.opened.roi.offset, 0.5) * finer.COARSE  # centre of the ROI's first
        places = [(p - f) / s for p, f, s in zip(nm, first, finer.COARSE, strict=True)]
        ratios = np.reshape(np.divide(finer.COARSE, finer.FINE), (3, 1, 1, 1))
        moved = np.indices(raw.shape) + deformation.shifts(places) * ratios
        changed = map_coordinates(raw.astype(float), moved, order=1, mode="mirror")
        (tmp_path / "other").mkdir()
        entry = json.loads(path.read_text())["training"][0]
        name = finer.write(tmp_path / "other", "raw", changed.astype("f4"), finer.FINE, (0, 0, 0))
        entry |= {"raw": f"other/{name}"}
        other = tmp_path / "other.json"
        other.write_text(json.dumps({"name": "other", "training": [entry]}))
        roi = Roi((1, 2, 1), (5, 9, 9))
        for plane in PLANES:
            found = WarpedVolume(volume, deformation).plane_grid(plane, roi)
            expected = live_of(other, stride=2).plane_grid(plane, roi)
            torch.testing.assert_close(found.values, expected.values, rtol=0, atol=1e-4)
            assert found.start == expected.start
            undeformed = volume.plane_grid(plane, roi).values
            assert (found.values - undeformed)[0].abs().mean() > 0.05

    def test_raw_of_a_file_is_the_same_in_every_box_to_the_last_bit(self, tmp_path: Path) -> None:
        np.save(tmp_path / "raw.npy", np.random.default_rng(0).normal(size=(13, 19, 17)))
        entry = {"id": "noise", "raw": "raw.npy", "voxel_size_nm": {"raw": VOXEL_SIZE}}
        path = tmp_path / "datalist.json"
        path.write_text(json.dumps({"name": "noise", "training": [entry]}))
        volume = live_of(path)
        for seed in range(5):
            deformed = WarpedVolume(volume, drawn(seed))
            whole = deformed._read_file(Roi((0, 0, 0), volume.shape))
            for first in ((0, 0, 0), (4, 2, 9), (1, 7, 3)):
                roi = Roi(first, (5, 6, 7))
                np.testing.assert_array_equal(deformed._read_file(roi), whole[roi.to_slices()])

    @pytest.mark.parametrize("seed", range(6))
    def test_a_blob_stays_on_itself_in_raw_labels_and_features(
        self, tmp_path: Path, seed: int
    ) -> None:
        volume = live_of(ball_and_noise(tmp_path, noise=0.0)[0])
        deformed = WarpedVolume(volume, bent(volume, seed))
        whole = Roi((0, 0, 0), volume.shape)
        place = centre_of(deformed.read_raw(whole).astype(float))
        labels, _ = deformed.read_labels(whole)
        np.testing.assert_allclose(center_of_mass(labels != 0), place, atol=0.5)
        for plane in PLANES:
            values = upsample(deformed.plane_grid(plane, whole), volume.shape, plane)[0].numpy()
            np.testing.assert_allclose(centre_of(values), place, atol=0.5)
        assert np.abs(place - centre_of(volume.read_raw(whole).astype(float))).max() > 0.05


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_datalist(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def live(datalist: Path) -> list[LiveVolume]:
    return list(live_volumes(str(datalist), "training", {**VIT, "seed": 0}, FEATURES))


@pytest.fixture(scope="module")
def cached(datalist: Path, tmp_path_factory: pytest.TempPathFactory) -> list[CachedVolume]:
    folder = tmp_path_factory.mktemp("cache")
    Preprocessor(datalist, folder, VIT, FEATURES, ("training",), show_progress=False).run()
    return open_cache(folder, "training")


def crops(volumes: Any, **changes: Any) -> CropDataset:
    settings = {"elastic_nm": 8.0, "spacing_nm": 32.0, "zoom": [0.9, 1.2], "prob": 0.5}
    given: dict[str, Any] = {
        "deformation": settings,
        "num_samples": 6,
        "seed": 3,
        "targets": TARGETS,
        **changes,
    }
    return CropDataset(volumes, CROP, **given)


class TestSamples:
    """Deformed crops of a training."""

    def test_numbers_and_seeds_decide(self, live: list[LiveVolume]) -> None:
        one, other = crops(live), crops(live)
        for number in (5, 0, 3):
            assert_same(one[number], other[number])

    def test_a_deformed_sample_is_a_crop_of_one_deformed_volume(
        self, live: list[LiveVolume]
    ) -> None:
        dataset = crops(live, deformation={"zoom": [1.5, 1.5]})
        halo = target_halo(TARGETS, live[0].voxel_size_nm)
        for number in range(4):
            index, offset, truth = dataset._draw(np.random.default_rng((3, number)))
            sample, roi, volume = dataset[number], Roi(offset, CROP), truth.volume
            assert isinstance(volume, WarpedVolume) and volume.source is dataset.volumes[index]
            centre = [o + (n - 1) / 2 for o, n in zip(offset, CROP, strict=True)]
            assert volume.deformation.centre == tuple(centre)
            labels, mask = volume.read_labels(roi.grow(halo, halo))
            np.testing.assert_array_equal(sample["labels"][0], labels.astype(np.int64))
            np.testing.assert_array_equal(sample["mask"][0], mask)
            image = image_tensor(volume.read_raw(roi), volume.raw_window)
            assert torch.equal(sample["image"], image)
            for plane in PLANES:
                grid = volume.plane_grid(plane, roi)
                assert torch.equal(sample[f"tokens_{plane}"], grid.values)
                assert torch.equal(sample[f"placement_{plane}"], grid.placement)

    def test_the_probability_is_that_of_a_sample_to_be_deformed(
        self, cached: list[CachedVolume]
    ) -> None:
        dataset = crops(cached, use_tokens=False)
        drawn = [dataset._draw(np.random.default_rng((3, n)))[2].volume for n in range(400)]
        share = np.mean([isinstance(volume, WarpedVolume) for volume in drawn])
        assert share == pytest.approx(0.5, abs=0.07)

    def test_crops_have_enough_labels_after_the_deformation(
        self, cached: list[CachedVolume]
    ) -> None:
        dataset = crops(cached, use_tokens=False, min_labelled=0.75, deformation={"zoom": [0.7, 1]})
        for number in range(30):
            mask = dataset[number]["mask"][0].numpy()
            inner = [
                slice((n - c) // 2, (n - c) // 2 + c) for n, c in zip(mask.shape, CROP, strict=True)
            ]
            assert mask[tuple(inner)].mean() >= 0.75

    def test_raw_only_samples_of_a_cache_are_those_of_its_sources(
        self, live: list[LiveVolume], cached: list[CachedVolume]
    ) -> None:
        one, other = (crops(volumes, use_tokens=False) for volumes in (live, cached))
        for number in range(6):
            assert_same(one[number], other[number])

    def test_without_a_deformation_samples_are_as_ever(self, live: list[LiveVolume]) -> None:
        plain = CropDataset(live, CROP, TARGETS, num_samples=2, seed=3)
        assert_same(plain[1], crops(live, deformation=None)[1])

    def test_targets_are_those_of_the_deformed_labels(self, live: list[LiveVolume]) -> None:
        """Objects that fill a cube of edge n fill one of about 2 n, so more affinities are 1."""
        targets = target_settings([(0, 0, 1)], None)
        given: Any = {"targets": targets, "transform": LabelsToTargetsd(targets)}
        samples = [
            crops(live, use_tokens=False, deformation=zoom, **given)[1]
            for zoom in ({"zoom": [3.0, 3.0]}, None)
        ]
        shares = [sample["label"][0].mean() for sample in samples]
        assert shares[0] > 1.5 * shares[1]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({}, "deformation needs features of the deformed raw.*set source to 'raw', or token"),
            ({"deformation": {"zoom": [1, 2], "prop": 1}}, "has the unknown key 'prop'; did you"),
        ],
    )
    def test_mistakes_speak_before_any_worker_starts(
        self, cached: list[CachedVolume], changes: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            crops(cached, **changes)

    def test_targets_of_a_cache_cannot_be_deformed(self, cached: list[CachedVolume]) -> None:
        with pytest.raises(InputError, match="set cached_targets to false, or deformation to null"):
            refuse_undeformable(cached, RAND, use_tokens=False, cached_targets=True)

    def test_a_single_section_cannot_leave_its_plane(self) -> None:
        volume: Any = volume_of(np.ones(SHAPE, np.uint32))
        volume.raw = volume.raw[:1]
        with pytest.raises(InputError, match=r"'arrays' is a single section, .*in_plane to true"):
            refuse_undeformable([volume], RAND, use_tokens=False, cached_targets=False)
        for allowed in (RandDeformation(zoom=[0.8, 1]), RandDeformation(9, 50, in_plane=True)):
            refuse_undeformable([volume], allowed, use_tokens=False, cached_targets=False)
