import json
from pathlib import Path
from typing import Any

import monai.bundle
import pytest

from custom.running import BundleRun, kind_of, running, running_config

CONFIG = {
    "imports": ["$from custom.running import running"],
    "answer": 1,
    "nested": {"leaf": [2]},
    "training": ["$running()"],
    "run": ["$running()"],
    "inference": ["$running().config"],
}


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "initialize": ["$running()"]}))
    (tmp_path / "overlay.json").write_text(json.dumps({"nested#leaf": [5]}))
    (tmp_path / "metadata.json").write_text("{}")
    return str(tmp_path / "config.json")


def begun(config_file: str | list[str], **changes: Any) -> BundleRun:
    """What ``initialize`` is told of a run."""
    found: list[BundleRun] = []

    def record(run: BundleRun) -> None:
        found.append(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("custom.running.seen", record, raising=False)
        monai.bundle.run(
            run_id="training",
            config_file=config_file,
            logging_file=False,
            initialize=["$__import__('custom.running').running.seen(running())"],
            **changes,
        )
    return found[0]


def test_a_run_knows_its_id_files_and_overrides(config_file: str) -> None:
    overlay = config_file.replace("config.json", "overlay.json")
    run = begun([config_file, overlay], answer=3, workflow_type="train")
    assert (run.run_id, run.kind) == ("training", "training")
    assert list(run.config_files) == [config_file, overlay]
    assert run.overrides["answer"] == 3
    assert not {"run_id", "logging_file", "config_file", "workflow_type"} & set(run.overrides)
    assert (run.config["answer"], run.config["nested"]) == (3, {"leaf": [5]})


def test_one_file_is_a_list_of_one(config_file: str) -> None:
    assert list(begun(config_file).config_files) == [config_file]


def test_outside_of_a_run_there_is_none() -> None:
    assert running() is None
    assert running_config() == {}


@pytest.mark.parametrize(
    ("run_id", "kind"),
    [("training", "training"), ("run", "training"), ("inference", "inference"), ("show", None)],
)
def test_a_synonym_is_the_run_with_the_same_steps(run_id: str, kind: str | None) -> None:
    assert kind_of(CONFIG, run_id) == kind
