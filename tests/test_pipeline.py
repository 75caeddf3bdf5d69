from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from custom.errors import InputError
from custom.features.settings import load_backbone_and_spec
from custom.inferers import PrepareTokenBatch, TokenSlidingWindowInferer
from custom.networks.fusion import TokenUNet
from custom.networks.unet import UNet
from custom.pipeline import Pipeline
from custom.volume_datasets import RawVolumeDataset
from tests.test_datasets import FEATURES, VIT, write_datalist

BACKBONE = {**VIT, "seed": 0}
SETTINGS = {**FEATURES, "dtype": "float32", "precision": "float32"}
WINDOW = (20.0, 240.0)
SHAPE = (9, 14, 11)


def network(channels: int = 16, seed: int = 1, norm: str = "group") -> TokenUNet:
    torch.manual_seed(seed)
    inputs = 1 + (3 if channels else 0)
    return TokenUNet(UNet(inputs, 5, [4, 6], [[1, 2, 2]], norm=norm), channels, 3)


def pipeline(window: Any = WINDOW, settings: Any = SETTINGS, **changes: Any) -> Pipeline:
    backbone, spec = load_backbone_and_spec(BACKBONE, settings)
    return Pipeline(network(), window, backbone, spec, **changes)


def raw_only(**changes: Any) -> Pipeline:
    return Pipeline(network(0), WINDOW, **changes)


def noise(*shape: int, dtype: Any = np.uint8, seed: int = 0) -> torch.Tensor:
    values: NDArray[Any] = np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)
    return torch.from_numpy(values)


@pytest.mark.parametrize("layout", ["tokens", "dense"])
@pytest.mark.parametrize("windows", [(99, 99, 99), (6, 8, 7)])
def test_predictions_are_those_of_inference(
    tmp_path: Path, layout: str, windows: tuple[int, int, int]
) -> None:
    """Of raw of 8 and of 16 bits, in one window and in many."""
    settings = {**SETTINGS, "layout": layout}
    write_datalist(tmp_path)
    dataset = RawVolumeDataset(
        str(tmp_path / "datalist.json"), "training", BACKBONE, settings, region="volume"
    )
    inferer = TokenSlidingWindowInferer(windows, overlap=0.5)
    for index, name in enumerate(("deep", "grey")):
        item = dataset[index]
        batch = {k: v[None] for k, v in item.items() if isinstance(v, torch.Tensor)}
        image, _, _, features = PrepareTokenBatch()(batch)
        expected = inferer(image, network().eval(), **features)
        window = WINDOW
        if name == "deep":
            percentiles = dataset.percentiles
            low, high = np.percentile(np.load(tmp_path / "deep.npy"), percentiles)
            window = (float(low), float(high))
        raw = torch.from_numpy(np.load(tmp_path / f"{name}.npy"))[None, None]
        found = pipeline(window, settings, inferer=inferer).predict(raw)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert expected.std() > 0.01


