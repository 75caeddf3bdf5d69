import errno
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from custom import run_record
from custom.array_report import ArrayReport
from custom.run_record import RunRecord, begin_record, git_state, plain_values
from custom.running import BundleRun
from tests.forked import ended

REPORT = ArrayReport({"training": [{"id": "cube", "offset": [0, 0, 0], "shape": [3, 4, 5]}]})


def run(folder: Path, **changes: Any) -> BundleRun:
    config = {
        "imports": ["$import os"],
        "eval_dir": f"$os.path.join('{folder}', 'eval')",
        "seed": 7,
        "device": "$'c' + 'pu'",
        "network_def": {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3},
        "network": "$@network_def.to(@device)",
        "training": ["$print(@network)"],
        **changes,
    }
    return BundleRun("training", config, ["train.json", "overlay.json"], {"seed": 7})


def begun(folder: Path, **changes: Any) -> tuple[RunRecord, dict[str, Any]]:
    record = begin_record(run(folder, **changes), REPORT)
    assert record is not None
    return record, json.loads(record.path.read_text())


def test_a_record_says_what_is_run_with_what_on_what(tmp_path: Path) -> None:
    record, found = begun(tmp_path)
    record.end("completed")
    assert record.path.parent == tmp_path / "eval" / "runs"
    assert record.path.name.startswith("training_")
    assert found["config_files"] == ["train.json", "overlay.json"]
    assert found["overrides"] == {"seed": 7}
    assert found["config"]["device"] == "$'c' + 'pu'"
    assert (found["values"]["device"], found["device"], found["seed"]) == ("cpu", "cpu", 7)
    assert found["split"] == {"training": [{"id": "cube", "offset": [0, 0, 0], "shape": [3, 4, 5]}]}
    assert {"custom", "python", "torch", "monai", "numpy"} <= set(found["versions"])


def test_a_record_has_an_end_only_when_the_run_has(tmp_path: Path) -> None:
    record, found = begun(tmp_path)
    assert "started" in found and not {"ended", "seconds", "outcome"} & set(found)
    record.end("failed: disk full")
    record.end("completed")  # of the same process, later
    ended = json.loads(record.path.read_text())
    assert (ended["outcome"], {**found, **ended}) == ("failed: disk full", ended)
    assert ended["seconds"] >= 0 and ended["ended"] >= ended["started"]


def test_a_run_that_is_taken_up_has_another_record(tmp_path: Path) -> None:
    first, second = begun(tmp_path)[0], begun(tmp_path)[0]
    assert first.path != second.path
    assert sorted(path.name for path in (tmp_path / "eval" / "runs").iterdir()) == sorted(
        [first.path.name, second.path.name]
    )
    first.end("stopped")
    second.end("completed")


def test_an_end_does_not_bring_back_a_folder_that_is_gone(tmp_path: Path) -> None:
    record, _ = begun(tmp_path)
    record.path.unlink()
    record.path.parent.rmdir()
    record.end("completed")
    assert not record.path.parent.exists()


def test_nobodys_name_is_in_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "rosalind"))
    monkeypatch.setenv("USER", "rosalind")
    monkeypatch.setenv("LOGNAME", "rosalind")
    datalist = str(tmp_path / "rosalind" / "data.json")
    record, found = begun(tmp_path / "rosalind", datalist=datalist, nested={datalist: [datalist]})
    record.end(f"failed: {datalist} is not there")
    assert "rosalind" not in record.path.read_text()
    assert found["values"]["datalist"] == "~/data.json"


def test_plain_values_are_evaluated_and_nothing_is_built() -> None:
    config = {
        "size": 3,
        "twice": "$2 * @size",
        "nested": {"leaf": "@twice"},
        "built": {"_target_": "os.abort"},
        "of_it": "$@built + 1",
        "inside": {"deep": [{"_target_": "os.abort"}]},
        "of_leaf": "$@inside#deep",
        "steps": ["$@built"],
        "lost": "@nowhere",
    }
    assert plain_values(config) == {"size": 3, "twice": 6, "nested": {"leaf": 6}}


def test_a_run_of_another_sort_has_no_record(tmp_path: Path) -> None:
    assert begin_record(BundleRun("show", {"show": ["$1"]}), REPORT) is None


def git(folder: Path, *arguments: str) -> None:
    name = ("-c", "user.name=n", "-c", "user.email=n@example.org")
    subprocess.run(["git", *name, *arguments], cwd=folder, check=True, capture_output=True)


def test_the_state_of_git_is_that_of_the_code(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "__init__.py").write_text("1")
    assert git_state(code) is None
    git(tmp_path, "init")
    assert git_state(code) is None  # a repository that holds it without tracking it
    git(code, "add", ".")
    git(code, "commit", "-m", "first")
    clean = git_state(code)
    assert clean is not None and len(clean["commit"]) == 40 and clean["dirty"] is False
    (tmp_path / "output").write_text("not of the code")
    assert git_state(code) == clean
    (code / "__init__.py").write_text("2")
    assert git_state(code) == {**clean, "dirty": True}


def test_without_git_there_is_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(Path(run_record.__file__).parent) is None


def test_a_disk_that_is_full_at_the_end_is_no_other_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    record, before = begun(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_record, "write_atomically", full)
    record.end("failed: the disk is full")
    assert "cannot be completed: [Errno 28] No space left" in caplog.text
    assert json.loads(record.path.read_text()) == before


ENDINGS: dict[str, str | None] = {
    "raise InputError('x is y')": "failed: x is y",
    "raise KeyError('bug')": "failed: KeyError: 'bug'",
    "raise KeyboardInterrupt": "stopped",
    "sys.exit(3)": "stopped",
    "preflight.end()": "completed",
    "os.kill(os.getpid(), signal.SIGKILL)": None,
}
IMPORTS = """
from tests.test_run_record import begun
from custom.errors import InputError
from custom.preflight import begin
"""
BEGIN = "preflight = begin(); preflight.record, _ = begun(folder); "


@pytest.mark.slow
def test_however_a_process_ends_its_record_says_so(tmp_path: Path) -> None:
    outcomes = []
    for process in ended(IMPORTS, [BEGIN + ending for ending in ENDINGS], tmp_path):
        (path,) = (process.folder / "eval" / "runs").iterdir()
        outcomes.append(json.loads(path.read_text()).get("outcome"))
    assert outcomes == list(ENDINGS.values())
