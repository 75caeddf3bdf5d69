"""Imports point one way: bottom <- middle <- top <- bundle."""

import ast
from collections.abc import Mapping, Set
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CUSTOM = ROOT / "custom"

BOTTOM = {
    "affine_arrays",
    "channels",
    "compiling",
    "datalist",
    "datalist_entry",
    "distributed",
    "downloads",
    "disk_space",
    "errors",
    "file_arrays",
    "files",
    "folder_lock",
    "json_fields",
    "label_classes",
    "locations",
    "loss_terms",
    "memory",
    "n5_metadata",
    "network_weights",
    "planes",
    "precomputed_metadata",
    "standard_output",
    "volumes",
    "voxel_grid",
    "working_grid",
    "zarr_metadata",
}
MIDDLE = {"class_losses", "features", "losses", "metrics", "networks", "segmentation", "targets"}
ARRAYS_ONLY = {"class_losses", "loss_terms", "losses", "metrics", "segmentation", "targets"}
FILE_MODULES = {
    "h5py",
    "io",
    "json",
    "os",
    "pathlib",
    "shutil",
    "tempfile",
    "tensorstore",
    "tifffile",
    "zarr",
}
FILE_ROOMS = {
    "custom.affine_arrays",
    "custom.datalist",
    "custom.datalist_entry",
    "custom.file_arrays",
    "custom.files",
    "custom.locations",
    "custom.volumes",
}
ABOVE_CUSTOM = {"bench", "bundle", "scripts", "tests"}

Imports = Mapping[str, Set[str]]


def imports_of(source: str) -> set[str]:
    """Full names of what a module's source imports, at any depth of nesting."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError("relative import; write custom.<module>")
            found.add(f"{node.module}")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def room(module: str) -> str:
    """``custom.features.cache`` -> ``features``."""
    return module.split(".")[1] if "." in module else ""


def layer(module: str) -> int:
    """0 bottom, 1 middle, 2 top."""
    return 0 if room(module) in BOTTOM else 1 if room(module) in MIDDLE else 2


def custom_imports(imports: Imports) -> dict[str, set[str]]:
    """Imports between the modules of ``custom`` alone."""
    return {
        name: {i for i in found if i in imports and i != name} for name, found in imports.items()
    }


def violations(imports: Imports) -> list[str]:
    """Every import that points the wrong way, as a sentence."""
    wrong = []
    for name, targets in custom_imports(imports).items():
        for target in targets - {"custom"}:
            neighbours = layer(name) == layer(target) == 1 and room(name) != room(target)
            if layer(target) > layer(name) or neighbours:
                wrong.append(f"{name} imports {target}")
    for name, found in imports.items():
        outside = {i.split(".")[0] for i in found}
        if room(name) in ARRAYS_ONLY:
            wrong += [f"{name} opens files: {m}" for m in sorted(outside & FILE_MODULES)]
            wrong += [f"{name} opens files: {m}" for m in sorted(found & FILE_ROOMS)]
        if room(name) != "blockwise" and outside & {"volara", "daisy"}:
            wrong.append(f"{name} imports volara")
        wrong += [f"{name} imports {m}" for m in sorted(outside & ABOVE_CUSTOM)]
    return wrong


def all_imports() -> dict[str, set[str]]:
    found = {}
    for path in sorted(CUSTOM.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = imports_of(path.read_text())
    return found


def test_imports_point_one_way() -> None:
    assert violations(all_imports()) == []


def test_imports_have_no_cycle() -> None:
    TopologicalSorter(custom_imports(all_imports())).prepare()


@pytest.mark.parametrize("path", sorted(CUSTOM.rglob("__init__.py")), ids=lambda p: p.parent.name)
def test_init_files_do_nothing(path: Path) -> None:
    body = ast.parse(path.read_text()).body
    if body and isinstance(body[0], ast.Expr):
        body = body[1:]
    names = [ast.unparse(n.targets[0]) for n in body if isinstance(n, ast.Assign)]
    assert len(names) == len(body)
    assert names == (["__version__"] if path.parent == CUSTOM else [])


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("custom.volumes", "custom.losses"),
        ("custom.losses", "custom.datasets"),
        ("custom.networks.unet", "custom.features.cache"),
        ("custom.metrics", "custom.volumes"),
        ("custom.targets.lsds", "pathlib"),
        ("custom.targets.lsds", "custom.files"),
        ("custom.datasets", "volara.blockwise"),
        ("custom.datasets", "scripts.demo"),
    ],
)
def test_an_arrow_that_turns_round_is_seen(importer: str, imported: str) -> None:
    imports = (
        {importer: {imported}, imported: set()} if "custom" in imported else {importer: {imported}}
    )
    assert violations(imports)


def test_a_cycle_is_seen() -> None:
    with pytest.raises(CycleError):
        imports = {"custom.a": {"custom.b"}, "custom.b": {"custom.a"}}
        TopologicalSorter(custom_imports(imports)).prepare()


def test_imports_are_found_at_any_depth() -> None:
    source = "import a.b\ndef f():\n    from c import d\n    if x:\n        import e as g"
    assert imports_of(source) == {"a.b", "c", "c.d", "e"}
