"""The bundle as MONAI and its tools see it, without data, cache or backbone."""

import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow

import custom
from custom.channels import ChannelLayout
from custom.datalist import parse_datalist
from custom.errors import InputError
from tests.bundle import tiny
from tests.bundle.overlays import EXPERIMENTS, FOLDER, RECIPES, config, content, runs_of
from tests.bundle.tiny import BUNDLE, CONFIGS

SCHEMA = Path(__file__).resolve().parents[1] / "data" / "meta_schema_minimal.json"
LSDS = (
    *(f"offset {axis}" for axis in "zyx"),
    *(f"variance {axis}" for axis in "zyx"),
    *(f"correlation {axes}" for axes in ("zy", "zx", "yx")),
    "mass",
)


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text())
    return content


METADATA = read("metadata")


# --- metadata ---


def test_metadata_fit_the_schema_offline() -> None:
    monai.bundle.verify_metadata(
        meta_file=str(CONFIGS / "metadata.json"), filepath=str(SCHEMA), create_dir=False
    )
    assert METADATA["schema"].endswith("/schema/meta_schema_20240725.json")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("required_packages_version",), None),
        (("authors",), ["one", "two"]),
        (("network_data_format", "outputs", "pred", "num_channels"), "19"),
        (("network_data_format", "inputs", "image", "value_range"), None),
    ],
)
def test_metadata_that_do_not_fit_the_schema_are_refused(
    tmp_path: Path, place: tuple[str, ...], value: object
) -> None:
    content = read("metadata")
    part = content
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    if value is None:
        del part[place[-1]]
    (tmp_path / "metadata.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=place[-1] if value is None else "is not of type"):
        monai.bundle.verify_metadata(
            meta_file=str(tmp_path / "metadata.json"), filepath=str(SCHEMA), create_dir=False
        )


def test_metadata_have_the_packages_version_in_their_changelog() -> None:
    assert METADATA["version"] == custom.__version__
    assert custom.__version__ in METADATA["changelog"]


def test_metadata_name_the_locked_versions() -> None:
    lines = (tiny.ROOT / "requirements.txt").read_text().splitlines()
    locked = dict(line.split("==") for line in lines if "==" in line)
    named = {
        **METADATA["required_packages_version"],
        "monai": METADATA["monai_version"],
        "torch": METADATA["pytorch_version"],
        "numpy": METADATA["numpy_version"],
    }
    project = tomllib.loads((tiny.ROOT / "pyproject.toml").read_text())["project"]
    needed = [re.split(r"[>=<,\[]", requirement)[0] for requirement in project["dependencies"]]
    assert named == {package: locked[package] for package in needed}


def test_metadata_name_every_channel_of_the_prediction() -> None:
    offsets = read("train")["affinity_offsets"]
    names = [f"affinity {z} {y} {x}" for z, y, x in offsets]
    names += [f"LSD {name}" for name in LSDS]
    output = METADATA["network_data_format"]["outputs"]["pred"]
    assert output["channel_def"] == {str(i): name for i, name in enumerate(names)}
    assert output["num_channels"] == ChannelLayout(len(offsets)).num_outputs


# --- what MONAI's tools ask for ---


@pytest.mark.parametrize("name", ["train", "inference"])
def test_the_network_has_the_channels_that_metadata_promise(name: str) -> None:
    monai.bundle.verify_net_in_out(
        net_id="network_def",
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=str(CONFIGS / f"{name}.json"),
        device="cpu",
        n=4,
    )


def test_a_network_with_other_channels_is_noticed() -> None:
    with pytest.raises(ValueError, match="output channel number"):
        monai.bundle.verify_net_in_out(
            net_id="network_def",
            meta_file=str(CONFIGS / "metadata.json"),
            config_file=str(CONFIGS / "train.json"),
            device="cpu",
            n=4,
            **{"network_def#network#out_channels": 18},
        )


@pytest.mark.parametrize(("run", "kind"), [("training", "train"), ("inference", "infer")])
def test_a_workflow_has_all_properties_that_monai_knows(
    finished: Path, run: str, kind: str
) -> None:
    workflow = create_workflow(
        workflow_name=ConfigWorkflow,
        config_file=str(CONFIGS / f"{tiny.CONFIG_OF[run]}.json"),
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        bundle_root=str(BUNDLE),
        **tiny.settings(run, finished),
    )
    assert workflow.check_properties() == []
    workflow.finalize()


@pytest.mark.parametrize("kind", ["train", "inference"])
def test_load_gives_the_network_with_the_weights_of_a_shared_bundle(
    tmp_path: Path, kind: str
) -> None:
    shared = tmp_path / "emseg"
    shutil.copytree(CONFIGS, shared / "configs")
    parser = ConfigParser()
    parser.read_config(CONFIGS / "train.json")
    weights = parser.get_parsed_content("network_def").state_dict()
    (shared / "models").mkdir()
    torch.save(weights, shared / "models" / "model.pt")
    loaded = monai.bundle.load(
        "emseg", bundle_dir=str(tmp_path), workflow_type=kind, device="cpu", source="github"
    )
    found = loaded.state_dict()
    assert set(found) == set(weights)
    assert all(torch.equal(found[name], value) for name, value in weights.items())


# --- configurations agree with each other ---


@pytest.mark.parametrize(
    "key",
    [
        "backbone",
        "features",
        "output_type",
        "dimensions",
        "num_classes",
        "affinity_offsets",
        "lsd_sigma_nm",
        "channels",
        "use_raw",
        "token_channels",
        "fused_channels",
        "learned_upsampling_steps",
        "fusion",
        "context_factor",
        "unet_channels",
        "unet_strides",
        "unet_kernels",
        "unet_norm",
        "unet_residual",
        "unet_dropout",
        "unet_upsampling",
        "checkpointing",
        "network_def",
        "crop_size",
        "segmenter",
        "imports",
        "bundle_root",
        "bootstrap",
        "preflight",
        "datalist",
        "cache_dir",
        "model_dir",
        "output_dir",
    ],
)
def test_configurations_that_have_a_key_agree_on_it(key: str) -> None:
    names = ("preprocess", "train", "inference", "evaluate")
    found = {name: read(name)[key] for name in names if key in read(name)}
    if key in ("output_type", "affinity_offsets", "lsd_sigma_nm", "channels", "network_def"):
        assert set(found) == {"train", "inference"}
    if key in ("backbone", "features"):
        assert set(found) == {"preprocess", "train", "inference"}
    if key == "output_dir":  # in training, where MONAI's tracking writes: beside what we write
        assert found.pop("train") == "@eval_dir"
    if key == "imports":
        found = {name: value[:2] for name, value in found.items()}
    assert len(found) > 1
    assert all(value == next(iter(found.values())) for value in found.values()), found


@pytest.mark.parametrize(("run", "name"), tiny.CONFIG_OF.items())
def test_a_run_has_a_synonym_and_begins_with_the_preflight(run: str, name: str) -> None:
    config = read(name)
    assert config["run"] == config[run]
    assert config["initialize"][:2] == ["$@bootstrap", "@preflight"]


@pytest.mark.parametrize("name", tiny.CONFIG_OF.values())
def test_everything_of_ours_waits_for_the_bootstrap(name: str) -> None:
    def parts(value: Any) -> list[dict[str, Any]]:
        inner = value.values() if isinstance(value, dict) else value
        found = [value] if isinstance(value, dict) and "_target_" in value else []
        if isinstance(value, dict | list):
            found += [part for child in inner for part in parts(child)]
        return found

    ours = [part for part in parts(read(name)) if part["_target_"].startswith("custom.")]
    assert ours
    assert [part for part in ours if part.get("_requires_") != "@bootstrap"] == []
    assert not any("scripts" in part["_target_"] for part in parts(read(name)))


# --- overlays ---


OVERLAID = [(name, run) for name in (*EXPERIMENTS, *RECIPES) for run in runs_of(name)]


@pytest.mark.parametrize("name", [*EXPERIMENTS, *RECIPES])
def test_an_overlay_changes_only_what_exists(name: str) -> None:
    bases = [config(run) for run in runs_of(name)]
    for key in content(name):
        parents = key.removeprefix("+").split("#")[:-1]
        assert any(has(base, key.removeprefix("+")) for base in bases), key
        if parents:  # MONAI fails where the parent of a nested key is missing
            assert all(has(base, "#".join(parents)) for base in bases), key


def has(config: Any, key: str) -> bool:
    """Whether a configuration has a nested key such as ``a#b``."""
    for part in key.split("#"):
        if isinstance(config, dict) and part in config:
            config = config[part]
        elif isinstance(config, list) and part.isdigit() and int(part) < len(config):
            config = config[int(part)]
        else:
            return False
    return True


@pytest.mark.parametrize(("name", "run"), OVERLAID)
def test_an_overlay_can_be_laid_over_its_runs(name: str, run: str) -> None:
    parser = ConfigParser()
    parser.read_config(overlaid(name, run))
    for key, value in content(name).items():
        if not key.startswith("+"):
            assert parser[key] == value


@pytest.mark.parametrize(
    ("name", "run"), [(n, r) for n, r in OVERLAID if r in ("training", "inference")]
)
def test_an_overlay_gives_a_network_with_the_channels_that_it_names(name: str, run: str) -> None:
    parser = ConfigParser()
    parser.read_config(overlaid(name, run))
    parser["amp"] = False
    network = parser.get_parsed_content("network_def").eval()
    layout = parser.get_parsed_content("channels")
    depth = 8 if parser["dimensions"] == 3 else 1
    with torch.no_grad():
        logits = network(torch.rand(1, 1, depth, 16, 24))
    assert logits.shape == (1, layout.num_outputs, depth, 16, 24)


def overlaid(name: str, run: str) -> list[str]:
    """A run's configuration and the overlay."""
    return [str(CONFIGS / f"{tiny.CONFIG_OF[run]}.json"), str(FOLDER / f"{name}.json")]


# --- the example datalist ---


def test_the_example_datalist_ends_in_a_sentence_about_its_first_path() -> None:
    with pytest.raises(InputError, match=r"entry 'cube-1', raw '.*cube1\.zarr/raw' does not exist"):
        parse_datalist(CONFIGS / "datalist.json")
