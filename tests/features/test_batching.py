import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from funlib.geometry import Roi
from torch import Tensor

from custom.errors import InputError
from custom.features import batching
from custom.features.backbone import Backbone
from custom.features.batching import (
    InBatches,
    bytes_of_window,
    checked_windows_at_once,
    windows_that_fit,
)
from custom.features.cache import open_cache
from custom.features.extraction import PlaneExtraction, RawBox
from custom.features.pca import PcaBasis
from custom.features.reduced import with_basis
from custom.features.settings import load_backbone_and_spec
from custom.memory import free_memory
from custom.preprocessing import Preprocessor
from custom.training import training_volumes
from custom.volume_datasets import inference_dataset
from tests.features.cached import SPEC

VIT = {
    "model_type": "dinov3_vit",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 8,
}
FEATURES = {"window": 16, "precision": "float32", "dtype": "float32"}
CPU = torch.device("cpu")


class Small:
    """A backbone on a device that holds so many images."""

    def __init__(self, room: int, error: RuntimeError) -> None:
        self.room, self.error = room, error
        self.sizes: list[int] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        if len(images) > self.room:
            raise self.error
        return images.sum((1, 2, 3), keepdim=True)


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"),
]


def test_components_are_computed_in_no_more_windows_at_once_than_all_channels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A basis makes features small, not what the backbone needs."""
    backbone, spec = load_backbone_and_spec(VIT, FEATURES)
    tensors = torch.zeros(16), torch.eye(16)[:2], torch.ones(2), torch.tensor(16.0)
    basis = PcaBasis(*tensors, fitted_on={"features": spec.to_json()})
    few = with_basis(backbone, replace(spec, channels=2, pca=2), basis, "")
    monkeypatch.setattr(batching, "free_memory", lambda device: 6 * bytes_of_window(spec))
    sizes = []

    def counted(self: Backbone, images: Tensor) -> Tensor:
        sizes.append(len(images))
        return torch.zeros(len(images), self.channels, 2, 2)

    monkeypatch.setattr(Backbone, "forward", counted)
    for used in ((backbone, spec), few):
        box = RawBox(
            lambda roi: np.zeros(roi.shape), (9, 16, 16), Roi((0, 0, 0), (9, 16, 16)), (0, 1)
        )
        for _ in PlaneExtraction(box, *used, "xy").slabs():
            pass
    assert sizes == 2 * [3, 3, 3]


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu"])
def test_batches_are_halved_until_they_fit_and_stay_so(
    error: RuntimeError, caplog: pytest.LogCaptureFixture
) -> None:
    small = Small(3, error)
    forward = InBatches(small, 8)
    images = torch.arange(11.0).view(11, 1, 1, 1).expand(11, 3, 2, 2)
    torch.testing.assert_close(forward(images).flatten(), torch.arange(11.0) * 12)
    assert small.sizes == [8, 4, 2, 2, 2, 2, 2, 1]
    small.sizes.clear()
    forward(images[:5])
    assert small.sizes == [2, 2, 1]
    assert "2 windows at once from now on" in caplog.text


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu"])
def test_a_window_that_does_not_fit_alone_is_one_sentence(error: RuntimeError) -> None:
    with pytest.raises(InputError, match="a window of 2 pixels does not fit into the memory of"):
        InBatches(Small(0, error), 4)(torch.zeros(3, 3, 2, 2))


def test_other_failures_pass() -> None:
    small = Small(1, RuntimeError("mat1 and mat2 must have the same dtype"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        InBatches(small, 4)(torch.zeros(3, 3, 2, 2))
    assert small.sizes == [3]


def test_no_more_windows_at_once_than_half_of_the_free_memory_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = replace(SPEC, window=512, patch_size=16, stride=16, channels=384, layers=(1,), overlap=0)
    assert bytes_of_window(spec) == bytes_of_window(replace(spec, channels=768, layers=(1, 2)))
    assert 20e6 < bytes_of_window(spec) < 200e6
    for free, fitting in ((5.0, 2), (2.0, 1), (0.5, 1), (1000.0, 8), (None, 8)):
        held = None if free is None else int(free * bytes_of_window(spec))
        monkeypatch.setattr(batching, "free_memory", lambda device, held=held: held)
        assert windows_that_fit(spec, CPU) == fitting
    assert windows_that_fit(spec, torch.device("cuda")) == 64


def test_free_memory_is_asked_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 50 * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30 * 2**30)
    assert free_memory(torch.device("cuda", 0)) == (3 + 50 - 30) * 2**30
    assert free_memory(torch.device("meta")) is None
    if Path("/proc/meminfo").exists():
        assert 2**20 < (free_memory(CPU) or 0) < 2**50


@pytest.mark.parametrize("value", [0, -1, True, "8", 2.0, [4]])
def test_a_number_of_windows_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="windows_at_once must be a whole number from 1 on"):
        checked_windows_at_once(value)
    assert (checked_windows_at_once(None), checked_windows_at_once(3)) == (None, 3)


# --- the runs ---


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Numbers of images of every forward pass."""
    found: list[int] = []
    forward = Backbone.forward

    def counted(self: Backbone, images: Tensor) -> Tensor:
        found.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Backbone, "forward", counted)
    yield found