def test_without_an_inferer_a_volume_is_predicted_at_once() -> None:
    raw, whole = noise(2, 1, *SHAPE), TokenSlidingWindowInferer(SHAPE)
    one, other = pipeline(), pipeline(inferer=whole)
    torch.testing.assert_close(one.predict(raw), other.predict(raw), rtol=0, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(one.eval()(raw).sigmoid(), one.predict(raw), rtol=0, atol=1e-6)


def test_volumes_of_a_batch_do_not_see_each_other() -> None:
    raw, whole = noise(3, 1, *SHAPE), pipeline().eval()
    with torch.no_grad():
        apart = torch.cat([whole(part[None]) for part in raw])
        torch.testing.assert_close(whole(raw), apart, rtol=0, atol=1e-5)
    assert (apart[0] - apart[1]).abs().max() > 1e-3


def test_features_count_and_raw_alone_needs_no_backbone() -> None:
    raw = noise(1, 1, *SHAPE)
    changed, same = pipeline(), pipeline()
    assert changed.network.fusion is not None
    with torch.no_grad():
        changed.network.fusion.project.weight.zero_()
    assert (changed.predict(raw) - same.predict(raw)).abs().max() > 1e-3
    image = (raw.float() - 20).clamp(0, 220) / 110 - 1
    expected = network(0).eval()(image).sigmoid()
    torch.testing.assert_close(raw_only().predict(raw), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
def test_grey_values_count_and_not_their_type(dtype: Any) -> None:
    expected = raw_only().predict(noise(1, 1, *SHAPE))
    found = raw_only().predict(noise(1, 1, *SHAPE, dtype=dtype))
    within = 0 if dtype == np.uint8 else 1e-2  # a cache keeps 256 steps of the window
    torch.testing.assert_close(found, expected, rtol=0, atol=within)


class TestSections:
    """The pipeline on sections."""

    def test_a_section_is_a_volume_of_one(self) -> None:
        flat = pipeline(settings={**SETTINGS, "planes": ["xy"]})
        raw = noise(2, 1, 14, 11)
        found = flat.predict(raw)
        assert found.shape == (2, 5, 14, 11)
        torch.testing.assert_close(found, flat.predict(raw[:, :, None])[:, :, 0], rtol=0, atol=0)
        assert flat(raw).shape == (2, 5, 14, 11)

    def test_an_inferer_takes_sections_too(self) -> None:
        settings = {**SETTINGS, "planes": ["xy"]}
        raw = noise(2, 1, 14, 11)
        one = pipeline(settings=settings, inferer=TokenSlidingWindowInferer((1, 99, 99)))
        torch.testing.assert_close(
            one.predict(raw), pipeline(settings=settings).predict(raw), rtol=0, atol=1e-5
        )

    def test_three_planes_need_a_volume(self) -> None:
        with pytest.raises(ValueError, match=r"of \['xy', 'xz', 'yz'\]: give volumes"):
            pipeline()(noise(1, 1, 14, 11))


class TestTraining:
    """What is trained, and what is kept."""

    def test_only_the_network_gets_gradients(self) -> None:
        whole = pipeline().train()
        whole(noise(2, 1, *SHAPE)).square().mean().backward()
        assert whole.backbone is not None and not whole.backbone.training
        assert all(p.grad is None and not p.requires_grad for p in whole.backbone.parameters())
        gradients = [p.grad for p in whole.network.parameters()]
        assert all(gradient is not None and gradient.any() for gradient in gradients)

    @pytest.mark.parametrize("inferer", [None, TokenSlidingWindowInferer((9, 9, 9))])
    def test_predicting_neither_trains_nor_ends_training(self, inferer: Any) -> None:
        whole = Pipeline(network(0, norm="batch"), WINDOW, inferer=inferer)
        raw = noise(1, 1, *SHAPE)
        expected = whole.eval().predict(raw)
        before = {name: value.clone() for name, value in whole.state_dict().items()}
        found = whole.train().predict(raw)
        assert whole.network.training and not found.requires_grad
        assert torch.equal(found, expected)
        assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())

    def test_a_state_dict_holds_the_network_alone(self) -> None:
        whole, other = pipeline(), pipeline()
        expected = {f"network.{name}" for name in network().state_dict()}
        assert set(whole.state_dict()) == expected
        for parameter in whole.network.parameters():
            parameter.data.add_(0.1)
        raw = noise(1, 1, *SHAPE)
        assert (whole.predict(raw) - other.predict(raw)).abs().max() > 1e-3
        other.load_state_dict(whole.state_dict())
        assert torch.equal(whole.predict(raw), other.predict(raw))

    def test_it_does_so_inside_another_module(self) -> None:
        nested = nn.Sequential(nn.Identity(), pipeline())
        state = nested.state_dict()
        assert all(name.startswith("1.network.") for name in state)
        nested.load_state_dict(state)
        with pytest.raises(RuntimeError, match="Missing key"):
            nested.load_state_dict(dict(list(state.items())[1:]))

    def test_the_backbone_is_kept_on_request(self) -> None:
        whole = pipeline(save_backbone=True)
        state = {name: value.clone() for name, value in whole.state_dict().items()}
        assert whole.backbone is not None
        held = [name for name in state if name.startswith("backbone.")]
        assert held == [f"backbone.{name}" for name in whole.backbone.state_dict()]
        for name in held:
            state[name] += 1
        whole.load_state_dict(state)
        assert torch.equal(whole.state_dict()[held[0]], state[held[0]])


@pytest.mark.parametrize("shape", [(2, *SHAPE), (1, 2, *SHAPE), SHAPE, (0, 1, *SHAPE)])
def test_raw_of_another_form_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"raw must be \(B, 1, D, H, W\) or \(B, 1, H, W\), got"):
        raw_only()(noise(*shape))


def test_raw_that_is_not_finite_is_refused() -> None:
    raw = noise(1, 1, *SHAPE, dtype=np.float32)
    raw[0, 0, 1, 2, 3] = torch.nan
    with pytest.raises(InputError, match="raw holds NaN or infinite values"):
        raw_only().predict(raw)


def test_parts_that_do_not_fit_are_refused() -> None:
    backbone, spec = load_backbone_and_spec(BACKBONE, SETTINGS)
    other, _ = load_backbone_and_spec({**BACKBONE, "seed": 1}, SETTINGS)
    with pytest.raises(ValueError, match="a backbone needs the spec"):
        Pipeline(network(), WINDOW, backbone)
    with pytest.raises(ValueError, match="the spec was made with another backbone"):
        Pipeline(network(), WINDOW, other, spec)
    with pytest.raises(ValueError, match=r"intensity_window must be \(low, high\), got \(3, 3\)"):
        Pipeline(network(0), (3, 3))
