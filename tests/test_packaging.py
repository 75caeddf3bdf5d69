"""One version everywhere, and everything that is imported is declared."""

import ast
import json
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import custom

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OURS = {"bench", "custom", "scripts", "tests"}


def canonical(requirement: str) -> str:
    """``funlib.geometry>=0.3`` -> ``funlib-geometry``."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name[0]).lower()


OPTIONAL = {"custom/bioimageio.py": "export", "custom/export.py": "export"}
"""Files that are imported where their extra is installed, and nowhere else."""


def declared(*extras: str) -> set[str]:
    """What the package needs, and with it its extras."""
    project = PYPROJECT["project"]
    optional = [r for extra in extras for r in project["optional-dependencies"][extra]]
    return {canonical(r) for r in (*project["dependencies"], *optional)}


EXTRAS = tuple(PYPROJECT["project"]["optional-dependencies"])


STANDARD = set(sys.stdlib_module_names)


def third_party_imports(folder: Path) -> dict[str, set[str]]:
    """Packages that are neither ours nor Python's own, with the files that import them."""
    found: dict[str, set[str]] = {}
    for path in sorted(folder.rglob("*.py")):
        beside = {neighbour.stem for neighbour in path.parent.glob("*.py")}  # of a program's file
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [f"{node.module}"] if isinstance(node, ast.ImportFrom) else []
            for top in {name.split(".")[0] for name in names} - OURS - beside - STANDARD:
                found.setdefault(top, set()).add(str(path.relative_to(ROOT)))
    return found


def test_pyproject_and_package_have_one_version() -> None:
    assert PYPROJECT["project"]["version"] == custom.__version__


def test_changelog_has_a_heading_for_the_version() -> None:
    assert f"\n## {custom.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_bundle_metadata_has_the_version() -> None:
    path = ROOT / "bundle" / "configs" / "metadata.json"
    if not path.exists():
        pytest.skip("bundle/configs/metadata.json is not there")
    metadata = json.loads(path.read_text())
    assert metadata["version"] == custom.__version__
    assert custom.__version__ in metadata["changelog"]


def test_bundle_has_the_same_licence() -> None:
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence
    assert (ROOT / "bundle" / "LICENSE").read_text() == licence


@pytest.mark.parametrize("folder", ["custom", "bundle", "bench", "tests"])
def test_every_import_is_a_declared_dependency(folder: str) -> None:
    distributions = packages_distributions()
    undeclared = [
        (package, file)
        for package, files in third_party_imports(ROOT / folder).items()
        for file in sorted(files)
        if not {canonical(d) for d in distributions.get(package, [package])} & known_to(file)
    ]
    assert undeclared == []


def known_to(file: str) -> set[str]:
    """Packages that a file may import."""
    if file.startswith(("bench/", "tests/")):
        return declared(*EXTRAS)
    return declared(OPTIONAL[file]) if file in OPTIONAL else declared()


def test_the_lock_is_exact_complete_and_names_no_place() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    assert [
        line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)
    ] == []
    assert "torch==2.13.0" in lines
    assert declared(*EXTRAS) <= {canonical(line) for line in lines}
