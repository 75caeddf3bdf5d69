"""A small bundle that is safe, and the project that inspects it; dangers are planted into both."""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from custom.inspection.bundle import inspect_bundle
from custom.inspection.findings import Report
from custom.inspection.manifest import MANIFEST, manifest_text
from custom.inspection.own_project import OwnProject

CODE = "class Network:\n    pass\n\n\ndef fetch():\n    pass\n"
CONFIG = {
    "imports": ["$import os", "$import torch"],
    "bundle_root": ".",
    "width": 4,
    "model_dir": "$os.path.join(@bundle_root, 'models')",
    "network_def": {"_target_": "custom.nets.Network", "channels": "$@width * 2"},
    "network": "$@network_def.to(torch.device('cpu'))",
    "train": {"transforms": [{"_target_": "Compose", "transforms": []}]},
    "run": ["$@network.eval"],
}
LOGGING = """[loggers]
keys=root
[handlers]
keys=console
[formatters]
keys=line
[logger_root]
level=INFO
handlers=console
[handler_console]
class=StreamHandler
args=(sys.stdout,)
formatter=line
[formatter_line]
format=%(asctime)s %(message)s
"""


@dataclass(frozen=True)
class Received:
    """A bundle's folder, the project, and a file that any danger would write if it ran."""

    folder: Path
    own: OwnProject
    marker: Path

    def report(self, path: Path | None = None) -> Report:
        return inspect_bundle(path or self.folder, self.own)

    def write(self, path: str, content: str | bytes) -> Path:
        """A file of the bundle; the manifest knows it."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        self.renew_manifest()
        return file

    def configure(self, **changes: Any) -> None:
        self.write("configs/train.json", json.dumps({**CONFIG, **changes}))

    def renew_manifest(self) -> None:
        files = {
            path.relative_to(self.folder).as_posix(): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and path.name != MANIFEST
        }
        listed = {k: (len(v), hashlib.sha256(v).hexdigest()) for k, v in files.items()}
        (self.folder / MANIFEST).write_text(manifest_text("small", "1", listed))

    def zipped(self, more: Mapping[str | zipfile.ZipInfo, bytes] | None = None) -> Path:
        """The bundle as a zip, with more members that its manifest does not know."""
        path = self.folder.with_suffix(".zip")
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(self.folder.rglob("*")):
                if file.is_file():
                    archive.write(file, f"small/{file.relative_to(self.folder).as_posix()}")
            for info, content in (more or {}).items():
                archive.writestr(info, content)
        return path


def received_bundle(place: Path) -> Received:
    """A safe bundle below a folder."""
    own = OwnProject(place / "own" / "custom", place / "own" / "bundle")
    bundle = Received(place / "small", own, place / "marker")
    metadata = {"version": "1", "required_packages_version": {"zarr": "3.1.6"}}
    for folder in (own.custom, bundle.folder / "custom"):
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text('__version__ = "1"\n')
        (folder / "nets.py").write_text(CODE)
    (own.bundle / "configs").mkdir(parents=True)
    (own.bundle / "scripts").mkdir()
    (own.bundle / "configs" / "metadata.json").write_text(json.dumps(metadata))
    (own.bundle / "configs" / "train.json").write_text(json.dumps(CONFIG))
    bundle.write("configs/metadata.json", json.dumps(metadata))
    bundle.write("configs/logging.conf", LOGGING)
    bundle.write("requirements.txt", "torch==2.13.0\nzarr>=3.0\n")
    bundle.write("docs/README.md", "# small\n")
    (bundle.folder / "models").mkdir()
    torch.save({"weight": torch.ones(2, 3)}, bundle.folder / "models" / "model.pt")
    bundle.configure()
    return bundle
