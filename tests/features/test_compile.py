"""torch.compile: the same features, and one sentence where it does not work."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from custom.errors import InputError
from custom.features.backbone import load_backbone
from tests.features.test_released_backbones import TINY, convnext

pytestmark = [
    pytest.mark.slow,  # minutes: a compiler runs
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's own, while it compiles
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing is compiled yet."""
    if shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def images(edge: int) -> torch.Tensor:
    return torch.randn((3, 3, 2 * edge, 3 * edge), generator=torch.Generator().manual_seed(1))


def test_compiled_features_are_the_same_for_every_batch_size() -> None:
    plain, compiled = load_backbone(TINY["ViT"]), load_backbone(TINY["ViT"], compile=True)
    x = images(8)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch.testing.assert_close(compiled(x), plain(x), rtol=1e-4, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
    torch.testing.assert_close(compiled(x[:2]), plain(x[:2]), rtol=1e-4, atol=1e-4)
    assert compiled.digest == plain.digest


def test_compiled_features_in_bfloat16_are_the_same_within_its_rounding() -> None:
    config = convnext([4, 6, 8, 10], [1, 1, 1, 1])
    exact, compiled = load_backbone(config), load_backbone(config, amp=True, compile=True)
    assert 0 < (compiled(images(32)) - exact(images(32))).abs().max() < 0.1


def test_a_compiler_that_is_not_there_is_one_sentence() -> None:
    import torch._inductor.config as inductor

    backbone = load_backbone(TINY["ViT"], compile=True)
    missing = inductor.patch({"cpp.cxx": ("/missing/c++",)})  # monkeypatch would remove the key
    with missing, pytest.raises(InputError, match="compile is true, but torch") as raised:
        backbone(torch.zeros(1, 3, 16, 16))
    assert "set compile to false" in str(raised.value)
    assert "\n" not in str(raised.value)
