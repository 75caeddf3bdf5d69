import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import gpu
from bench.figures import Figure
from custom.features.backbone import load_backbone

TINY = {
    "model_type": "dinov3_vit",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_register_tokens": 3,
    "patch_size": 8,
}


def test_operations_of_a_window_are_those_that_torch_counts() -> None:
    model = load_backbone(TINY).model
    model.set_attn_implementation("eager")  # torch counts its own attention on GPUs alone
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(pixel_values=torch.zeros(1, 3, 40, 40))
    assert gpu.window_flops(TINY, 40) == counter.get_total_flops()


def test_rates_are_voxels_and_operations_over_time() -> None:
    assert gpu.rates("x", voxels=600, seconds=3.0, flops=12e9, peak=16e9) == [
        Figure("x.voxels_per_second", 200.0, "1/s"),
        Figure("x.share_of_peak", 0.25, "1"),
    ]


def test_a_tiny_run_counts_every_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that shows one second per measurement."""
    clock = iter(range(1000))
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: float(next(clock)))
    setting = gpu.Setting("cpu", 24, 24, {"tiny": TINY}, (8,), matrix=32)
    found = {figure.name: figure.value for figure in gpu.gpu_figures(setting)}
    peak = 20 * 2 * 32**3
    assert found == {
        "gpu.matmul_peak": peak / 1e12,
        "gpu.tiny_stride_8.voxels_per_second": 24**3,
        "gpu.tiny_stride_8.share_of_peak": 3 * 24 * gpu.window_flops(TINY, 24) / peak,
    }


def test_a_smaller_stride_takes_more_windows() -> None:
    setting = gpu.Setting("cpu", 16, 16, {"tiny": TINY}, (8, 4), matrix=32)
    names = [figure.name for figure in gpu.gpu_figures(setting)]
    assert names[1::2] == [f"gpu.tiny_stride_{s}.voxels_per_second" for s in (8, 4)]


def test_results_are_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def figures(setting: gpu.Setting) -> list[Figure]:
        asked.append(setting)
        return [Figure("gpu.x", 1.5, "1")]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(gpu, "gpu_figures", figures)
    monkeypatch.setattr(gpu, "version", lambda package: f"version of {package}")
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "gpu.json")
    gpu.bench(compile=True)
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert results["machine"]["gpu"] == "a card"
    assert results["figures"] == [{"name": "gpu.x", "value": 1.5, "unit": "1"}]
    assert (asked[0].device, asked[0].compile, results["compile"]) == ("cuda", True, True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(SystemExit, match="needs a GPU with CUDA"):
        gpu.bench()
