import json
from collections.abc import Callable
from pathlib import Path

import fire
import numpy as np
import pytest
from scripts import demo, fib25, synthetic
from scripts.steps import Step, StepError

from custom.datalist import open_entry, parse_datalist
from custom.errors import InputError
from custom.volumes import create_ome_zarr_array


def cube(folder: Path, depth: int) -> Path:
    """Raw of 170 sections and labels of ``depth``, named as in the real cube."""
    for path, sections in (("raw", 170), ("labels/neurons", depth)):
        shape = (sections, 3, 4)
        store = create_ome_zarr_array(
            folder / "cube.zarr", path, shape, "uint8", "zyx", (10.0,) * 3, (0.0,) * 3, shape, {}
        )
        store[...] = np.ones(shape, dtype=np.uint8)
    return folder / "cube.zarr"


def test_the_cube_is_split_along_z_with_a_gap_and_scored_where_it_is_held_out(
    tmp_path: Path,
) -> None:
    (tmp_path / "datalist.json").write_text(json.dumps(fib25.fib25_datalist(cube(tmp_path, 166))))
    datalist = parse_datalist(tmp_path / "datalist.json")
    opened = {entry.id: open_entry(entry) for entry in datalist.entries()}
    spans = {name: (entry.roi.offset[0], entry.roi.end[0]) for name, entry in opened.items()}
    assert spans == {
        "fib25-training": (0, 125),
        "fib25-validation": (129, 166),
        "fib25": (129, 166),
    }
    assert opened["fib25"].raw.metadata.shape == (170, 3, 4)


def test_a_cube_with_too_few_labelled_sections_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"labels/neurons has 150 sections"):
        fib25.fib25_datalist(cube(tmp_path, 150))


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("/absent/folder", "neither a folder nor a Hugging Face id"),
        ("./absent", "neither a folder nor a Hugging Face id"),
        ("dinov3", "neither a folder nor a Hugging Face id"),
        (str(Path(__file__).parent), r"has no config\.json"),
    ],
)
def test_a_backbone_that_cannot_be_one_is_refused(backbone: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fib25.checked_backbone(backbone)


def test_a_backbone_is_an_id_or_an_absolute_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert fib25.checked_backbone("vit") == str(tmp_path / "vit")
    assert fib25.checked_backbone("facebook/vit") == "facebook/vit"


@pytest.mark.parametrize("missing", ["data", "raw"])
def test_fib25_names_missing_data_in_one_line_and_writes_nothing(
    tmp_path: Path, missing: str
) -> None:
    data = tmp_path / "absent.zarr"
    if missing == "raw":
        data.mkdir()
        (data / ".zgroup").write_text('{"zarr_format": 2}')
    with pytest.raises(SystemExit) as stopped:
        fib25.fib25(str(data), "facebook/vit", str(tmp_path / "out"))
    assert str(data) in str(stopped.value)
    assert "\n" not in str(stopped.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (demo.demo, ["--epoch", "3"], "there is no option --epoch; did you mean 'epochs'"),
        (demo.demo, ["64", "0", "16", "2", "7"], "an argument too many: 7"),
        (fib25.fib25, ["--epochs=3"], "there is no option --epochs; known are data, backbone, out"),
        (synthetic.main, ["--voxelsize", "8"], "no option --voxelsize; did you mean 'voxel_size'"),
    ],
)
def test_a_recipe_refuses_what_it_does_not_know_before_it_begins(
    tmp_path: Path, command: Callable[..., None], arguments: list[str], message: str
) -> None:
    data = [str(cube(tmp_path, 166)), "facebook/vit"] if command is fib25.fib25 else []
    with pytest.raises(SystemExit, match=message):
        fire.Fire(command, [*data, str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()


def test_help_is_given_and_nothing_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "_demo", None)
    fire.Fire(demo.demo, ["--help"])
    assert "--voxel_size" in capsys.readouterr().out


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    data = cube(tmp_path / "data", 166)
    for run in (
        lambda: demo.demo(out=str(tmp_path)),
        lambda: fib25.fib25(str(data), "facebook/vit", str(tmp_path)),
    ):
        with pytest.raises(SystemExit, match="choose another --out"):
            run()
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.tex", "data"}


def test_a_demo_with_other_settings_is_refused_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise StepError("stopped here")

    monkeypatch.setattr(demo, "run_steps", stop)
    out = tmp_path / "demo"
    for _ in range(2):  # a second run goes on in the same folder
        with pytest.raises(SystemExit, match="stopped here"):
            demo.demo(out=str(out), size=(64, 96, 64), seed=1)
    before = (out / "demo.json").read_text()
    with pytest.raises(SystemExit, match="other settings"):
        demo.demo(out=str(out), size=(64, 96, 64), seed=2)
    assert (out / "demo.json").read_text() == before


def test_the_demo_makes_its_data_before_the_four_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Step] = []

    def collect(steps: list[Step], log: Path) -> None:
        seen.extend(steps)
        raise StepError(str(log))

    monkeypatch.setattr(demo, "run_steps", collect)
    with pytest.raises(SystemExit, match=r"steps\.json"):
        demo.demo(out=str(tmp_path / "demo"), voxel_size=(40, 10, 10), epochs=2)
    names = [step.name for step in seen]
    assert names == ["data", "preprocessing", "training", "inference", "evaluating"]
    assert "--voxel_size 40,10,10" in seen[0].command
    assert seen[0].outputs == (tmp_path / "demo" / "data" / "datalist.json",)
    assert "--epochs 2" in seen[2].command
