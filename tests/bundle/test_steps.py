import json
import shlex
from pathlib import Path

import pytest
from scripts.steps import (
    BUNDLE,
    Step,
    StepError,
    bundle_steps,
    read_records,
    run_steps,
    score_table,
    step_table,
)


def appending(name: str, folder: Path, text: str = "x") -> Step:
    """A step that appends to a file, so that every run of it shows."""
    output = folder / f"{name}.txt"
    code = f"open({str(output)!r}, 'a').write({text!r})"
    return Step(name, ("-c", code), (folder / "input.json",), (output,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "input.json").write_text("1")
    return tmp_path


def runs(folder: Path, name: str) -> int:
    return len((folder / f"{name}.txt").read_text())


def test_a_finished_step_is_reused_and_says_so(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    steps = [appending("first", folder), appending("second", folder)]
    records = run_steps(steps, folder / "steps.json")
    assert [record.step for record in records] == ["first", "second"]
    assert "finished before" not in capfd.readouterr().out
    assert run_steps(steps, folder / "steps.json") == records
    assert capfd.readouterr().out.count("finished before, reused") == 2
    assert (runs(folder, "first"), runs(folder, "second")) == (1, 1)


def test_a_changed_input_runs_a_step_and_all_after_it_again(folder: Path) -> None:
    first = appending("first", folder)
    second = Step("second", appending("second", folder).arguments, (), (folder / "second.txt",))
    run_steps([first, second], folder / "steps.json")
    (folder / "input.json").write_text("2")
    run_steps([first, second], folder / "steps.json")
    assert (runs(folder, "first"), runs(folder, "second")) == (2, 2)


def test_a_changed_command_or_a_missing_output_runs_a_step_again(folder: Path) -> None:
    first, second = appending("first", folder), appending("second", folder)
    run_steps([first, second], folder / "steps.json")
    (folder / "second.txt").unlink()
    run_steps([first, second], folder / "steps.json")
    assert (runs(folder, "first"), runs(folder, "second")) == (1, 1)
    run_steps([first, appending("second", folder, "yy")], folder / "steps.json")
    assert (runs(folder, "first"), runs(folder, "second")) == (1, 3)


def test_a_failed_step_stops_the_rest_and_keeps_what_is_finished(folder: Path) -> None:
    first, last = appending("first", folder), appending("last", folder)
    failing = Step("failing", ("-c", "raise SystemExit(3)"), (), ())
    with pytest.raises(StepError, match="failing failed with status 3"):
        run_steps([first, failing, last], folder / "steps.json")
    assert [record.step for record in read_records(folder / "steps.json")] == ["first"]
    assert not (folder / "last.txt").exists()


def test_a_missing_input_is_named(folder: Path) -> None:
    step = Step("step", ("-c", ""), (folder / "absent.json",), ())
    with pytest.raises(StepError, match=r"step needs .*absent\.json"):
        run_steps([step], folder / "steps.json")


def test_seconds_and_peak_memory_are_those_of_each_step(folder: Path) -> None:
    large = Step("large", ("-c", "import time; x = b'x' * 2**28; time.sleep(0.3)"), (), ())
    small = Step("small", ("-c", ""), (), ())
    records = run_steps([large, small], folder / "steps.json")
    assert records[0].peak_mib > 256
    assert records[0].seconds > 0.3
    assert records[1].peak_mib < records[0].peak_mib - 100


def test_the_four_runs_are_plain_bundle_commands() -> None:
    out, overlay = Path("/out"), BUNDLE / "configs" / "experiments" / "demo.json"
    steps = bundle_steps(out, out / "datalist.json", overlay, backbone="a/b", epochs=3)
    assert [step.name for step in steps] == [
        "preprocessing",
        "training",
        "inference",
        "evaluating",
    ]
    assert steps[1].command == (
        "python -m monai.bundle run training --config_file "
        "\"['configs/train.json','configs/experiments/demo.json']\" "
        "--datalist /out/datalist.json --cache_dir /out/cache --model_dir /out/models "
        "--eval_dir /out/eval --epochs 3 --backbone a/b"
    )
    assert shlex.split(steps[1].command)[1:] == list(steps[1].arguments)
    assert "--epochs" not in bundle_steps(out, out / "datalist.json", overlay)[1].command
    assert "experiments" not in steps[3].command


def test_tables_name_every_step_and_every_entry(folder: Path) -> None:
    records = run_steps([appending("first", folder)], folder / "steps.json")
    assert step_table(records).splitlines()[1].startswith("first ")
    row = {"id": "cube", "voi": 1.5, "voi_split": 1.0, "voi_merge": 0.5, "adapted_rand": 0.25}
    (folder / "scores.json").write_text(json.dumps({"entries": [row]}))
    shown = score_table(folder / "scores.json").splitlines()[1].split()
    assert shown == ["cube", "1.500", "1.000", "0.500", "0.250"]


def test_the_table_of_scores_has_the_columns_that_entries_have(folder: Path) -> None:
    classes = {"id": "er", "dice": 0.5, "iou": 0.25, "dice_mito": 0.5}
    row = {"id": "cube", "voi": 1.5, "voi_split": 1.0, "voi_merge": 0.5, "adapted_rand": 0.125}
    (folder / "scores.json").write_text(json.dumps({"entries": [classes]}))
    titles, line = score_table(folder / "scores.json").splitlines()
    assert titles.split() == ["entry", "mean", "Dice", "mean", "IoU"]
    assert line.split() == ["er", "0.500", "0.250"]
    (folder / "scores.json").write_text(json.dumps({"entries": [classes, row]}))
    lines = score_table(folder / "scores.json").splitlines()
    assert len({len(text) for text in lines}) == 1, "columns are aligned"
    assert [text.split()[-1] for text in lines[1:]] == ["0.250", "0.125"]
