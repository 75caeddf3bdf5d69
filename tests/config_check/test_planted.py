"""Mistakes planted in the shipped configurations: each is found, with file, key and way out."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts.check_config import findings_of

from custom.config_check.findings import Finding, mistakes
from tests.bundle.tiny import CONFIGS

COMPONENT = {"_target_": "custom.losses.AffinityLoss", "layout": "@channels"}
NETWORK = {"_target_": "monai.networks.nets.UNet", "spatial_dims": 3, "in_channels": 17}
Row = tuple[str, str, Any, dict[str, Any], list[str]]


@pytest.fixture(autouse=True)
def _inside_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A copy of the configurations, to be changed; the current folder is that of the bundle."""
    shutil.copytree(CONFIGS, tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    yield


def sentences(name: str, overlay: Any, overrides: dict[str, Any], run: str | None) -> list[str]:
    return [str(finding) for finding in mistakes(found(name, overlay, overrides, run))]


def found(
    name: str, overlay: Any = None, overrides: dict[str, Any] | None = None, run: str | None = None
) -> list[Finding]:
    """Findings in a configuration with an overlay, given as its text or its content."""
    names = [f"configs/{name}.json"]
    if overlay is not None:
        text = overlay if isinstance(overlay, str) else json.dumps(overlay)
        Path("configs/mine.json").write_text(text)
        names.append("configs/mine.json")
    return findings_of(names, overrides or {}, run)


OVERLAYS: dict[str, tuple[str, Any, list[str]]] = {
    # keys that nothing had before
    "misspelt key": ("train", {"epoch": 1}, ["'epoch'", "did you mean 'epochs'?"]),
    "misspelt key of another run": (
        "preprocess",
        {"token_chanels": 0},
        ["'token_chanels'", "did you mean 'token_channels'?"],
    ),
    "misspelt top-level dict": (
        "train",
        {"inferer_settings": {"overlap": 0.5}},
        ["'inferer_settings'", "nothing had before"],
    ),
    "key in a plain section": (
        "train",
        {"train#inferrer": {"_target_": "SimpleInferer"}},
        ["'train#inferrer'", "did you mean 'train#inferer'?"],
    ),
    "key in features": (
        "train",
        {"features#windw": 448},
        ["'features#windw'", "did you mean 'features#window'?"],
    ),
    "key in a section given whole": (
        "inference",
        {"copy_intensity": {"contrst": [0.8, 1.2]}, "features": {"windw": 448, "planes": ["xy"]}},
        ["'features#windw'", "did you mean 'features#window'?"],
    ),
    "key with a point": ("train", {"features.window": 448}, ["did you mean 'features#window'?"]),
    "key of a section without it": (
        "train",
        {"roi_size": [64, 64, 64]},
        ["'roi_size'", "did you mean 'validate#inferer#roi_size'?"],
    ),
    "misspelt section": (
        "train",
        {"netwrk_def#network": NETWORK},
        ["'netwrk_def#network'", "no 'netwrk_def'", "did you mean 'network_def#network'?"],
    ),
    "section that this run does not have": (
        "evaluate",
        {"features#window": 448},
        ["'features#window'", "no 'features'"],
    ),
    "key below a reference": (
        "train",
        {"augmentation#0#prob": 0.2},
        ["@augmentations#mild", "change 'augmentations#mild#0#prob'"],
    ),
    "key below a number": ("train", {"epochs#first": 3}, ["'epochs#first'", "which holds no keys"]),
    "item that a list lacks": ("train", {"segmentation_grid#9": {}}, ["without an item 9"]),
    "plus on what is not there": (
        "train",
        {"+initialise": ["$print(1)"]},
        ["'+initialise'", "did you mean 'initialize'?"],
    ),
    "plus on another kind": ("train", {"+initialize": {"a": 1}}, ["'+initialize'", "two lists"]),
    "misspelt key added to a section": (
        "train",
        {"+train": {"inferrer": 1}},
        ["'train#inferrer'", "did you mean 'train#inferer'?"],
    ),
    "misspelt run": ("train", {"trainin": ["$@session.run()"]}, ["did you mean 'training'?"]),
    # values of another kind
    "quoted false": ("train", {"amp": "false"}, ["'amp'", "'false'", "without quotes"]),
    "quoted number": ("train", {"epochs": "80"}, ["'epochs'", "'80'", "a number was there"]),
    "quoted null": ("train", {"context_factor": "null"}, ["'context_factor'", "without quotes"]),
    "number for a list": (
        "train",
        {"crop_size": 64},
        ["'crop_size'", "is 64", "a list was there", "[64, 64, 64]"],
    ),
    "words in a list of numbers": ("train", {"crop_size": ["64", "64", "64"]}, ["the word '64'"]),
    "word for a component": (
        "train",
        {"loss": "focal"},
        ["'loss'", "'focal'", "%configs/losses.json#focal"],
    ),
    "mapping for a component": ("train", {"loss": {"gamma": 2.0}}, ["'loss'", "_target_"]),
    "word for a section": ("train", {"features": "fine"}, ["'features'", "a mapping was there"]),
    "kind of a key of another run": ("preprocess", {"amp": "false"}, ["'amp'", "'false'"]),
    "quoted value inside a section given whole": (
        "inference",
        {"features": {"final_norm": "true"}},
        ["'features#final_norm'", "'true'"],
    ),
    # references
    "undefined reference": (
        "train",
        {"network": "$@netwrk_def.to(@device)"},
        ["'network'", "'@netwrk_def'", "did you mean '@network_def'?"],
    ),
    "reference with a point": (
        "train",
        {"augmentation": "@augmentations.strong"},
        ["'augmentation'", "did you mean '@augmentations#strong'?"],
    ),
    "reference to a list that is not there": (
        "train",
        {"augmentation": "@augmentations#storng"},
        ["'@augmentations#storng'", "did you mean '@augmentations#strong'?"],
    ),
    "reference into a reference": (
        "train",
        {"epochs": "@augmentation#0#prob"},
        ["'augmentation' is '@augmentations#mild'", "@ does not reach"],
    ),
    "circle": ("train", {"epochs": "@val_interval", "val_interval": "@epochs"}, ["epochs ->"]),
    "circle through an expression": (
        "train",
        {"crop_size": "$@train#dataset.crop_size"},
        ["refers back to itself", "crop_size"],
    ),
    "section replaced whole": (
        "train",
        {"train": {"inferer": {"_target_": "SimpleInferer"}}},
        ["@train#", "replaces all of 'train'"],
    ),
    "misspelt name of the library": (
        "train",
        {"loss": "%configs/losses.json#focla"},
        ["'loss'", "'focla'", "losses.json", "did you mean 'focal'?"],
    ),
    "misspelt library": (
        "train",
        {"loss": "%configs/loses.json#focal"},
        ["'loss'", "loses.json, which does not exist", "did you mean 'configs/losses.json'?"],
    ),
    "macro of what is not there": (
        "train",
        {"optimizer": "%optimiser"},
        ["'optimizer'", "'optimiser'", "did you mean 'optimizer'?"],
    ),
    # expressions
    "syntax": ("train", {"network": "$@network_def.to(@device"}, ["'network'", "no valid Python"]),
    "two statements": ("train", {"seed": "$1; 2"}, ["'seed'", "one Python expression"]),
    "name without import": ("train", {"seed": "$time.time()"}, ["'time'", "no import gives"]),
    "name of a key without @": (
        "train",
        {"learning_rate": "$0.002 * batch_size"},
        ["'learning_rate'", "did you mean '@batch_size'?"],
    ),
    "what a module does not have": (
        "train",
        {"model_dir": "$os.path.jion(@bundle_root, 'models')"},
        ["os.path.jion", "did you mean 'join'?"],
    ),
    "dotted import": (
        "train",
        {"+imports": ["$import os.path"]},
        ["'imports#", "$import os.path as path"],
    ),
    "import of what is not there": ("train", {"+imports": ["$import tourch"]}, ["import tourch"]),
    "import of a name that is not there": (
        "train",
        {"+imports": ["$from custom.losses import AffinityLos"]},
        ["'AffinityLos'", "did you mean 'AffinityLoss'?"],
    ),
    "two imports in one": ("train", {"+imports": ["$import json, math"]}, ["one name per"]),
    # components
    "target without its module": (
        "train",
        {"loss": {**COMPONENT, "_target_": "custom.loses.AffinityLoss"}},
        ["'loss#_target_'", "no module 'custom.loses'", "did you mean 'custom.losses.AffinityL"],
    ),
    "target that its module lacks": (
        "train",
        {"loss": {**COMPONENT, "_target_": "custom.losses.AffinityLos"}},
        ["'loss#_target_'", "did you mean 'custom.losses.AffinityLoss'?"],
    ),
    "bare target": (
        "train",
        {"train#trainer#_target_": "SupervisedTraner"},
        ["did you mean 'SupervisedTrainer'?"],
    ),
    "unknown argument": (
        "train",
        {"network_def#network#chanels": [4, 8]},
        ["'network_def#network#chanels'", "did you mean 'channels'?"],
    ),
    "argument of the class before": (
        "train",
        {"loss#_target_": "monai.losses.FocalLoss"},
        ["'loss#layout'", "FocalLoss does not take"],
    ),
    "missing argument": (
        "train",
        {"network_def#network": NETWORK},
        ["'network_def#network'", "lacks 'out_channels'"],
    ),
    "misspelt word of MONAI": (
        "train",
        {"network_def#context#_disable_": True},
        ["_disable_", "did you mean '_disabled_'?"],
    ),
    "misspelt target": (
        "train",
        {"balance": {"_traget_": "custom.class_balance.class_balance"}},
        ["'balance#_traget_'", "did you mean '_target_'?"],
    ),
    "misspelt mode": ("train", {"loss": {**COMPONENT, "_mode_": "call"}}, ["'loss#_mode_'"]),
    "requirement without @": (
        "train",
        {"loss": {**COMPONENT, "_requires_": "bootstrap"}},
        ["'loss#_requires_'", "did you mean '@bootstrap'?"],
    ),
    # how a run begins
    "lost beginning": (
        "train",
        {"initialize": ["$monai.utils.set_determinism(@seed)"]},
        ["'initialize'", "'$@bootstrap' and '@preflight'"],
    ),
    "lost bootstrap": ("train", {"initialize": ["@preflight"]}, ["'initialize'", "$@bootstrap"]),
    # files
    "key twice": ("train", '{"epochs": 3, "epochs": 4}', ["'epochs' stands twice"]),
    "nested key twice": (
        "train",
        '{"deformation": {"zoom": [0.9, 1.1], "prob": 0.5, "prob": 1}}',
        ["'deformation#prob' stands twice"],
    ),
    "broken JSON": ("train", '{"epochs": 3,\n "seed" 4}', ["line 2, column 9", "':'"]),
    "no object": ("train", "[1, 2]", ["must hold a JSON object"]),
}


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_mistake_in_an_overlay_is_found(name: str) -> None:
    config, overlay, words = OVERLAYS[name]
    first = sentences(config, overlay, {}, None)[0]
    assert [word for word in words if word not in first] == [], first
    assert "configs/mine.json" in first
    assert "\n" not in first


COMMAND_LINES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "misspelt key": ("train", {"epoch": 1}, ["'epoch'", "did you mean 'epochs'?"]),
    "key of a section without it": ("train", {"window": 448}, ["did you mean 'features#window'?"]),
    "plain section": ("train", {"train#inferrer": {}}, ["did you mean 'train#inferer'?"]),
    "key of another run": ("preprocess", {"epochs": 3}, ["'epochs'", "train.json", "leave it out"]),
    "misspelt section": ("train", {"netwrk_def#x": 4}, ["did you mean 'network_def"]),
    "word for a flag": ("train", {"amp": "false"}, ["'amp'", "'false'", "say False"]),
    "number for a flag": ("train", {"use_raw": 0}, ["'use_raw'", "is 0", "true or false"]),
    "null": ("train", {"ignore_label": "null"}, ["'ignore_label'", "in an overlay"]),
    "value left out": ("train", {"epochs": True}, ["'epochs'", "is its value left out?"]),
    "value of a word left out": ("train", {"backbone": True}, ["'backbone'", "left out?"]),
    "None": ("train", {"max_gradient_norm": None}, ["'max_gradient_norm'", "null in an overlay"]),
    "plus": ("train", {"+initialize": ["$@bootstrap", "@preflight"]}, ["'+initialize'", "overlay"]),
    "name of a list": (
        "train",
        {"augmentation": "strong"},
        ["'augmentation'", "did you mean '@augmentations#strong'?"],
    ),
    "unknown argument": (
        "train",
        {"network_def#base_chanels": 4},
        ["'network_def#base_chanels'", "TokenUNet does not take"],
    ),
}


