"""The overlay for several GPUs beside every other overlay, in either order."""

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from torch import distributed

from custom.processes import SharedStatistics, data_parallel
from tests.bundle.overlays import EXPERIMENTS, FOLDER, RECIPES, content, runs_of
from tests.bundle.tiny import CONFIGS

pytestmark = pytest.mark.slow

TRAIN, MULTI_GPU = CONFIGS / "train.json", CONFIGS / "multi_gpu_train.json"
OVERLAYS = [name for name in (*EXPERIMENTS, *RECIPES) if "training" in runs_of(name)]


def parsed(*files: Path) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(file) for file in files])
    return parser


def test_it_changes_what_exists_and_appends_to_what_is_a_list() -> None:
    alone, together = parsed(TRAIN), parsed(TRAIN, MULTI_GPU)
    assert alone["dist_init"] is None
    assert alone["initialize"] == together["initialize"]
    assert alone["initialize"].index("@dist_init") > alone["initialize"].index("@preflight")
    for key in ("finalize", "train#handlers"):
        assert together[key][:-1] == alone[key]
    assert set(together.get("")) == set(alone.get(""))


@pytest.mark.parametrize("name", OVERLAYS)
def test_it_goes_with_every_overlay_in_either_order(name: str) -> None:
    overlay = FOLDER / f"{name}.json"
    first, last = parsed(TRAIN, MULTI_GPU, overlay), parsed(TRAIN, overlay, MULTI_GPU)
    assert first.get("") == last.get("")
    multi = parsed(TRAIN, MULTI_GPU)
    for key in ("dist_init", "device", "train#trainer#network", "epoch_length#processes"):
        assert last[key] == multi[key], key
    for key, value in content(name).items():
        assert last[key.removeprefix("+")] == value or key.startswith("+"), key


@pytest.fixture(scope="module")
def _one_process(tmp_path_factory: pytest.TempPathFactory) -> Any:
    store = tmp_path_factory.mktemp("group") / "store"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("_one_process")
@pytest.mark.parametrize(
    "name", [n for n in OVERLAYS if {"unet_norm", "network_def#network"} & set(content(n))]
)
def test_every_network_has_a_gradient_of_all_it_is_made_of(name: str) -> None:
    """What torch would wait for in vain otherwise."""
    parser = parsed(TRAIN, MULTI_GPU, FOLDER / f"{name}.json")
    network = parser.get_parsed_content("network_def").network
    parallel = data_parallel(network).train()
    channels = next(iter(network.parameters())).shape[1]
    parallel(torch.rand(1, channels, 16, 32, 48)).sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []
    assert SharedStatistics(network).buffers or "norm" not in name or name == "norm_instance"
