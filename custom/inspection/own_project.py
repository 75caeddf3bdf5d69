"""The project that inspects: what a received bundle's code and packages are compared with."""

import ast
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

CODE = ("custom", "scripts")


@dataclass(frozen=True)
class OwnProject:
    """Code, configurations and packages of the project that runs the inspection.

    Args:
        custom: folder of its package ``custom``.
        bundle: its bundle, with ``scripts`` and ``configs``.
    """

    custom: Path
    bundle: Path

    @cached_property
    def version(self) -> str:
        """Of the code."""
        found = json.loads((self.bundle / "configs" / "metadata.json").read_text())["version"]
        return str(found)

    @cached_property
    def digests(self) -> Mapping[str, str]:
        """sha256 of every file of its code, by path as in a shared bundle."""
        found: dict[str, str] = {}
        for name, folder in zip(CODE, (self.custom, self.bundle / "scripts"), strict=True):
            for path in sorted(folder.rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    key = f"{name}/{path.relative_to(folder).as_posix()}"
                    found[key] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    @cached_property
    def packages(self) -> Sequence[str]:
        """Names of the packages that it needs."""
        metadata = json.loads((self.bundle / "configs" / "metadata.json").read_text())
        return ["monai", "torch", "numpy", *metadata["required_packages_version"]]

    def defines_class(self, name: str) -> bool:
        """Whether ``custom.<module>.<name>`` is a class of its own, not one that it imports."""
        *modules, last = name.split(".")[1:]
        path = self.custom.joinpath(*modules).with_suffix(".py") if modules else None
        return path is not None and path.is_file() and last in _classes(path)

    @cached_property
    def monai_classes(self) -> Mapping[str, set[str]]:
        """Modules below ``monai``, such as "networks.nets", by the names of their classes."""
        found: dict[str, set[str]] = {}
        folder = package_folder("monai")
        for path in sorted(folder.rglob("*.py")) if folder else []:
            module = ".".join(path.relative_to(folder or path).with_suffix("").parts)
            for line in path.read_text(errors="replace").splitlines():
                if line.startswith("class "):
                    name = line[6:].partition("(")[0].partition(":")[0].strip()
                    found.setdefault(name, set()).add(module)
        return found


def package_folder(name: str) -> Path | None:
    """Where an installed package lies; it is not imported."""
    found = find_spec(name)
    return Path(found.origin).parent if found and found.origin else None


def is_module(dotted: str) -> bool:
    """Whether an installed package has such a module, by its files alone."""
    package, *parts = dotted.split(".")
    folder = package_folder(package)
    path = folder.joinpath(*parts) if folder else None
    return path is not None and (path.is_dir() or path.with_suffix(".py").is_file())


def _classes(path: Path) -> set[str]:
    """None where it is no Python, such as a file that its user has not finished."""
    try:
        body = ast.parse(path.read_bytes()).body
    except (SyntaxError, ValueError):
        return set()
    return {node.name for node in body if isinstance(node, ast.ClassDef)}