@pytest.fixture
def datalist(tmp_path: Path) -> str:
    raw = np.random.default_rng(0).integers(0, 256, (7, 20, 18), dtype=np.uint8)
    np.save(tmp_path / "raw.npy", raw)
    entry = {"id": "a", "raw": "raw.npy", "voxel_size_nm": {"raw": [8, 4, 5]}}
    sections = {"training": [entry], "test": [{**entry, "id": "b"}]}
    (tmp_path / "datalist.json").write_text(json.dumps({"name": "x", **sections}))
    return str(tmp_path / "datalist.json")


def preprocess(datalist: str, cache_dir: Path, **more: Any) -> dict[str, Tensor]:
    Preprocessor(
        datalist, cache_dir, VIT, FEATURES, ["training"], show_progress=False, **more
    ).run()
    (volume,) = open_cache(cache_dir)
    return {plane: volume.plane_grid(plane).values for plane in volume.spec.planes}


def predict(datalist: str, cache_dir: Path, **more: Any) -> Any:
    source = ("raw", datalist, "test", str(cache_dir), VIT, FEATURES)
    return inference_dataset(*source, **more)[0]


def train(datalist: str, cache_dir: Path, **more: Any) -> Any:
    source = (str(cache_dir), "training", VIT, FEATURES, 16, "raw", datalist)
    return training_volumes(*source, **more)[0].plane_grid("xz")


@pytest.mark.parametrize("run", [preprocess, predict, train])
def test_every_run_takes_so_many_windows_at_once(
    run: Callable[..., Any], datalist: str, tmp_path: Path, sizes: list[int]
) -> None:
    run(datalist, tmp_path / "cache", windows_at_once=3)
    assert max(sizes) == 3
    sizes.clear()
    run(datalist, tmp_path / "other")
    assert 3 < max(sizes) <= 8
    with pytest.raises(InputError, match="windows_at_once must be"):
        run(datalist, tmp_path / "none", windows_at_once="all")


@pytest.mark.parametrize("run", [preprocess, predict, train])
def test_every_run_may_compile_its_backbone(
    run: Callable[..., Any], datalist: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []

    def remember(self: Backbone) -> None:
        compiled.append(self.name)

    monkeypatch.setattr(Backbone, "compile_blocks", remember)
    run(datalist, tmp_path / "cache")
    assert compiled == []
    run(datalist, tmp_path / "other", compile=True)
    assert compiled == ["random dinov3_vit"]
    with pytest.raises(InputError, match="compile must be true or false"):
        run(datalist, tmp_path / "none", compile="yes")


def test_a_batch_is_never_larger_than_what_there_is(
    datalist: str, tmp_path: Path, sizes: list[int]
) -> None:
    preprocess(datalist, tmp_path / "cache", windows_at_once=100)
    assert max(sizes) == 20


def test_a_run_that_runs_out_of_memory_goes_on_with_the_same_features(
    datalist: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = preprocess(datalist, tmp_path / "enough")
    forward = Backbone.forward

    def scarce(self: Backbone, images: Tensor) -> Tensor:
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, images)

    monkeypatch.setattr(Backbone, "forward", scarce)
    found = preprocess(datalist, tmp_path / "scarce")
    for plane, values in expected.items():
        torch.testing.assert_close(found[plane], values, rtol=0, atol=1e-5)
