"""What the documents say exists: files, make targets, configuration keys."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "bundle" / "configs"
DOCUMENTS = sorted(
    path for pattern in ("*.md", "bench/*.md", "bundle/docs/*.md") for path in ROOT.glob(pattern)
)
README = (ROOT / "README.md").read_text()
LARGEST_PICTURE = 200 * 2**10


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def config(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text())
    return found


def has_key(parsed: Any, key: str) -> bool:
    for part in key.split("#"):
        if not isinstance(parsed, dict) or part not in parsed:
            return False
        parsed = parsed[part]
    return True


def runs() -> list[tuple[str, str]]:
    """(run id, options) of every bundle run in the documents."""
    text = "\n".join(path.read_text() for path in DOCUMENTS)
    return re.findall(r"^python -m monai\.bundle run (\w+) (.*)$", text, re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_local_link_leads_to_a_file(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", document.read_text())
    missing = [t for t in targets if "://" not in t and not (document.parent / t).is_file()]
    assert missing == []


def test_every_make_target_in_the_documents_exists() -> None:
    known = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        for line in re.findall(r"(?:^|`)make ([a-z0-9 ]+)", document.read_text(), re.MULTILINE):
            named = line.split("  ")[0].split()
            assert set(named) <= known, f"{document.name}: make {line}"


def test_ci_runs_what_the_readme_tells_users() -> None:
    (line,) = re.findall(r"^make (.+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert all(f"make {target} " in README for target in line.split())


def test_every_run_in_the_documents_is_defined_by_its_config_and_its_options_are_keys() -> None:
    assert {name for name, _ in runs()} == {"preprocessing", "training", "inference", "evaluating"}
    for name, options in runs():
        files = re.findall(r"configs/(\w+)\.json", options)
        parsed: dict[str, Any] = {}
        for file in files:
            parsed |= config(file)
        assert name in parsed
        for key in re.findall(r"--([\w#]+)", options):
            assert key == "config_file" or has_key(parsed, key), f"{name}: {key}"


def test_every_overlay_in_the_readme_changes_keys_that_exist() -> None:
    train = config("train")
    overlays = [json.loads(block) for block in code_blocks(README, "json")]
    changes = [overlay for overlay in overlays if "training" not in overlay]
    assert len(changes) == len(overlays) - 1, "all but the datalist"
    assert [key for overlay in changes for key in overlay if not has_key(train, key)] == []


def test_every_key_of_the_readmes_table_exists_in_the_config_of_its_runs() -> None:
    table = re.findall(r"^\| [^|]+ \| ([^|]+) \| [^|]*\|$", README, re.MULTILINE)
    configs = [config(name) for name in ("preprocess", "train", "inference", "evaluate")]
    for cell in table[2:]:
        for key in re.findall(r"`(?:--)?([a-z_#]+)[` ]", cell):
            found = any(has_key(parsed, key) for parsed in configs)
            assert found or key in ("model_type", "null", "true"), key


def test_pictures_are_small() -> None:
    for path in (ROOT / "bundle" / "docs" / "images").iterdir():
        assert path.stat().st_size < LARGEST_PICTURE, path.name
