from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from torch import Tensor, nn

from custom.channels import ChannelLayout
from custom.errors import InputError
from custom.features.triplane import PlaneGrid, average
from custom.inferers import CropInferer, PrepareTokenBatch, TokenSlidingWindowInferer
from custom.networks.fusion import TokenUNet
from custom.planes import NORMAL_AXIS, PLANES

STEP = 125 / 18


class Echo(nn.Module):
    """Its input, to see what the inner network gets."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def volume(shape, channels=2, dtype=torch.float32):
    """A batch of one volume as a data loader gives it: raw, and tokens around a ROI."""
    generator = torch.Generator().manual_seed(0)
    batch = {"image": torch.rand(1, 1, *shape, generator=generator) * 2 - 1}
    for plane in PLANES:
        normal = NORMAL_AXIS[plane]
        step = [1.0 if a == normal else STEP for a in range(3)]
        start = [0.0 if a == normal else -0.4 * STEP for a in range(3)]
        count = [n if a == normal else int(n / STEP) + 2 for a, n in enumerate(shape)]
        batch[f"tokens_{plane}"] = torch.randn(1, channels, *count, generator=generator).to(dtype)
        batch[f"placement_{plane}"] = torch.tensor([[start, step]])
    return batch


def fused(batch):
    """The mean of the upsampled planes over the whole volume."""
    grids = {
        p: PlaneGrid.placed(batch[f"tokens_{p}"][0], batch[f"placement_{p}"][0]) for p in PLANES
    }
    return average(grids, batch["image"].shape[2:])[None]


def echo(channels=2):
    """A network that returns raw and the mean of the upsampled tokens."""
    network = TokenUNet(Echo(), channels, channels)
    nn.init.eye_(network.fusion.project.weight)
    nn.init.zeros_(network.fusion.project.bias)
    return network.eval()


@settings(max_examples=12)
@given(
    st.tuples(*[st.integers(3, 25)] * 3),
    st.tuples(*[st.integers(4, 14)] * 3),
    st.sampled_from([0.0, 0.25, 0.6]),
    st.sampled_from([1, 3]),
)
def test_windows_blend_to_what_the_whole_volume_gives(shape, roi_size, overlap, windows):
    batch = volume(shape)
    inputs, _, args, tokens = PrepareTokenBatch()(batch)
    found = TokenSlidingWindowInferer(roi_size, overlap, windows)(inputs, echo(), *args, **tokens)
    expected = torch.cat([batch["image"], fused(batch)], 1).sigmoid()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_every_window_sees_its_own_place():
    shape, seen = (6, 20, 9), []

    def network(windows, **tokens):
        seen.append((windows.shape, {k: v.shape[0] for k, v in tokens.items()}))
        return windows

    batch = volume(shape)
    inputs, _, _, tokens = PrepareTokenBatch()(batch)
    TokenSlidingWindowInferer((8, 8, 8), 0.25, sw_batch_size=2)(inputs, network, **tokens)
    assert {tuple(shape[2:]) for shape, _ in seen} == {(6, 8, 8)}, "no larger than the volume"
    assert all(set(sizes.values()) == {shape[0]} for shape, sizes in seen)
    assert sum(shape[0] for shape, _ in seen) == 3 * 2


def test_probabilities_are_blended_not_logits():
    def network(windows):  # another value in every window
        return torch.full_like(windows, 3.0) * windows.mean().sign()

    image = torch.ones(1, 1, 4, 4, 12)
    image[..., 6:] = -1
    found = TokenSlidingWindowInferer((4, 4, 6), 0.5)(image, network)
    assert found.dtype == torch.float32
    assert found.min() >= 0 and found.max() <= 1
    high, low = torch.tensor(3.0).sigmoid(), torch.tensor(-3.0).sigmoid()
    torch.testing.assert_close(found[..., 0], high.expand(1, 1, 4, 4))
    torch.testing.assert_close(found[..., -1], low.expand(1, 1, 4, 4))


@pytest.mark.parametrize("mirror", [False, True])
def test_probabilities_of_classes_sum_to_one_after_blending(mirror):
    def network(windows):  # other logits in every window, and in every mirroring of it
        ramp = torch.linspace(-2, 3, windows[0, 0].numel()).view(windows.shape[2:])
        return torch.cat([windows * 3, ramp + windows, 1 - windows**2, windows * ramp], 1)

    image = torch.rand(1, 1, 5, 9, 14, generator=torch.Generator().manual_seed(0))
    inferer = TokenSlidingWindowInferer(
        (4, 4, 6), 0.5, layout=ChannelLayout(0, 0, 4), mirror=mirror
    )
    found = inferer(image, network)
    assert found.shape[1] == 4 and found.min() > 0
    torch.testing.assert_close(found.sum(1), torch.ones_like(found[:, 0]), rtol=0, atol=1e-5)
    assert found.std(dim=1).min() > 1e-3


def test_a_window_of_classes_is_its_softmax():
    image = torch.rand(1, 1, 3, 4, 5)

    def network(windows):
        return torch.cat([windows, 2 * windows, 0 * windows], 1)

    found = TokenSlidingWindowInferer((4, 4, 6), layout=ChannelLayout(0, 0, 3))(image, network)
    torch.testing.assert_close(found, network(image).softmax(1))


@pytest.mark.parametrize("windows", [1, 3])
@pytest.mark.parametrize("thick", [1, 2, 7])
def test_sections_do_not_depend_on_how_thick_windows_are(thick, windows):
    """A network that sees one section at a time, in windows of one section or several."""
    batch = volume((7, 9, 12))
    inputs, _, _, tokens = PrepareTokenBatch()(batch)
    tokens = {name: value for name, value in tokens.items() if name.endswith("xy")}
    found = TokenSlidingWindowInferer((thick, 8, 8), 0.25, windows)(inputs, echo(), **tokens)
    expected = TokenSlidingWindowInferer((7, 9, 12))(inputs, echo(), **tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_raw_alone_needs_no_tokens():
    inputs, label, args, tokens = PrepareTokenBatch()({"image": volume((5, 9, 7))["image"]})
    assert (label, args, tokens) == (None, (), {})
    found = TokenSlidingWindowInferer((4, 4, 4))(inputs, Echo())
    torch.testing.assert_close(found, inputs.sigmoid())


def test_inference_makes_no_graph():
    weight = torch.ones(1, requires_grad=True)
    found = TokenSlidingWindowInferer((4, 4, 4))(torch.zeros(1, 1, 5, 5, 5), lambda x: x * weight)
    assert not found.requires_grad


def test_one_volume_at_a_time():
    with pytest.raises(ValueError, match="one volume at a time, got a batch of 2"):
        TokenSlidingWindowInferer((4, 4, 4))(torch.zeros(2, 1, 5, 5, 5), Echo())


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize(
    "inferer", [CropInferer, lambda amp: TokenSlidingWindowInferer((4, 4, 4), amp=amp)]
)
def test_amp_switches_bfloat16_on_and_the_result_is_float32(inferer, amp):
    seen = []

    def network(x):
        result = nn.functional.conv3d(x, torch.ones(1, 1, 1, 1, 1))
        seen.append(result.dtype)
        return result

    assert inferer(amp=amp)(torch.zeros(1, 1, 4, 4, 4), network).dtype == torch.float32
    assert set(seen) == {torch.bfloat16 if amp else torch.float32}


def test_crops_give_logits():
    batch = volume((5, 9, 7))
    inputs, _, _, tokens = PrepareTokenBatch()(batch)
    found = CropInferer()(inputs, echo(), **tokens)
    expected = torch.cat([batch["image"], fused(batch)], 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("to_device", [True, False])
def test_a_batch_becomes_image_label_and_keyword_tokens(to_device):
    batch = {**volume((5, 9, 7)), "label": torch.ones(1, 2, 5, 9, 7), "id": ["a"]}
    image, label, args, tokens = PrepareTokenBatch(to_device)(batch, "meta", non_blocking=False)
    assert image.is_meta and label.is_meta and args == ()
    assert set(tokens) == {f"{k}_{p}" for p in PLANES for k in ("tokens", "placement")}
    assert {value.is_meta for value in tokens.values()} == {to_device}


@pytest.mark.parametrize("amp", ["false", "true", 1, None], ids=str)
def test_amp_must_be_a_bool(amp):
    for inferer in (CropInferer, lambda amp: TokenSlidingWindowInferer((4, 4, 4), amp=amp)):
        with pytest.raises(InputError, match="amp must be true or false"):
            inferer(amp=amp)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"roi_size": (4, 4)}, "roi_size must be a list of 3 numbers"),
        ({"roi_size": (4, 0, 4)}, "roi_size must be 3 whole numbers from 1 on"),
        ({"overlap": 1.0}, "overlap must be from 0 to below 1, got 1.0"),
        ({"overlap": -0.1}, "overlap must be"),
    ],
    ids=str,
)
def test_rejects(arguments, message):
    with pytest.raises(InputError, match=message):
        TokenSlidingWindowInferer(**{"roi_size": (4, 4, 4), **arguments})


# --- compiled ---


@pytest.fixture
def fresh_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing is compiled yet."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_compiler_that_is_not_there_is_one_sentence() -> None:
    import torch._inductor.config as inductor

    network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.GELU())
    missing = inductor.patch({"cpp.cxx": ("/missing/c++",)})  # monkeypatch would remove the key
    with missing, pytest.raises(InputError, match="compile_network is true, but torch") as raised:
        CropInferer(compile=True)(torch.zeros(1, 3), network)
    assert "set compile_network to false" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_monais_metadata_do_not_go_through_the_network() -> None:
    seen: list[type] = []

    def network(x: torch.Tensor, *, more: torch.Tensor) -> torch.Tensor:
        seen.extend((type(x), type(more)))
        return x + more

    x = MetaTensor(torch.ones(1, 1, 2, 3, 4))
    assert torch.equal(CropInferer()(x, network, more=x), 2 * x.as_tensor())
    assert seen == [torch.Tensor, torch.Tensor]
