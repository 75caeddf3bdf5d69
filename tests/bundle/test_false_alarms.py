"""The static check has nothing to say about what the bundle ships and the documents tell."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from fire.parser import DefaultParseValue
from scripts.check_config import findings_of

from custom.config_check.check import Request, config_findings
from custom.config_check.components import Targets
from custom.config_check.findings import Finding, mistakes
from custom.config_check.sources import Source, neighbours
from tests.bundle import tiny
from tests.bundle.overlays import EXPERIMENTS, RECIPES, config, content, runs_of
from tests.bundle.tiny import CONFIGS, ROOT

OVERLAYS = (*EXPERIMENTS, *RECIPES)
README = (ROOT / "README.md").read_text()
DOCUMENTS = "\n".join([README, (ROOT / "bundle" / "docs" / "experiments.md").read_text()])
NOT_OURS = ("config_file", "bundle_root")


@pytest.fixture(scope="module")
def targets() -> Targets:
    """What was found stays found."""
    return Targets()


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The folder of a bundle, in which the README's own overlay lies, too."""
    shutil.copytree(CONFIGS, tmp_path / "configs")
    (mine,) = re.findall(r"^\{\"backbone\": .*\}$", README, re.MULTILINE)
    (tmp_path / "configs" / "experiments" / "mine.json").write_text(mine)
    monkeypatch.chdir(tmp_path)
    yield


def alarms(run: str, overlays: tuple[str, ...], targets: Targets) -> list[Finding]:
    name = f"{tiny.CONFIG_OF[run]}.json"
    others = {n: c for n, c in neighbours(str(CONFIGS / name)).items() if n != name}
    sources = [Source(name, config(run)), *(Source(f"{o}.json", content(o)) for o in overlays)]
    return mistakes(config_findings(Request(sources, {}, others, run), targets))


@pytest.mark.parametrize("run", tiny.RUNS)
def test_shipped_configurations_are_right(run: str) -> None:
    assert findings_of([str(CONFIGS / f"{tiny.CONFIG_OF[run]}.json")], {}, run) == []


@pytest.mark.parametrize("run", tiny.RUNS)
def test_every_overlay_is_right_for_every_run_that_it_can_be_laid_over(
    run: str, targets: Targets
) -> None:
    for overlay in OVERLAYS:
        parents = {key.removeprefix("+").split("#")[0] for key in content(overlay) if "#" in key}
        if parents <= set(config(run)):
            assert alarms(run, (overlay,), targets) == [], overlay


@pytest.mark.slow
@pytest.mark.parametrize("run", ["preprocessing", "training", "inference"])
def test_every_pair_of_overlays_is_right(run: str, targets: Targets) -> None:
    taking = [overlay for overlay in OVERLAYS if run in runs_of(overlay)]
    assert len(taking) > 3
    for pair in combinations(taking, 2):
        assert alarms(run, pair, targets) == [], pair


def runs() -> list[tuple[str, str]]:
    """(run, options) of every bundle run in README and experiments.md."""
    text = DOCUMENTS.replace("$NAME", "raw_only").replace("$CACHE", "cache")
    return re.findall(r"^python -m monai\.bundle run (\w+) (.*)$", text, re.MULTILINE)


@pytest.mark.usefixtures("bundle")
@pytest.mark.parametrize(("run", "options"), runs())
def test_commands_of_the_documents_are_right(run: str, options: str) -> None:
    given = parsed(options)
    files = given.pop("config_file")
    names = [files] if isinstance(files, str) else files
    assert mistakes(findings_of(names, given, run)) == []


def parsed(options: str) -> dict[str, Any]:
    """``--key value`` as fire takes it."""
    parts = shlex.split(options)
    assert len(parts) % 2 == 0, options
    return {
        key.removeprefix("--"): DefaultParseValue(value)
        for key, value in zip(parts[::2], parts[1::2], strict=True)
    }


def inline() -> list[str]:
    """``--key value`` in the README's text, but what it shows as mistakes."""
    found = re.findall(r"`(--[a-z_#0-9]+ (?:\"[^`]*\"|[^` ]+))`", README)
    keys = {key for run in tiny.RUNS for key in config(run)}
    ours = [option for option in found if re.split(r"[# ]", option[2:])[0] in keys]
    return [option for option in ours if option != "--amp false" and "<" not in option]


@pytest.mark.usefixtures("bundle")
@pytest.mark.parametrize("option", inline())
def test_options_in_the_readme_are_right_for_a_run(option: str) -> None:
    top = re.split(r"[# ]", option[2:])[0]
    for run in tiny.RUNS:
        if top in config(run):
            files = [f"configs/{tiny.CONFIG_OF[run]}.json"]
            assert mistakes(findings_of(files, parsed(option), run)) == []


def test_the_readme_has_options() -> None:
    assert len(inline()) > 5
    assert len(runs()) > 7


@pytest.mark.usefixtures("bundle")
@pytest.mark.parametrize("run", ["preprocessing", "training", "inference"])
def test_an_overlay_for_several_runs_may_have_keys_of_each(run: str) -> None:
    overlay = {"token_channels": 768, "epochs": 3, "compression": "zstd", "write_lsds": True}
    Path("configs/experiments/mine.json").write_text(json.dumps(overlay))
    files = [f"configs/{tiny.CONFIG_OF[run]}.json", "configs/experiments/mine.json"]
    assert findings_of(files, {}, run) == []


@pytest.mark.parametrize("run", tiny.RUNS)
def test_settings_of_a_tiny_run_are_right(run: str, tmp_path: Path) -> None:
    files = [str(CONFIGS / f"{tiny.CONFIG_OF[run]}.json")]
    assert mistakes(findings_of(files, tiny.settings(run, tmp_path), run)) == []


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*_*.json")), ids=lambda path: path.stem)
def test_an_overlay_beside_the_configurations_is_right_with_every_experiment(
    path: Path, targets: Targets
) -> None:
    run = next(run for run, name in tiny.CONFIG_OF.items() if path.stem.endswith(f"_{name}"))
    whole = Source(path.name, json.loads(path.read_text()))
    for overlay in [o for o in OVERLAYS if run in runs_of(o)]:
        name = f"{tiny.CONFIG_OF[run]}.json"
        sources = [Source(name, config(run)), Source(overlay, content(overlay)), whole]
        assert mistakes(config_findings(Request(sources, run_id=run), targets)) == [], overlay
