"""The dense layout from preprocessing to samples: cached, live and from raw."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from funlib.geometry import Roi
from monai.data import DataLoader

from custom.augmentation import RandOrientationd, orient
from custom.cache_pictures import volume_sheet
from custom.datasets import CropDataset
from custom.errors import InputError
from custom.features.cache import CachedVolume, open_cache
from custom.features.cache_files import bytes_on_disk
from custom.features.cache_writer import VolumeWriter
from custom.features.extraction import extract_planes
from custom.features.settings import load_backbone_and_spec
from custom.features.triplane import average
from custom.inferers import PrepareTokenBatch, TokenSlidingWindowInferer
from custom.live import live_volumes
from custom.mirroring import mirror_tokens
from custom.networks.fusion import TokenFusion, TokenUNet
from custom.planes import PLANES, upsample_batch
from custom.preprocessing import Preprocessor
from custom.targets.settings import target_settings
from custom.volume_datasets import CachedVolumeDataset, RawVolumeDataset
from tests.features.guided import write_hub
from tests.test_datasets import (
    CROP,
    OFFSETS,
    ROI,
    SHAPE,
    SIGMA_NM,
    VIT,
    VOXEL_SIZE,
    write_datalist,
)

FLOAT32 = {"pixels_per_voxel": [1.0, 2.0, 1.15], "window": 32, "precision": "float32"}
BACKBONE = {**VIT, "seed": 0}
SECTIONS = ("training", "validation")
KINDS = ("linear", "guided", "int8")


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_datalist(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    hub = write_hub(tmp_path_factory.mktemp("hub"))
    dense = {**FLOAT32, "layout": "dense"}
    return {
        "tokens": FLOAT32,
        "linear": {**dense, "overlap": 8, "stride": 4, "slice_step": [2, 1, 1]},
        "guided": {**dense, "upsampler": hub},
        "int8": {**dense, "dtype": "int8", "planes": ["xy", "yz"]},
    }


@pytest.fixture(scope="module")
def caches(
    datalist: Path,
    settings: dict[str, dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("caches")
    for kind in KINDS:
        preprocess(datalist, folder / kind, settings[kind])
    return {kind: folder / kind for kind in KINDS}


def preprocess(datalist: Path, cache_dir: Path, features: dict[str, Any]) -> None:
    Preprocessor(datalist, cache_dir, BACKBONE, features, SECTIONS, show_progress=False).run()


def expected_features(datalist: Path, volume: CachedVolume, features: dict[str, Any]) -> Any:
    """The definition: the mean over the planes of the upsampled grids of the volume's ROI."""
    raw = np.load(datalist.parent / volume.metadata["entry"]["raw"].rpartition("/")[2])
    backbone, spec = load_backbone_and_spec(BACKBONE, {**features, "dtype": "float32"})
    roi = Roi(volume.metadata["roi"]["offset"], volume.shape)
    low, high = volume.metadata["intensity_window"]
    grids = extract_planes(
        lambda box: raw[box.to_slices()], SHAPE, roi, backbone, spec, (low, high)
    )
    return average(grids, volume.shape)


def crops(volumes: Any, **changes: Any) -> CropDataset:
    return CropDataset(volumes, CROP, target_settings(OFFSETS, SIGMA_NM), num_samples=4, **changes)


# --- preprocessing ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_holds_the_average_of_the_upsampled_planes(
    datalist: Path, caches: dict[str, Path], settings: dict[str, Any], kind: str
) -> None:
    for volume in open_cache(caches[kind]):
        found = volume.read_features().float()
        expected = expected_features(datalist, volume, settings[kind])
        within = 1e-3 * float(expected.abs().max())
        if kind == "int8":
            scales = torch.tensor(volume.metadata["arrays"]["features"]["scales"])
            within += float(scales.max()) / 2
        torch.testing.assert_close(found, expected, atol=within, rtol=0)
        assert expected.std() > 0.1
        assert not list(volume.path.glob("tokens_*")) + list(volume.path.glob("grid_*"))


def test_the_layouts_are_told_apart(
    datalist: Path, caches: dict[str, Path], settings: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=r"layout \(dense, not tokens\).*change .*features\.layou"):
        preprocess(datalist, caches["guided"], settings["tokens"])
    plain = {**settings["guided"], "upsampler": None}
    with pytest.raises(InputError, match=r"upsampler_digest \(.*change features\.upsampler\.$"):
        preprocess(datalist, caches["guided"], plain)


@pytest.mark.parametrize("kind", KINDS)
def test_the_space_asked_for_holds_the_grids_beside_the_features(
    datalist: Path, settings: dict[str, Any], kind: str, tmp_path: Path, monkeypatch: Any
) -> None:
    """The largest size that the volume has on its way is no more than what was asked for."""
    preprocessor = Preprocessor(
        datalist, tmp_path, BACKBONE, settings[kind], ("validation",), show_progress=False
    )
    _, spec = load_backbone_and_spec(BACKBONE, settings[kind])
    (job,) = preprocessor._jobs()
    write, largest = VolumeWriter._write, 0

    def measured(self: VolumeWriter, *args: Any) -> None:
        nonlocal largest
        write(self, *args)
        largest = max(largest, bytes_on_disk(self.files.arrays))

    monkeypatch.setattr(VolumeWriter, "_write", measured)
    preprocessor.run()
    headers = 20 * 700
    assert largest <= job.bytes_needed(spec) + headers
    assert job.bytes_needed(spec) < 4 * largest


