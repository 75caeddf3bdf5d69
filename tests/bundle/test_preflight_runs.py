"""The static check in runs, through every door of MONAI: before anything is written."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow

from tests.bundle import tiny
from tests.bundle.tiny import BUNDLE, CONFIGS


def refused(run: str, folder: Path, overlay: Any = None, **overrides: Any) -> list[str]:
    """Sentences that a run ends with; nothing was written."""
    files = [str(CONFIGS / f"{tiny.CONFIG_OF[run]}.json")]
    if overlay is not None:
        (folder / "mine.json").write_text(json.dumps(overlay))
        files.append(str(folder / "mine.json"))
    before = tiny.files(folder)
    with pytest.raises(Exception) as caught:  # MONAI wraps it
        tiny.run(run, folder, config_file=files, **overrides)
    mistake = tiny.user_mistake(caught.value)
    assert mistake is not None, repr(caught.value)
    assert tiny.files(folder) == before
    return str(mistake).splitlines()


@pytest.mark.parametrize(
    ("run", "overlay", "overrides", "words"),
    [
        ("training", None, {"epoch": 1}, ["command line: 'epoch'", "did you mean 'epochs'?"]),
        ("training", {"train#inferrer": {}}, {}, ["mine.json: 'train#inferrer'", "#inferer'?"]),
        ("preprocessing", {"token_chanels": 0}, {}, ["mine.json: 'token_chanels'"]),
        ("preprocessing", None, {"features#windw": 64}, ["did you mean 'features#window'?"]),
        ("preprocessing", None, {"compile": "false"}, ["'compile'", "say False"]),
        ("preprocessing", None, {"windows_at_once": "null"}, ["'windows_at_once'", "overlay"]),
        ("training", None, {"max_gradient_norm": None}, ["'max_gradient_norm'", "says nothing"]),
        ("training", None, {"epochs": None, "seed": True}, ["the configuration has 2 mistakes:"]),
        ("inference", {"inferer#overlapp": 0.5}, {}, ["'inferer#overlapp'", "'overlap'?"]),
        ("inference", {"network": "$@network_df.to(@device)"}, {}, ["mean '@network_def'?"]),
        ("evaluating", {"evaluator#_target_": "custom.evaluation.Evalator"}, {}, ["be found"]),
        ("evaluating", {"+imports": ["$import os.path"]}, {}, ["'imports#", "a name with a dot"]),
    ],
)  # fmt: skip
def test_a_run_refuses_a_mistake_before_it_writes_anything(
    tmp_path: Path, run: str, overlay: Any, overrides: dict[str, Any], words: list[str]
) -> None:
    first = refused(run, tmp_path, overlay, **overrides)[0]
    assert [word for word in words if word not in first] == [], first


def test_a_run_that_is_not_there_is_refused_before_the_others_initialize(tmp_path: Path) -> None:
    (sentence,) = refused("evaluating", tmp_path, run_id="evaluatin")
    assert "did you mean 'evaluating'?" in sentence


def test_what_only_looks_odd_is_logged_once(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(finished, tmp_path / "project")
    overlay = folder / "mine.json"
    overlay.write_text(json.dumps({"sections": ["test"]}))
    files = [str(CONFIGS / "evaluate.json"), str(overlay)]
    with caplog.at_level(logging.WARNING, logger="custom"):
        tiny.run("evaluating", folder, config_file=files)
    (record,) = [r for r in caplog.records if r.name.startswith("custom.config_check")]
    assert "'sections' is a key of preprocess.json" in record.getMessage()
    assert "did you mean 'section'?" in record.getMessage()


# --- from Python ---


def made(run: str, folder: Path, **overrides: Any) -> ConfigWorkflow:
    """A workflow that nobody but Python has seen."""
    settings: dict[str, Any] = {**tiny.settings(run, folder), "bundle_root": str(BUNDLE)}
    return ConfigWorkflow(
        config_file=str(CONFIGS / f"{tiny.CONFIG_OF[run]}.json"),
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        run_id=run,
        **{**settings, **overrides},
    )


@pytest.mark.parametrize("run", tiny.RUNS)
def test_a_workflow_made_in_python_is_right(run: str, tmp_path: Path) -> None:
    made(run, tmp_path).initialize()


@pytest.mark.parametrize(
    ("run", "overrides", "words"),
    [
        ("training", {"epoch": 3}, ["'epoch'", "did you mean 'epochs'?"]),
        ("training", {"train#inferrer": {}}, ["did you mean 'train#inferer'?"]),
        ("inference", {"amp": "false"}, ["'amp'", "'false'"]),
        ("inference", {"network_def#context#chanels": [3]}, ["did you mean 'channels'?"]),
    ],
)
def test_a_mistake_in_a_workflow_made_in_python_is_refused(
    tmp_path: Path, run: str, overrides: dict[str, Any], words: list[str]
) -> None:
    sentence = tiny.mistake(lambda: made(run, tmp_path, **overrides).initialize())
    assert [word for word in words if word not in sentence] == [], sentence


def test_create_workflow_takes_overrides_and_refuses_wrong_ones(tmp_path: Path) -> None:
    def create(**overrides: Any) -> None:
        create_workflow(
            config_file=str(CONFIGS / "inference.json"),
            meta_file=str(CONFIGS / "metadata.json"),
            logging_file=False,
            workflow_type="infer",
            bundle_root=str(BUNDLE),
            **{**tiny.settings("inference", tmp_path), **overrides},
        )

    create(window_overlap=0.25)
    sentence = tiny.mistake(lambda: create(window_overlp=0.25))
    assert "did you mean 'window_overlap'?" in sentence


def test_an_args_file_is_checked_like_a_command_line(tmp_path: Path) -> None:
    def run(**settings: Any) -> None:
        arguments = {
            "config_file": str(CONFIGS / "evaluate.json"),
            "meta_file": str(CONFIGS / "metadata.json"),
            "run_id": "evaluating",
            "bundle_root": str(BUNDLE),
            **settings,
        }
        (tmp_path / "args.json").write_text(json.dumps(arguments))
        monai.bundle.run(args_file=str(tmp_path / "args.json"), logging_file=False)

    sentence = tiny.mistake(lambda: run(sectoin="test"))
    assert "'sectoin'" in sentence and "did you mean 'section'?" in sentence
    sentence = tiny.mistake(lambda: run(datalist=str(tmp_path / "absent.json")))
    assert "absent.json" in sentence and "does not exist" in sentence


def test_load_takes_changes_of_the_network_and_refuses_wrong_ones(tmp_path: Path) -> None:
    shared = tmp_path / "emseg"
    shutil.copytree(CONFIGS, shared / "configs")
    parser = ConfigParser()
    parser.read_config(CONFIGS / "inference.json")
    parser["network_def#network#residual"] = True
    weights = parser.get_parsed_content("network_def").state_dict()
    (shared / "models").mkdir()
    torch.save(weights, shared / "models" / "model.pt")

    def load(change: dict[str, Any]) -> Any:
        return monai.bundle.load(
            "emseg",
            bundle_dir=str(tmp_path),
            workflow_type="inference",
            device="cpu",
            source="github",
            net_override=change,
        )

    found = load({"network#residual": True}).state_dict()
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    sentence = tiny.mistake(lambda: load({"network#residul": True}))
    assert "'network_def#network#residul'" in sentence and "'residual'?" in sentence


@pytest.mark.filterwarnings("ignore:Can't merge entry")
def test_a_plus_on_the_command_line_is_refused(tmp_path: Path) -> None:
    overrides = {"+initialize": ["$@bootstrap", "@preflight"]}
    (sentence,) = refused("evaluating", tmp_path, **overrides)
    assert "'+initialize' replaces instead of adding" in sentence


def test_a_tracked_run_may_have_the_keys_of_its_tracking(tmp_path: Path) -> None:
    def create(**overrides: Any) -> None:
        create_workflow(
            config_file=str(CONFIGS / "train.json"),
            meta_file=str(CONFIGS / "metadata.json"),
            logging_file=False,
            bundle_root=str(BUNDLE),
            tracking="mlflow",
            save_execute_config=False,
            **{**tiny.settings("training", tmp_path), **overrides},
        )

    create(experiment_name="one")
    sentence = tiny.mistake(lambda: create(experiment_nam="one"))
    assert "'experiment_nam'" in sentence
