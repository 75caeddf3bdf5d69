"""``scripts.bundle check``: one sentence per mistake, and a status that says if there is any."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from scripts.check_config import check

from tests.bundle import tiny
from tests.bundle.tiny import BUNDLE, CONFIGS

TRAIN = str(CONFIGS / "train.json")
RAW_ONLY = str(CONFIGS / "experiments" / "raw_only.json")


def said(*files: Any, **options: Any) -> str:
    with pytest.raises(SystemExit) as caught:
        check(*files, **options)
    return str(caught.value.code)


def test_a_right_configuration_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"epochs": 3, "features#window": 448}
    check(TRAIN, RAW_ONLY, run_id="training", arrays=False, **settings)
    (line,) = capsys.readouterr().out.splitlines()
    assert TRAIN in line and "no mistake" in line


def test_files_may_be_one_list(capsys: pytest.CaptureFixture[str]) -> None:
    check([TRAIN, RAW_ONLY], arrays=False)
    assert RAW_ONLY in capsys.readouterr().out


def test_every_mistake_is_a_line() -> None:
    heading, *lines = said(TRAIN, RAW_ONLY, **{"epoch": 3, "amp": "false"}).splitlines()
    assert heading == "the configuration has 2 mistakes:" and len(lines) == 2
    assert "'epoch'" in lines[0] and "'amp'" in lines[1]


def test_a_run_that_is_not_there_is_said() -> None:
    assert "did you mean 'training'?" in said(TRAIN, run_id="trainig")


def test_no_file_is_said() -> None:
    assert "configs/train.json" in said()


def test_what_only_looks_odd_is_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    overlay = str(CONFIGS / "experiments" / "dynunet.json")
    check(TRAIN, overlay, unet_upsampling="interpolation", arrays=False)
    note, line = capsys.readouterr().out.splitlines()
    assert note.startswith("note: ") and "'unet_upsampling' has no effect" in note
    assert "no mistake" in line


@pytest.mark.parametrize("name", tiny.RUNS)
def test_arrays_are_looked_at_too(
    finished: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    before = tiny.files(finished)
    check(str(CONFIGS / f"{tiny.CONFIG_OF[name]}.json"), **given(name, finished))
    assert tiny.files(finished) == before
    first, *lines = capsys.readouterr().out.splitlines()
    assert "no mistake found" in first
    trained = name in ("preprocessing", "training")
    volume = "training: 1 volume, synthetic-training" if trained else "test: 1 volume, synthetic"
    assert volume in lines
    assert any("_dir: up to" in line for line in lines) == (name in ("training", "inference"))


def test_an_array_that_is_missing_is_said(finished: Path, tmp_path: Path) -> None:
    wanted = given("training", finished) | {"cache_dir": str(tmp_path / "nowhere")}
    assert str(tmp_path / "nowhere") in said(TRAIN, **wanted)
    assert "crop_size" in said(
        TRAIN, **(given("training", finished) | {"crop_size": [400, 16, 16]})
    )


def given(name: str, folder: Path) -> dict[str, Any]:
    return {**tiny.settings(name, folder), "bundle_root": str(BUNDLE)}


@pytest.mark.slow
def test_the_status_is_1_where_something_is_wrong(tmp_path: Path) -> None:
    script = ["-m", "scripts.bundle", "check"]
    options = ["--features#window", "448", "--crop_size", "16,16,16", "--device", "cpu"]
    options += ["--arrays", "False"]
    done = tiny.command([*script, "configs/train.json", *options])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "configs/train.json: no mistake found\n"
    options = ["--netwrk_def#x", "4", "--stride", "None", "--max_gradient_norm", "None"]
    both = "['configs/train.json','configs/experiments/raw_only.json']"
    done = tiny.command([*script, both, *options])
    assert done.returncode == 1 and done.stdout == ""
    _, first, second = done.stderr.splitlines()
    assert "did you mean 'network_def" in first and "'max_gradient_norm'" in second


@pytest.mark.slow
def test_a_run_with_a_misspelt_key_ends_with_its_sentence(tmp_path: Path) -> None:
    tiny.write_data(tmp_path)
    done = tiny.command(tiny.arguments("training", tmp_path, **{"epoch": 1}))
    assert done.returncode == 1 and "Traceback" not in done.stderr + done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: command line: 'epoch'") and last.endswith("'epochs'?")


@pytest.mark.slow
def test_a_configuration_is_checked_from_elsewhere(tmp_path: Path) -> None:
    shutil.copytree(CONFIGS, tmp_path / "configs")
    shutil.copytree(BUNDLE / "scripts", tmp_path / "scripts")
    shutil.copytree(tiny.ROOT / "custom", tmp_path / "custom")
    command = ["-m", "scripts.bundle", "check", str(CONFIGS / "train.json"), "--arrays", "False"]
    done = tiny.command(command, tmp_path)
    assert done.returncode == 0, done.stderr
