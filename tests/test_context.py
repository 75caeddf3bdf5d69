import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from custom.context import (
    CoarseVolume,
    VolumeContext,
    coarse_volume,
    coarsen,
    context_factor_of,
    contexts_of,
)
from custom.errors import InputError
from custom.features.cache import CachedVolume, open_cache
from custom.inferers import PrepareTokenBatch, TokenSlidingWindowInferer
from custom.live import live_volumes
from custom.networks.context import ContextFusion
from custom.networks.fusion import TokenUNet
from custom.networks.unet import UNet
from custom.pipeline import Pipeline
from custom.planes import NORMAL_AXIS, PLANES
from custom.preprocessing import Preprocessor
from custom.volume_datasets import CachedVolumeDataset
from tests.test_datasets import CROP, FEATURES, FINER, VIT, assert_same, crops, write_datalist
from tests.test_datasets import raw_dataset as from_raw

SHAPE = (40, 47, 58)
STEP = 125 / 36
FACTORS = [(2, 3, 4), (4, 4, 4), (1, 5, 3), (6, 1, 2)]
places = st.tuples(*[st.integers(-3, n - 5) for n in SHAPE])
sizes = st.tuples(*[st.integers(1, 9)] * 3)


def positions(count: Sequence[int], start: Sequence[float], step: Sequence[float]) -> Tensor:
    """Centres of the entries of a grid, (3, d, h, w)."""
    axes = [(torch.arange(n) + 0.5) * s + b for n, b, s in zip(count, start, step, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def ramps(planes: Sequence[str] = PLANES) -> tuple[Tensor, dict[str, Tensor]]:
    """Raw and tokens whose values are where they are: raw its z, tokens their z, y and x."""
    tokens = {}
    for plane in planes:
        normal = NORMAL_AXIS[plane]
        step = [1.0 if a == normal else STEP for a in range(3)]
        start = [0.0 if a == normal else -0.4 * STEP for a in range(3)]
        count = [n if a == normal else int(n / STEP) + 2 for a, n in enumerate(SHAPE)]
        tokens[f"tokens_{plane}"] = positions(count, start, step)[None]
        tokens[f"placement_{plane}"] = torch.tensor([[start, step]])
    return positions(SHAPE, (0, 0, 0), (1, 1, 1))[None, :1], tokens


IMAGE, TOKENS = ramps()
COARSE = {factor: coarse_volume(IMAGE, TOKENS, factor) for factor in FACTORS}


def claimed(sample: dict[str, Any], offset: Sequence[int], plane: str = "") -> Tensor:
    """Where the sample says that the voxels, or tokens of a plane, of the context lie."""
    start, step = sample["context_placement"]
    name = f"tokens_{plane}" if plane else "image"
    inner = sample[f"context_placement_{plane}"] if plane else torch.tensor([[0.0], [1.0]])
    inner = inner.expand(2, 3)
    origin = torch.tensor(offset) + start + inner[0] * step
    return positions(
        sample[f"context_{name}"].shape[1:], origin.tolist(), (inner[1] * step).tolist()
    )


def inside(found: Tensor, factor: Sequence[int], step: Sequence[float]) -> Tensor:
    """Entries whose whole blocks lie in the volume, where ramps stay ramps."""
    reach = torch.tensor([2 * f * s for f, s in zip(factor, step, strict=True)])[
        :, None, None, None
    ]
    far = torch.tensor(SHAPE)[:, None, None, None] - reach
    return ((found > reach) & (found < far)).all(0)


@settings(max_examples=40)
@given(places, sizes, st.sampled_from(FACTORS))
def test_everything_is_where_its_placement_says(
    offset: tuple[int, ...], shape: tuple[int, ...], factor: tuple[int, int, int]
) -> None:
    sample = COARSE[factor].around(offset, shape)
    assert sample["context_image"].shape == (1, *shape)
    where = claimed(sample, offset)
    seen = inside(where, factor, (1, 1, 1))
    torch.testing.assert_close(sample["context_image"][0][seen], where[0][seen], atol=1e-3, rtol=0)
    for plane in PLANES:
        where, values = claimed(sample, offset, plane), sample[f"context_tokens_{plane}"]
        step = [1.0 if a == NORMAL_AXIS[plane] else STEP for a in range(3)]
        seen = inside(where, factor, step)
        torch.testing.assert_close(values[:, seen], where[:, seen], atol=1e-3, rtol=0)


def test_some_ramps_are_seen() -> None:
    """The law above says something."""
    sample = COARSE[2, 3, 4].around((17, 20, 25), (8, 7, 6))
    for plane in ("", *PLANES):
        where = claimed(sample, (17, 20, 25), plane)
        assert inside(where, (2, 3, 4), (1, 1, 1)).sum() > 10, plane


@given(places, sizes, st.sampled_from(FACTORS))
def test_a_context_has_the_centre_of_its_crop_and_is_so_much_larger(
    offset: tuple[int, ...], shape: tuple[int, ...], factor: tuple[int, int, int]
) -> None:
    start, step = COARSE[factor].around(offset, shape)["context_placement"]
    assert step.tolist() == list(factor)
    size = torch.tensor(shape)
    away = start + step * size / 2 - size / 2
    assert (away.abs() <= step / 2).all()
    assert (start <= 0).all() and (start + step * size >= size).all(), "it holds its crop"


@given(places, st.sampled_from(FACTORS))
def test_contexts_of_crops_of_one_size_can_be_stacked(
    offset: tuple[int, ...], factor: tuple[int, int, int]
) -> None:
    found, first = (COARSE[factor].around(o, (7, 5, 6)) for o in (offset, (0, 0, 0)))
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in first.items()}


def test_a_constant_volume_has_a_constant_context_up_to_and_beyond_its_border() -> None:
    tokens = {
        name: torch.full_like(v, 0.25) if name.startswith("tokens") else v
        for name, v in TOKENS.items()
    }
    coarse = coarse_volume(torch.full_like(IMAGE, -0.5), tokens, (3, 4, 5))
    for offset in ((0, 0, 0), (34, 41, 50), (15, 20, 30)):
        sample = coarse.around(offset, (6, 6, 8))
        assert (sample["context_image"] == -0.5).all()
        assert all((sample[f"context_tokens_{p}"] == 0.25).all() for p in PLANES)


def test_beyond_the_volume_its_border_goes_on() -> None:
    """A crop in the corner: four coarse voxels of its context lie before the volume."""
    sample = CoarseVolume((2, 2, 2), torch.rand(1, 10, 10, 10), {}).around((0, 0, 0), (8, 8, 8))
    image, start = sample["context_image"][0], sample["context_placement"][0]
    assert start.tolist() == [-4, -4, -4]
    for axis in range(3):
        first = image.narrow(axis, 2, 1)
        for n in range(2):
            assert torch.equal(image.narrow(axis, n, 1), first)
        assert not torch.equal(image.narrow(axis, 3, 1), first)


@settings(max_examples=20)
@given(st.tuples(*[st.integers(1, 7)] * 3), st.tuples(*[st.integers(1, 4)] * 3))
def test_coarse_values_are_means_of_blocks_of_a_volume_that_goes_on(
    shape: tuple[int, ...], factor: tuple[int, ...]
) -> None:
    values = torch.rand(40, *shape, generator=torch.Generator().manual_seed(0))
    found = coarsen(values, factor)
    padded = np.pad(
        values.numpy(),
        [(0, 0), *((0, -n % f) for n, f in zip(shape, factor, strict=True))],
        mode="edge",
    )
    for i, j, k in np.ndindex(*found.shape[1:]):
        (a, b, c), (fa, fb, fc) = (i, j, k), factor
        block = padded[:, a * fa : (a + 1) * fa, b * fb : (b + 1) * fb, c * fc : (c + 1) * fc]
        np.testing.assert_allclose(found[:, i, j, k], block.mean((1, 2, 3)), atol=1e-6)


# --- training and inference ---


KINDS = {
    "tokens": FEATURES,
    "int8": {**FEATURES, "dtype": "int8"},
    "dense": {**FEATURES, "layout": "dense"},
    "finer": FINER,
}


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_datalist(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module", params=KINDS)
def cache_dir(
    request: pytest.FixtureRequest, datalist: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    features = KINDS[request.param]
    Preprocessor(datalist, folder, VIT, features, ("training",), show_progress=False).run()
    return folder


class Windows(nn.Module):
    """Notes what every window is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Tensor]] = []

    def forward(self, image: Tensor, **given: Tensor) -> Tensor:
        self.seen.append({"image": image[0]} | {name: v[0] for name, v in given.items()})
        return image


def windows_of(sample: dict[str, Any], factor: Any) -> list[dict[str, Tensor]]:
    batch = {
        name: value[None] if isinstance(value, Tensor) else [value]
        for name, value in sample.items()
    }
    inputs, _, _, tokens = PrepareTokenBatch(tokens_to_device=False)(batch)
    network = Windows()
    TokenSlidingWindowInferer(CROP, 0.4, context_factor=factor)(inputs, network, **tokens)
    return network.seen


def offset_of(window: Tensor, whole: Tensor) -> tuple[int, ...]:
    found = whole[0].unfold(0, CROP[0], 1).unfold(1, CROP[1], 1).unfold(2, CROP[2], 1)
    ((z, y, x),) = (found == window[0]).flatten(3).all(-1).nonzero().tolist()
    return z, y, x


def assert_windows_see(context: VolumeContext, sample: dict[str, Any], tolerance: float) -> None:
    """Every window of a volume has the context of the training's crop at its place."""
    windows = windows_of(sample, list(context.factor))
    assert len(windows) > 4
    for window in windows:
        expected = context.around(offset_of(window["image"], sample["image"]), CROP)
        assert expected.keys() == {name for name in window if name.startswith("context_")}
        for name, value in expected.items():
            torch.testing.assert_close(window[name], value, rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("factor", [(2, 3, 2), (4, 4, 4)], ids=str)
def test_a_window_has_the_context_of_a_training_crop_at_its_place(
    cache_dir: Path, factor: tuple[int, int, int]
) -> None:
    volume = open_cache(cache_dir, "training")[0]
    assert_windows_see(VolumeContext(volume, factor), CachedVolumeDataset([volume])[0], 1e-5)


def test_slabs_make_no_difference(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = open_cache(cache_dir, "training")[0]
    whole = VolumeContext(volume, (2, 3, 2)).around((3, 2, 1), CROP)
    monkeypatch.setattr("custom.context.SLAB", 1)
    assert_same(VolumeContext(volume, (2, 3, 2)).around((3, 2, 1), CROP), whole)


def test_raw_cache_and_features_on_the_fly_agree(datalist: Path, tmp_path: Path) -> None:
    Preprocessor(datalist, tmp_path, VIT, FEATURES, ("training",), show_progress=False).run()
    cached = VolumeContext(open_cache(tmp_path, "training")[0], (3, 2, 4))
    live = VolumeContext(live_volumes(str(datalist), "training", VIT, FEATURES)[0], (3, 2, 4))
    assert_windows_see(cached, from_raw(datalist)[0], 1e-2)
    one, other = (context.around((5, 1, 3), CROP) for context in (cached, live))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=1e-2, msg=name)


@pytest.fixture(scope="module")
def samples(datalist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crops")
    Preprocessor(datalist, folder, VIT, FEATURES, ("training",), show_progress=False).run()
    return folder


class TestCrops:
    """Contexts of training's samples."""

    def test_a_sample_has_its_context_and_is_otherwise_what_it_was(self, samples: Path) -> None:
        plain, found = crops(samples), crops(samples, context_factor=[2, 1, 3])
        for number in range(6):
            sample = found[number]
            context = {name: sample.pop(name) for name in list(sample) if "context" in name}
            assert_same(sample, plain[number])
            assert context["context_image"].shape == sample["image"].shape
            random = np.random.default_rng((found.seed, number))
            index, offset, _ = found._draw(random)
            assert_same(context, found.contexts[index].around(offset, CROP))

    def test_a_volume_is_read_once(self, samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        context = VolumeContext(open_cache(samples, "training")[0], (2, 2, 2))
        first = context.around((7, 6, 5), (3, 3, 3))  # wholly inside
        first["context_image"].zero_()
        for name in ("read_raw", "plane_grid"):
            monkeypatch.setattr(CachedVolume, name, None)
        found = pickle.loads(pickle.dumps(context)).around((7, 6, 5), (3, 3, 3))
        assert found["context_image"].any(), "a sample is the caller's own"
        first.pop("context_image"), found.pop("context_image")
        assert_same(found, first)

    def test_what_samples_leave_out_their_contexts_do_too(self, samples: Path) -> None:
        sample = crops(samples, use_tokens=False, context_factor=2)[0]
        names = {"context_image", "context_placement"}
        assert {name for name in sample if name.startswith("context")} == names
        assert not crops(samples, use_raw=False, context_factor=2)[0]["context_image"].any()
        wide = crops(samples, feature_dtype="float32", context_factor=2)[0]
        assert {wide[f"context_tokens_{p}"].dtype for p in PLANES} == {torch.float32}

    def test_a_context_larger_than_its_volume_is_told(
        self, samples: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        contexts_of(open_cache(samples, "training")[:1], [2, 1, 1], CROP)
        assert not caplog.text
        contexts_of(open_cache(samples, "training"), 3, CROP)
        assert "[18, 24, 21] voxels (crop_size times context_factor) is larger than" in caplog.text
        assert "'deep' [18, 15, 13] and 1 more: beyond a volume" in caplog.text

    def test_crops_that_are_deformed_have_no_context(self, samples: Path) -> None:
        given = {"use_tokens": False, "deformation": {"zoom": [0.9, 1.1]}}
        assert crops(samples, **given)[0]
        with pytest.raises(InputError, match="set deformation to null, or context_factor to null"):
            crops(samples, **given, context_factor=2)

    def test_a_factor_as_large_as_the_volume_is_refused(self, samples: Path) -> None:
        with pytest.raises(InputError, match="single voxel of an axis of volume 'grey' of shape"):
            crops(samples, context_factor=9)


def test_a_pipeline_sees_a_whole_volume_as_inference_does() -> None:
    torch.manual_seed(0)
    fusion = ContextFusion(1, (4, 6), (1, 2, 3))
    network = TokenUNet(UNet(1, 2, (4, 6)), 0, context=fusion).eval()
    raw = torch.randint(0, 256, (2, 1, 9, 10, 11))
    pipeline = Pipeline(network, (0, 255), context_factor=[1, 2, 3])
    windows = TokenSlidingWindowInferer((9, 10, 11), context_factor=[1, 2, 3])
    inference = Pipeline(network, (0, 255), inferer=windows)
    torch.testing.assert_close(pipeline.predict(raw), inference.predict(raw), rtol=0, atol=1e-6)
    assert pipeline.train()(raw).requires_grad


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, None), (4, (4, 4, 4)), ([1, 4, 2], (1, 4, 2)), ((2, 2, 2), (2, 2, 2))],
    ids=str,
)
def test_a_factor_is_one_number_three_or_none(value: Any, expected: Any) -> None:
    assert context_factor_of(value) == expected


@pytest.mark.parametrize("value", [0, -2, 2.0, 1.5, True, "4", [2, 2], [2, 0, 2], [2, 2.5, 2]])
def test_other_factors_are_refused(value: Any) -> None:
    with pytest.raises(InputError, match="context_factor must be"):
        context_factor_of(value)


@pytest.mark.parametrize("value", [1, [1, 1, 1]], ids=str)
def test_a_context_that_is_the_crop_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="context_factor 1 shows the crop once more"):
        context_factor_of(value)
