"""MONAI's other ways into a bundle: load, workflows from Python, an args file, tracking."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import pytest
import torch
import zarr
from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow
from torch import nn

from custom.model_files import load_weights
from tests.bundle import tiny
from tests.bundle.tiny import BUNDLE, CONFIGS, ROOT

pytestmark = pytest.mark.slow

RAW = torch.rand(1, 1, 8, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


# --- load ---


@pytest.fixture(scope="module")
def shared(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose configurations have the settings that its model was trained with."""
    folder = tmp_path_factory.mktemp("shared") / "emseg"
    shutil.copytree(CONFIGS, folder / "configs")
    for name in ("train", "inference"):
        path = folder / "configs" / f"{name}.json"
        parser = ConfigParser()
        parser.read_config(path)
        parser.update({**tiny.FEATURES, **tiny.NETWORK})
        path.write_text(json.dumps(parser.get()))
    (folder / "models").mkdir()
    for path in (finished / "model").glob("model.*"):
        shutil.copy(path, folder / "models")
    return folder


def trained_network(shared: Path) -> nn.Module:
    """The network of the shared bundle, built and loaded by hand."""
    parser = ConfigParser()
    parser.read_config(shared / "configs" / "train.json")
    network: nn.Module = parser.get_parsed_content("network_def")
    load_weights(shared / "models", network)
    return network


@pytest.mark.parametrize("kind", ["train", "inference"])
@pytest.mark.parametrize("inside", [True, False], ids=["from the bundle", "from elsewhere"])
def test_load_gives_the_trained_network_and_writes_nothing(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, inside: bool
) -> None:
    monkeypatch.chdir(shared if inside else tmp_path)
    before = tiny.files(shared.parent)
    where = ".." if inside else str(shared.parent)
    network = monai.bundle.load("emseg", bundle_dir=where, workflow_type=kind, device="cpu")
    assert tiny.files(shared.parent) == before and not tiny.files(tmp_path)
    assert isinstance(network, nn.Module)
    with torch.no_grad():
        found, expected = network.eval()(RAW), trained_network(shared).eval()(RAW)
    assert torch.equal(found, expected)
    assert found.std() > 0


# ``custom`` as installed for development is hidden: the folder or the bundle must lead to it.
LOAD = """
import sys
import monai.bundle
sys.meta_path = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
network = monai.bundle.load("emseg", bundle_dir="..", device="cpu")
print(sys.modules["custom"].__file__, len(network.state_dict()))
"""