@pytest.mark.parametrize("name", COMMAND_LINES)
def test_a_mistake_on_the_command_line_is_found(name: str) -> None:
    config, overrides, words = COMMAND_LINES[name]
    first = sentences(config, None, overrides, None)[0]
    assert first.startswith("command line: ")
    assert [word for word in words if word not in first] == [], first


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("lonely", 3, ["'lonely'", "nothing refers to"]),
        ("train#lonely", {"a": 1}, ["'train#lonely'", "nothing refers to"]),
        ("epocs", 40, ["'epocs'", "did you mean 'epochs'?"]),
    ],
)
def test_a_key_of_the_configuration_itself_that_nothing_uses_is_found(
    key: str, value: Any, words: list[str]
) -> None:
    path = Path("configs/train.json")
    content = json.loads(path.read_text())
    holder, _, last = key.rpartition("#")
    (content[holder] if holder else content)[last] = value
    path.write_text(json.dumps(content))
    (sentence,) = sentences("train", None, {}, None)
    assert [word for word in ["configs/train.json", *words] if word not in sentence] == [], sentence


def test_a_run_that_is_not_there_is_named() -> None:
    (sentence,) = sentences("train", None, {}, "trainig")
    assert "'trainig'" in sentence and "did you mean 'training'?" in sentence
    (sentence,) = sentences("train", None, {}, "inference")
    assert "there are training, run" in sentence


