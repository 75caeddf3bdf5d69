import json
import signal
from pathlib import Path

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow
from torch.utils.data import DataLoader, Dataset

from custom.errors import InputError
from custom.preflight import user_mistake
from custom.running import running_config
from tests.forked import ended


def wrapped(error: Exception) -> Exception:
    """As MONAI and ignite hand it on."""
    try:
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("Failed to evaluate ConfigExpression") from cause
    except RuntimeError as found:
        return found


def test_a_mistake_is_found_behind_other_errors() -> None:
    mistake = InputError("sentence.")
    assert user_mistake(mistake) is mistake
    assert user_mistake(wrapped(wrapped(mistake))) is mistake


def test_a_reference_that_leads_nowhere_is_a_mistake() -> None:
    parser = ConfigParser({"augmentations": {"strong": []}, "x": "@augmentations#storng"})
    with pytest.raises(ValueError, match="referring item") as caught:
        parser.get_parsed_content("x")
    sentence = str(user_mistake(wrapped(caught.value)))
    assert sentence == "the configuration refers to @augmentations#storng, which it does not have"


def test_other_errors_are_no_mistakes_of_the_user() -> None:
    assert user_mistake(wrapped(ValueError("bug"))) is None
    assert user_mistake(None) is None


class Failing(Dataset[int]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        try:
            raise KeyError("InputError: not this")
        except KeyError as error:
            raise InputError("labels 'a: b' are at fault.") from error


@pytest.mark.slow
def test_a_workers_mistake_is_its_sentence() -> None:
    loader = DataLoader(Failing(), num_workers=1, multiprocessing_context="spawn")
    with pytest.raises(InputError) as caught:
        next(iter(loader))
    assert str(caught.value) == "labels 'a: b' are at fault."


@pytest.mark.slow
def test_only_a_bug_ends_the_process_with_a_traceback(tmp_path: Path) -> None:
    imports = "from custom.errors import InputError; from custom.preflight import begin"
    raised = ["InputError('one sentence.')", "KeyError('bug')", "KeyboardInterrupt"]
    mistake, bug, stopped = ended(
        imports, [f"begin(); raise {error}" for error in raised], tmp_path
    )
    assert (mistake.status, mistake.said) == (1, "error: one sentence.")
    assert bug.status == 1 and bug.said.endswith("\nKeyError: 'bug'") and "Traceback" in bug.said
    assert stopped.status == -signal.SIGINT, "that of its signal"
    assert stopped.said == "interrupted; the same command takes the run up again"


@pytest.mark.slow
def test_the_running_configuration_has_the_overrides(tmp_path: Path) -> None:
    config = {
        "imports": ["$from custom.running import running_config"],
        "answer": 1,
        "nested": {"leaf": 2},
        "run": ["$running_config()"],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "metadata.json").write_text("{}")
    workflow = ConfigWorkflow(
        config_file=str(tmp_path / "config.json"),
        meta_file=str(tmp_path / "metadata.json"),
        logging_file=False,
        **{"answer": 3, "nested#leaf": 4},
    )
    workflow.initialize()
    found = workflow.run()[0]
    assert (found["answer"], found["nested"]) == (3, {"leaf": 4})


def test_there_is_no_running_configuration_outside_a_run() -> None:
    assert running_config() == {}