# --- samples ---


@pytest.mark.parametrize("kind", KINDS)
def test_live_samples_are_those_of_the_cache(
    datalist: Path, caches: dict[str, Path], settings: dict[str, Any], kind: str
) -> None:
    cached = open_cache(caches[kind], "training")
    volumes = live_volumes(str(datalist), "training", BACKBONE, settings[kind])
    from_raw, from_cache = crops(list(volumes)), crops(cached)
    steps = [v.metadata["arrays"]["features"].get("scales", [0.0]) for v in cached]
    within = 4e-3 + max(max(scales) for scales in steps) / 2
    for number in range(4):
        one, other = from_raw[number], from_cache[number]
        assert one.keys() == other.keys() >= {"features", "token_steps", "image", "labels"}
        assert one["features"].shape == (16, *CROP)
        assert one["features"].dtype == other["features"].dtype == torch.float16
        assert torch.equal(one["token_steps"], other["token_steps"])
        torch.testing.assert_close(one["features"], other["features"], rtol=0, atol=within)


def test_features_have_the_dtype_asked_for(caches: dict[str, Path]) -> None:
    volumes = open_cache(caches["linear"], "training")
    stored, converted = (crops(volumes, feature_dtype=dtype)[1] for dtype in (None, "float32"))
    assert stored["features"].dtype == torch.float16
    assert converted["features"].dtype == torch.float32
    assert torch.equal(stored["features"].float(), converted["features"])
    assert torch.equal(stored["token_steps"], converted["token_steps"])


@pytest.mark.parametrize("kind", ["linear", "guided"])
def test_whole_volumes_from_raw_and_live_are_those_of_the_cache(
    datalist: Path, caches: dict[str, Path], settings: dict[str, Any], kind: str
) -> None:
    (item,) = CachedVolumeDataset(open_cache(caches[kind], "validation"))
    volumes = live_volumes(str(datalist), "validation", BACKBONE, settings[kind])
    (live,) = CachedVolumeDataset(list(volumes))
    (fresh,) = RawVolumeDataset(str(datalist), "validation", BACKBONE, settings[kind])
    for other in (live, fresh):
        assert item.keys() == other.keys()
        torch.testing.assert_close(other["features"], item["features"], rtol=0, atol=4e-3)
        assert torch.equal(other["image"], item["image"])
    bare = CachedVolumeDataset(open_cache(caches[kind], "validation"), use_tokens=False)[0]
    assert "features" not in bare


def test_linear_features_on_voxels_are_what_the_network_makes_of_tokens(
    datalist: Path, settings: dict[str, Any], caches: dict[str, Path], tmp_path: Path
) -> None:
    """From cache to the network's input, in float32."""
    linear = {**settings["linear"], "dtype": "float32"}
    preprocess(datalist, tmp_path / "dense", linear)
    preprocess(datalist, tmp_path / "tokens", {**linear, "layout": "tokens"})
    network = TokenUNet(torch.nn.Identity(), 16, 5)
    found = []
    for layout in ("dense", "tokens"):
        loader = DataLoader(crops(open_cache(tmp_path / layout, "training")), batch_size=2)
        image, _, _, given = PrepareTokenBatch()(next(iter(loader)))
        assert ("features" in given) == (layout == "dense")
        assert any(name.startswith("tokens") for name in given) == (layout == "tokens")
        found.append(network(image, **given))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-4)
    assert found[0][:, 1:].std() > 0.05


def test_the_projection_is_that_of_tokens() -> None:
    torch.manual_seed(0)
    shape, fusion = (5, 7, 6), TokenFusion(4, 3)
    tokens, placements, dense = {}, {}, torch.zeros(2, 4, *shape)
    for index, plane in enumerate(PLANES):
        count = [shape[a] if a == index else 4 for a in range(3)]
        step = [1.0 if a == index else 2.5 for a in range(3)]
        start = [0.0 if a == index else -1.25 for a in range(3)]
        tokens[plane] = torch.randn(2, 4, *count)
        placements[plane] = torch.tensor([[start, step]] * 2)
        dense += upsample_batch(tokens[plane], placements[plane], shape, plane) / 3
    expected = fusion(tokens, placements, shape)
    torch.testing.assert_close(fusion.project_dense(dense), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(fusion.project_dense(dense.half()), expected, rtol=0, atol=5e-3)


# --- on the way to the network ---


def planted(steps: Any = (2.0, 3.0, 2.5), planes: Any = PLANES) -> dict[Any, Any]:
    """Raw as its own features, beside the steps of their tokens."""
    image = torch.rand(1, 6, 7, 8, generator=torch.Generator().manual_seed(0))
    rows = [
        [1.0 if a == n else s for a, s in enumerate(steps)] if plane in planes else [0.0] * 3
        for n, plane in enumerate(PLANES)
    ]
    return {
        "image": image,
        "features": torch.cat([image, -image]).half(),
        "token_steps": torch.tensor(rows, dtype=torch.float64),
        "voxel_size_nm": torch.tensor([4.0, 4.0, 4.0]),
    }


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0), (2, 1, 0)], ids=str)
@pytest.mark.parametrize("flips", [(), (1,), (0, 2)], ids=str)
def test_features_are_turned_with_raw(axes: tuple[int, ...], flips: tuple[int, ...]) -> None:
    sample = planted()
    found = orient(sample, ("image",), axes, flips)
    assert torch.equal(found["features"][:1], found["image"].half())
    assert found["features"].is_contiguous()
    assert (found["features"].shape[1:] != sample["features"].shape[1:]) == (axes != (0, 1, 2))
    assert torch.equal(sample["features"][1:], -sample["image"].half()), "its argument is left"