def test_a_file_that_is_not_there_is_named() -> None:
    (found,) = findings_of(["configs/train.json", "configs/experiments/raw_olny.json"], {}, None)
    assert "does not exist" in str(found) and "'configs/experiments/raw_only.json'" in str(found)
    (found,) = findings_of(["configs/train.json,configs/losses.json"], {}, None)
    assert "one quoted list" in str(found)


def test_an_overlay_alone_is_no_configuration() -> None:
    (found,) = findings_of(["configs/experiments/raw_only.json"], {}, None)
    assert "is an overlay" in str(found)


def test_all_mistakes_are_told_most_important_first() -> None:
    overlay = {"loss": {**COMPONENT, "gama": 2.0}, "epoch": 3, "amp": "false"}
    found = sentences("train", overlay, {}, None)
    assert [sentence.split("'")[1] for sentence in found] == ["epoch", "amp", "loss#gama"]


def test_an_import_that_breaks_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken_module.py").write_text("raise RuntimeError('not today')")
    monkeypatch.syspath_prepend(tmp_path)
    overlay = {"loss": {"_target_": "broken_module.Loss"}, "+imports": ["$import broken_module"]}
    imported, located = sentences("train", overlay, {}, None)
    assert "not today" in imported and "import broken_module" in imported
    assert "not today" in located and "'loss#_target_'" in located
