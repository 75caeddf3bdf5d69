"""What is shared, without a run."""

import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import verify_metadata
from safetensors.torch import save_file

import custom
from custom.config_check.check import Request, config_findings
from custom.config_check.findings import mistakes
from custom.config_check.sources import Source
from custom.errors import InputError
from custom.inspection.bundle import inspect_bundle
from custom.inspection.own_project import OwnProject
from custom.sharing import bundle as sharing
from custom.sharing.bundle import RUNS, share_bundle
from custom.sharing.shipped_configs import SHIPPED_CONFIGS
from tests.bundle import overlays, tiny
from tests.sharing.models import write_trained_model

pytestmark = pytest.mark.slow

OWN = OwnProject(Path(custom.__file__).parent, tiny.BUNDLE)
SCHEMA = tiny.ROOT / "tests" / "data" / "meta_schema_minimal.json"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder whose name must not be in anything shared."""
    folder = tmp_path / "somebodys_secret"
    write_trained_model(folder)
    (folder / "eval").mkdir()
    (folder / "eval" / "panel_0002.png").write_bytes(b"\x89PNG")
    (folder / "eval" / "panel_0004.png").write_bytes(b"\x89PNG")
    (folder / "eval" / "events.out.tfevents.1").write_bytes(b"x")
    return folder


def share(project: Path, name: str = "shared", **options: Any) -> dict[str, bytes]:
    """Files of the zip by name."""
    path = share_bundle(name, project / "model", project / "eval", project, OWN, **options)
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def test_everything_that_a_receiver_needs_is_there_and_nothing_else(project: Path) -> None:
    names = {name.removeprefix("shared/") for name in share(project)}
    assert {
        "LICENSE",
        "requirements.txt",
        "manifest.json",
        "docs/README.md",
        "docs/data_license.txt",
        "docs/images/panel_0002.png",
        "models/model.pt",
        "models/model.safetensors",
        "models/model.json",
        "custom/__init__.py",
        "custom/networks/unet.py",
        "scripts/bundle.py",
        "configs/inference.json",
        "configs/train.json",
        "configs/preprocess.json",
        "configs/evaluate.json",
        "configs/metadata.json",
        "configs/logging.conf",
        "configs/losses.json",
        "configs/experiments/raw_only.json",
    } <= names
    unwanted = ("__pycache__", "last.pt", "tfevents", "panel_0004", ".gitkeep", "history.json")
    assert [name for name in names if any(word in name for word in unwanted)] == []


def test_nothing_in_the_zip_names_the_machine(project: Path) -> None:
    words = ("somebodys_secret", str(tiny.ROOT), str(project.parent))
    for name, content in share(project).items():
        assert [word for word in words if word.encode() in content] == [], name


def test_the_same_model_gives_the_same_bytes(project: Path) -> None:
    path = project / "shared.zip"
    share(project)
    first = path.read_bytes()
    share(project, overwrite=True)
    assert path.read_bytes() == first


def test_the_shared_zip_is_safe_in_the_eyes_of_inspect(project: Path) -> None:
    share(project)
    report = inspect_bundle(project / "shared.zip", OWN)
    assert report.safe, report.lines()
    assert {item.kind for item in report.findings.executed} >= {"target", "expression", "python"}


def test_configurations_have_the_settings_of_the_training(project: Path) -> None:
    files = share(project)
    inference = json.loads(files["shared/configs/inference.json"])
    preprocess = json.loads(files["shared/configs/preprocess.json"])
    train = json.loads(files["shared/configs/train.json"])
    for found in (inference, train):
        assert found["unet_channels"] == tiny.NETWORK["unet_channels"]
        assert found["affinity_offsets"] == tiny.NETWORK["affinity_offsets"]
        assert found["network_def"]["planes"] == "@features#planes"
    for found in (inference, preprocess, train):
        assert found["backbone"] == tiny.BACKBONE
        assert found["features"]["window"] == 64
        assert found["datalist"] == "$os.path.join(@bundle_root, 'configs', 'datalist.json')"
    assert inference["source"] == "raw"
    assert train["epochs"] == 2
    described = json.loads(files["shared/models/model.json"])
    assert described["config"]["model_dir"] == "$os.path.join(@bundle_root, 'models')"


def test_metadata_has_the_channels_of_the_model_and_is_valid(project: Path, tmp_path: Path) -> None:
    content = share(project)["shared/configs/metadata.json"]
    pred = json.loads(content)["network_data_format"]["outputs"]["pred"]
    assert pred["num_channels"] == 14
    assert pred["channel_def"]["3"] == "affinity 0 5 0"
    assert pred["channel_def"]["13"] == "LSD mass"
    path = tmp_path / "metadata.json"
    path.write_bytes(content)
    verify_metadata(meta_file=str(path), filepath=str(SCHEMA))


def test_the_card_has_data_scores_settings_and_pictures(project: Path) -> None:
    scores = {"section": "test", "entries": [{"id": "far", "voi": 2.25, "voxels": 7}]}
    (project / "eval" / "scores.json").write_text(json.dumps(scores))
    card = share(project)["shared/docs/README.md"].decode()
    for line in (
        "| training | left | 0 1 2 | 24 35 32 |",
        "| right | 1.500 |",
        "| far | 2.250 | 7 |",
        "| `unet_channels` | `[4, 8]` |",
        "40 x 8 x 4 nm",
        "![panel_0002](images/panel_0002.png)",
        "A bundle is code",
        "the best of 2 epochs",
    ):
        assert line in card


def test_an_interrupted_training_shares_its_best_model_and_says_so(project: Path) -> None:
    torch.save({"epoch": 1}, project / "model" / "last.pt")
    card = share(project)["shared/docs/README.md"].decode()
    assert "**the training was interrupted** after 1 of 2 epochs" in card


def test_a_training_that_early_stopping_has_ended_was_not_interrupted(tmp_path: Path) -> None:
    write_trained_model(tmp_path, early_stopping=3, epochs=9)
    state = {"best": 1.0, "without_better": 3}
    torch.save({"epoch": 5, "early_stopping": state}, tmp_path / "model" / "last.pt")
    card = share(tmp_path)["shared/docs/README.md"].decode()
    assert "the best of 5 epochs" in card and "interrupted" not in card


@pytest.mark.parametrize("name", ["labels", "segresnet", "plateau", "two_dimensions"])
def test_runs_take_the_configurations_of_any_training(tmp_path: Path, name: str) -> None:
    write_trained_model(tmp_path, **overlays.content(name))
    found = share(tmp_path)
    configs = {f"{run}.json": found[f"shared/configs/{run}.json"] for run in RUNS}
    read = {file: json.loads(content) for file, content in configs.items()}
    for file, content in read.items():
        others = {other: c for other, c in read.items() if other != file}
        asked = Request([Source(file, content)], others=others, run_id="run")
        assert mistakes(config_findings(asked)) == []


def test_scores_and_pictures_of_another_training_are_refused(project: Path) -> None:
    history = project / "eval" / "history.json"
    history.write_text(json.dumps([{"epoch": 1, "voi": 1.5}, {"epoch": 2, "voi": 1.75}]))
    with pytest.raises(InputError, match=r"of another training.*epoch 2"):
        share(project)
    history.write_text(json.dumps([{"epoch": 1, "voi": 1.75}, {"epoch": 2, "voi": 1.5}]))
    assert share(project)


def test_without_a_checkpoint_the_card_does_not_know_how_far_it_came(project: Path) -> None:
    (project / "model" / "last.pt").unlink()
    assert "is not known" in share(project)["shared/docs/README.md"].decode()


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a b", ".x", "nul", "x.", "-x"])
def test_a_name_that_is_no_file_name_is_refused(project: Path, name: str) -> None:
    with pytest.raises(InputError, match="is no name for a bundle"):
        share(project, name)


def test_a_zip_that_exists_is_refused(project: Path) -> None:
    share(project)
    with pytest.raises(InputError, match="exists already"):
        share(project)


def test_a_folder_without_a_model_is_refused(project: Path) -> None:
    shutil.rmtree(project / "model")
    with pytest.raises(InputError, match="holds no trained model"):
        share(project)


def test_weights_of_two_models_are_refused(project: Path) -> None:
    weights = torch.load(project / "model" / "model.pt", weights_only=True)
    save_file({k: v + 1 for k, v in weights.items()}, project / "model" / "model.safetensors")
    with pytest.raises(InputError, match="are not of one model"):
        share(project)


def test_weights_that_are_missing_or_damaged_are_refused(project: Path) -> None:
    (project / "model" / "model.safetensors").write_bytes(b"12345678")
    with pytest.raises(InputError, match="is damaged"):
        share(project)
    (project / "model" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks model\.safetensors"):
        share(project)


def test_a_description_of_another_model_is_refused(project: Path) -> None:
    other = write_trained_model(project / "other", unet_channels=[4, 6])
    shutil.copy(other / "model.json", project / "model" / "model.json")
    with pytest.raises(InputError, match="is not the one that"):
        share(project)


def test_a_configuration_of_another_network_is_refused(project: Path) -> None:
    path = project / "model" / "model.json"
    found = json.loads(path.read_text())
    found["config"]["unet_channels"] = [4, 6]
    path.write_text(json.dumps(found))
    with pytest.raises(InputError, match="is of another network"):
        share(project)


def test_a_model_without_a_configuration_is_refused(project: Path) -> None:
    path = project / "model" / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "config": {}}))
    with pytest.raises(InputError, match="trained without a configuration"):
        share(project)


def test_a_network_that_nobody_else_has_is_refused(project: Path) -> None:
    path = project / "model" / "model.json"
    found = json.loads(path.read_text())
    found["config"]["network_def"] = {"_target_": "somewhere.else.Net"}
    path.write_text(json.dumps(found))
    with pytest.raises(InputError, match="cannot be built"):
        share(project)


def test_a_file_of_the_project_that_names_this_machine_is_refused(
    project: Path, tmp_path: Path
) -> None:
    own = OwnProject(OWN.custom, shutil.copytree(tiny.BUNDLE, tmp_path / "bundle"))
    (own.bundle / "configs" / "experiments" / "labels.json").write_text(
        json.dumps({"backbone": str(project / "model")})
    )
    with pytest.raises(InputError, match=r"labels\.json' would tell others"):
        share_bundle("x", project / "model", project / "eval", project, own)


def test_configurations_that_travel_are_those_of_the_repository() -> None:
    listed = ["git", "ls-files", "configs"]
    done = subprocess.run(listed, cwd=tiny.BUNDLE, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("no git repository")
    assert sorted(SHIPPED_CONFIGS) == sorted(done.stdout.split())


def test_overlays_of_ones_own_stay_at_home(project: Path, tmp_path: Path) -> None:
    own = OwnProject(OWN.custom, shutil.copytree(tiny.BUNDLE, tmp_path / "bundle"))
    for place in ("configs", "configs/experiments"):
        (own.bundle / place / "mine.json").write_text('{"of": "my own"}')
        (own.bundle / place / "broken.json").write_text("{")
    path = share_bundle("x", project / "model", project / "eval", project, own)
    with zipfile.ZipFile(path) as archive:
        names = {name.removeprefix("x/") for name in archive.namelist()}
    assert {name for name in names if name.startswith("configs/")} == set(SHIPPED_CONFIGS)
    assert inspect_bundle(path, own).safe


def test_what_inspect_would_warn_of_is_not_written(project: Path, tmp_path: Path) -> None:
    share(project)
    before = (project / "shared.zip").read_bytes()
    own = OwnProject(OWN.custom, shutil.copytree(tiny.BUNDLE, tmp_path / "bundle"))
    losses = own.bundle / "configs" / "losses.json"
    losses.write_text(json.dumps({"x": {"_target_": "subprocess.run"}}))
    for name in ("new", "shared"):
        with pytest.raises(InputError, match=rf"{name}\.zip' was not written.*losses\.json"):
            share_bundle(name, project / "model", project / "eval", project, own, overwrite=True)
    assert [path.name for path in project.glob("*.zip*")] == ["shared.zip"]
    assert list(project.glob(".*")) == []
    assert (project / "shared.zip").read_bytes() == before


@pytest.mark.parametrize("error", [InputError("x is bad"), RuntimeError("x is bad")])
def test_an_inspection_that_fails_leaves_no_zip(
    project: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(sharing, "inspect_bundle", fail)
    with pytest.raises(type(error), match="x is bad") as caught:
        share(project)
    assert ("shared.zip' was not written" in str(caught.value)) == isinstance(error, InputError)
    assert [*project.glob("*.zip*"), *project.glob(".*")] == []


@pytest.mark.parametrize("name", ["inference", "metadata"])
def test_a_broken_configuration_of_ones_own_is_one_sentence(
    project: Path, tmp_path: Path, name: str
) -> None:
    own = OwnProject(OWN.custom, shutil.copytree(tiny.BUNDLE, tmp_path / "bundle"))
    (own.bundle / "configs" / f"{name}.json").write_text("{")
    with pytest.raises(InputError, match=rf"{name}\.json' is not valid JSON"):
        share_bundle("x", project / "model", project / "eval", project, own)
    assert not (project / "x.zip").exists()