@pytest.mark.parametrize(
    ("steps", "planes", "count"),
    [
        ((2.0, 2.0, 2.0), PLANES, 48),
        ((3.0, 2.0, 2.0), PLANES, 16),
        ((2.0, 2.0, 2.0), ("xy",), 16),
        ((1.0, 2.0, 3.0), PLANES, 8),
        ((2.0, 2.0, 2.0), ("xy", "xz"), 16),
    ],
)
def test_features_keep_the_planes_and_steps_that_they_were_made_of(
    steps: tuple[float, ...], planes: tuple[str, ...], count: int
) -> None:
    sample = planted(steps, planes)
    sample["image"], sample["features"] = torch.arange(8.0).reshape(1, 2, 2, 2), torch.ones(1)
    sample["features"] = sample["image"].half()
    transform = RandOrientationd(("image",)).set_random_state(0)
    drawn = [transform(sample) for _ in range(12 * count + 100)]
    assert len({tuple(d["image"].ravel().tolist()) for d in drawn}) == count
    assert all(torch.equal(d["image"].half(), d["features"]) for d in drawn)
    if count < 48:
        with pytest.raises(InputError, match="symmetry 'cube' swaps axes"):
            RandOrientationd(("image",), "cube")(sample)


class Echo(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_windows_of_features_blend_to_the_whole_volume() -> None:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(1, 1, 9, 20, 11, generator=generator)
    features = torch.randn(1, 2, 9, 20, 11, generator=generator)
    network = TokenUNet(Echo(), 2, 2)
    torch.nn.init.eye_(network.fusion.project.weight)
    torch.nn.init.zeros_(network.fusion.project.bias)
    batch = {"image": image, "features": features}
    inputs, _, args, given = PrepareTokenBatch(tokens_to_device=False)(batch)
    for windows in (1, 3):
        inferer = TokenSlidingWindowInferer((4, 8, 7), 0.25, windows)
        found = inferer(inputs, network, *args, **given)
        expected = torch.cat([image, features], 1).sigmoid()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_mirrored_windows_see_mirrored_features() -> None:
    """The second channel is no affinity: mirrored back, it is what it was."""
    features = torch.randn(1, 2, 5, 8, 7, generator=torch.Generator().manual_seed(1))
    image = torch.zeros(1, 1, 5, 8, 7)
    inferer = TokenSlidingWindowInferer((4, 8, 7), mirror=True, affinity_offsets=[(1, 0, 0)])
    found = inferer(image, lambda windows, **tokens: tokens["features"], features=features)
    torch.testing.assert_close(found[:, 1], features[:, 1].sigmoid(), rtol=0, atol=1e-5)


def test_features_are_mirrored_with_the_window() -> None:
    features = torch.randn(2, 3, 4, 5, 6)
    found = mirror_tokens({"features": features}, (0, 2), (4, 5, 6))
    assert torch.equal(found["features"], features.flip([2, 4]))
    assert set(found) == {"features"}


# --- looking ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_shows_every_voxels_features(caches: dict[str, Path], kind: str) -> None:
    volume = open_cache(caches[kind], "training")[0]
    sheet = volume_sheet(volume)
    width = sheet.shape[1] // 3
    spread = np.ptp(sheet[:, width : 2 * width].astype(int), axis=2) > 30
    thirds = np.array_split(spread, 3)
    assert min(third.mean() for third in thirds) > 0.2, "of all planes, cached or not"


def test_metadata_says_what_there_is(caches: dict[str, Path]) -> None:
    metadata = open_cache(caches["guided"], ids=["deep"])[0].metadata
    assert metadata["arrays"]["features"]["shape"] == [16, *ROI["shape"]]
    assert metadata["features"]["layout"] == "dense"
    assert len(metadata["features"]["upsampler_digest"]) == 16
    assert metadata["voxel_size_nm"] == VOXEL_SIZE
    assert json.loads(json.dumps(metadata)) == metadata