@pytest.mark.slow
def test_load_finds_the_code_of_the_bundle_that_it_is_called_from(
    shared: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(shared, tmp_path / "emseg")
    shutil.copytree(ROOT / "custom", copy / "custom")
    done = tiny.command(["-c", LOAD], cwd=copy)
    assert done.returncode == 0, done.stderr[-2000:]
    count = len(trained_network(shared).state_dict())
    assert done.stdout.splitlines()[-1] == f"{copy}/custom/__init__.py {count}"


# --- workflows from Python ---


def workflow(run: str, folder: Path, kind: str, **changes: Any) -> ConfigWorkflow:
    """A bundle's workflow as other programs make it."""
    made = create_workflow(
        workflow_name=ConfigWorkflow,
        config_file=str(CONFIGS / f"{tiny.CONFIG_OF[run]}.json"),
        logging_file=False,
        workflow_type=kind,
        bundle_root=str(BUNDLE),
        **{**tiny.settings(run, folder), **changes},
    )
    assert isinstance(made, ConfigWorkflow)
    return made


def untrained(finished: Path, folder: Path) -> Path:
    """A project with data and cache, and no training yet."""
    folder.mkdir()
    for name in ("data", "cache"):
        (folder / name).symlink_to(finished / name)
    return folder


def test_a_training_workflow_trains_what_the_command_trains(finished: Path, tmp_path: Path) -> None:
    folder = untrained(finished, tmp_path / "project")
    made = workflow("training", folder, "train")
    made.run()
    assert made.trainer.state.epoch == made.max_epochs == 2
    described = json.loads((folder / "model" / "model.json").read_text())
    assert described["volume_scores"].keys() == made.evaluator.state.volume_scores.keys()
    assert made.check_properties() == []
    made.finalize()
    one, two = (torch.load(f / "model" / "model.pt", weights_only=True) for f in (folder, finished))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_an_inference_workflow_writes_what_the_command_writes(
    finished: Path, tmp_path: Path
) -> None:
    made = workflow("inference", finished, "infer", output_dir=str(tmp_path))
    assert made.check_properties() == []
    made.run()
    made.finalize()
    found, expected = (
        zarr.open_array(folder / "synthetic.zarr" / "affinities" / "s0", mode="r")[:]
        for folder in (tmp_path, finished / "output")
    )
    np.testing.assert_array_equal(found, expected)


def test_a_property_that_is_set_counts_for_the_run(finished: Path, tmp_path: Path) -> None:
    folder = untrained(finished, tmp_path / "project")
    made = workflow("training", folder, "train", key_metric_name="affinity_f1")
    made.max_epochs = 1
    made.initialize()
    made.run()
    (entry,) = json.loads((folder / "eval" / "history.json").read_text())
    assert entry["epoch"] == 1
    described = json.loads((folder / "model" / "model.json").read_text())
    assert described["key_metric"] == "affinity_f1"
    assert described["validation"]["affinity_f1"] == entry["affinity_f1"]
    assert made.evaluator.state.best_metric == entry["affinity_f1"]


# --- args file and tracking ---


def test_a_run_takes_its_settings_from_a_file_and_others_win(project: Path) -> None:
    expected = json.loads((project / "eval" / "scores.json").read_text())["entries"]
    content = {
        "run_id": "evaluating",
        "config_file": str(CONFIGS / "evaluate.json"),
        "logging_file": False,
        "bundle_root": str(BUNDLE),
        **tiny.settings("evaluating", project),
        "section": "nonsense",
    }
    (project / "run.json").write_text(json.dumps(content))
    (project / "eval" / "scores.json").unlink()
    monai.bundle.run(args_file=str(project / "run.json"), section="test")
    assert json.loads((project / "eval" / "scores.json").read_text())["entries"] == expected


def test_tracking_adds_its_handlers_to_trainer_and_evaluator(
    finished: Path, tmp_path: Path
) -> None:
    folder = untrained(finished, tmp_path / "project")
    handler = {"_target_": "MetricsSaver", "save_dir": "@eval_dir", "save_rank": 0}
    engines = {"trainer": "train#{}", "validator": "validate#{}"}
    names = {"trainer": "trainer", "validator": "evaluator"}
    settings = {
        "handlers_id": {
            kind: {"id": place.format(names[kind]), "handlers": place.format("handlers")}
            for kind, place in engines.items()
        },
        "configs": {
            "save_execute_config": str(folder / "eval" / "config.json"),
            "validator": handler,
            "trainer": {"_target_": "GarbageCollector"},
        },
    }
    (tmp_path / "tracking.json").write_text(json.dumps(settings))
    tiny.run("training", folder, epochs=1, tracking=str(tmp_path / "tracking.json"))
    (scores,) = [
        entry["voi"] for entry in json.loads((folder / "eval" / "history.json").read_text())
    ]
    rows = (folder / "eval" / "metrics.csv").read_text().splitlines()
    tracked = {name: float(value) for name, value in (row.split(",") for row in rows)}
    assert tracked["voi"] == pytest.approx(scores)
    executed = json.loads((folder / "eval" / "config.json").read_text())
    assert executed["epochs"] == 1
    assert executed["validate"]["handlers"][-1] == handler


# --- what other tools look at ---


@pytest.mark.parametrize(
    ("overlay", "channels"), [("labels", 2), ("two_dimensions", 0), ("affinities", 9)]
)
def test_other_outputs_pass_the_check_of_the_network_too(overlay: str, channels: int) -> None:
    files = [str(CONFIGS / "train.json"), str(CONFIGS / "experiments" / f"{overlay}.json")]
    parser = ConfigParser()
    parser.read_config(files)
    outputs = parser.get_parsed_content("channels").num_outputs
    assert outputs == (channels or outputs)
    monai.bundle.verify_net_in_out(
        net_id="network_def",
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=files,
        device="cpu",
        n=2,
        **{"_meta_#network_data_format#outputs#pred#num_channels": outputs},
    )


@pytest.mark.parametrize("name", ["mild", "strong"])
def test_transforms_reach_workers_that_are_spawned(name: str) -> None:
    parser = ConfigParser()
    parser.read_config(CONFIGS / "train.json")
    parser["augmentation"] = f"@augmentations#{name}"
    transform = parser.get_parsed_content("train#preprocessing")
    assert len(pickle.loads(pickle.dumps(transform)).transforms) == len(transform.transforms)


def test_no_configuration_has_a_function_without_a_name() -> None:
    assert [p.name for p in CONFIGS.rglob("*.json") if "lambda" in p.read_text()] == []
