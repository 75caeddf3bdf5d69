"""Planted dangers: each is found, and none of them runs."""

import io
import json
import os
import pickle
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from custom.errors import InputError
from tests.inspection.bundles import CODE, LOGGING, Received, received_bundle

Plant = Callable[[Received], Path | None]


@pytest.fixture
def bundle(tmp_path: Path) -> Received:
    return received_bundle(tmp_path)


class Gadget:
    """What a pickle can be made to do."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def touch(bundle: Received) -> str:
    return f"touch {bundle.marker}"


def configured(**changes: Any) -> Plant:
    """A configuration with a change; MARKER in it becomes the path of the marker."""

    def plant(bundle: Received) -> None:
        text = json.dumps(changes).replace("MARKER", str(bundle.marker))
        bundle.configure(**json.loads(text))

    return plant


def written(path: str, content: str | bytes) -> Plant:
    def plant(bundle: Received) -> None:
        bundle.write(path, content)

    return plant


def pickled(path: str, **options: Any) -> Plant:
    def plant(bundle: Received) -> None:
        bundle.write(path, pickle.dumps({"weight": Gadget(touch(bundle))}, **options))

    return plant


def saved_by_torch(bundle: Received) -> None:
    content = io.BytesIO()
    torch.save({"weight": Gadget(touch(bundle))}, content)
    bundle.write("models/model.pt", content.getvalue())


def array_of_objects(bundle: Received) -> None:
    content = io.BytesIO()
    np.save(content, np.array([Gadget(touch(bundle))], dtype=object), allow_pickle=True)
    bundle.write("models/mean.npy", content.getvalue())


def torchscript(bundle: Received) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("model/code/__torch__.py", "op_version_set = 1")
    bundle.write("models/model.pt", content.getvalue())


def link(bundle: Received) -> None:
    (bundle.folder / "docs" / "x.md").symlink_to("/etc/passwd")


def fifo(bundle: Received) -> None:
    os.mkfifo(bundle.folder / "docs" / "x.md")


def executable(bundle: Received) -> None:
    bundle.write("docs/x.md", "text").chmod(0o755)


def changed_later(bundle: Received) -> None:
    (bundle.folder / "docs" / "README.md").write_text("# other\n")


def missing(bundle: Received) -> None:
    (bundle.folder / "docs" / "README.md").unlink()


def without_manifest(bundle: Received) -> None:
    (bundle.folder / "manifest.json").unlink()


def member(name: str, content: bytes = b"x", mode: int = 0o100644) -> Plant:
    def plant(bundle: Received) -> Path:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        return bundle.zipped({info: content})

    return plant


def twice(bundle: Received) -> Path:
    with pytest.warns(UserWarning, match="Duplicate name"):
        return bundle.zipped({zipfile.ZipInfo("small/configs/train.json"): b"{}"})


def bomb(bundle: Received) -> Path:
    info = zipfile.ZipInfo("small/docs/x.txt")
    info.compress_type = zipfile.ZIP_DEFLATED
    return bundle.zipped({info: b"0" * (17 * 2**20)})


def damaged(name: str) -> Plant:
    """A member whose packed bytes are no packed bytes."""

    def plant(bundle: Received) -> Path:
        info = zipfile.ZipInfo(name)
        info.compress_type = zipfile.ZIP_DEFLATED
        path = bundle.zipped({info: bytes(range(256)) * 20})
        content = bytearray(path.read_bytes())
        start = content.index(name.encode()) + len(name)
        content[start : start + 40] = bytes(255 - b for b in content[start : start + 40])
        path.write_bytes(content)
        return path

    return plant


def weights_damaged_inside(bundle: Received) -> None:
    """A file of torch's, itself a zip, whose pickle cannot be unpacked."""
    name, content = "model/data.pkl", io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, bytes(range(256)) * 20)
    packed = bytearray(content.getvalue())
    start = 30 + len(name)
    packed[start : start + 20] = bytes(255 - b for b in packed[start : start + 20])
    bundle.write("models/model.pt", bytes(packed))


def other_name_inside(bundle: Received) -> Path:
    """A member whose own header has another name than the table at the zip's end."""
    path = bundle.zipped({zipfile.ZipInfo("small/docs/aa.md"): b"x"})
    content = path.read_bytes()
    path.write_bytes(content.replace(b"small/docs/aa.md", b"small/docs/bb.md", 1))
    return path


SYSTEM = "import os\nos.system('touch MARKER')\n"
DANGERS: dict[str, tuple[Plant, str]] = {
    "target": (configured(x={"_target_": "os.system", "command": "touch MARKER"}), "'os.system'"),
    "builtin_target": (configured(x={"_target_": "eval"}), "_target_ 'eval'"),
    "target_through_torch": (configured(x={"_target_": "torch.os.system"}), "torch.os.system"),
    "class_through_torch": (configured(x={"_target_": "torch.Foo.Popen"}), "torch.Foo.Popen"),
    "function_of_torch": (configured(x={"_target_": "torch.utils.data.os"}), "is no class"),
    "monai_runs_bundles": (configured(x={"_target_": "monai.bundle.run"}), "monai.bundle.run"),
    "monai_class_by_name": (configured(x={"_target_": "ConfigWorkflow"}), "may run"),
    "reader_by_word": (
        configured(x={"_target_": "LoadImaged", "reader": "os.system", "command": "touch MARKER"}),
        "may run or write",
    ),
    "merger_by_word": (
        configured(x={"_target_": "PatchInferer", "merger_cls": "os.system"}),
        "may run or write",
    ),
    "loss_that_fetches": (configured(x={"_target_": "PerceptualLoss"}), "may run or write"),
    "logger": (configured(x={"_target_": "ignite.handlers.WandBLogger"}), "WandBLogger"),
    "monai_through_os": (configured(x={"_target_": "monai.os.Compose"}), "lead through modules"),
    "hub": (configured(x={"_target_": "torch.hub.load"}), "torch.hub.load"),
    "function_of_custom": (configured(x={"_target_": "custom.nets.fetch"}), "custom.nets.fetch"),
    "target_expression": (configured(x={"_target_": "$os.system"}), "no plain name"),
    "overlaid_target": (written("configs/o.json", '{"x#_target_": "os.system"}'), "os.system"),
    "nested_target": (configured(x=[[{"y": {"_target_": "os.system"}}]]), "x#0#0#y#_target_"),
    "call": (configured(x="$os.system('touch MARKER')"), "calls 'os.system'"),
    "eval": (configured(x="$eval('1')"), "calls 'eval'"),
    "dunder": (configured(x="$().__class__.__base__.__subclasses__()"), "__subclasses__"),
    "getattr": (configured(x="$getattr(os, 'sys' + 'tem')('id')"), "put together itself"),
    "lambda": (configured(x="$(lambda: 1)()"), "Lambda"),
    "comprehension": (configured(x="$[f('id') for f in [os.system]]"), "hands on 'os.system'"),
    "renamed": (configured(x="$[len('id') for len in [1]]"), "another meaning"),
    "modules": (configured(x="$sys.modules['os'].popen('id')"), "'popen'"),
    "reference_to_import": (configured(x="$@imports#0.getcwd()"), "may be a module"),
    "handed_module": (configured(x="$os", y="$@x.getcwd()"), "hands on 'os'"),
    "format": (configured(x="$'{0.a}'.format(1)"), "'format'"),
    "sys_path": (
        configured(imports=["$import sys"], x="$sys.path.append('evil')"),
        "'sys.path.append'",
    ),
    "import": (configured(imports=["$import subprocess"]), "'subprocess'"),
    "import_as": (configured(imports=["$import subprocess as os"]), "'subprocess'"),
    "import_elsewhere": (configured(x="$import os"), "outside of imports"),
    "import_of_its_own": (configured(imports=["$import custom.evil"]), "custom.evil"),
    "from_import": (configured(imports=["$from os import system"]), "os.system"),
    "two_meanings": (configured(imports=["$import torch as os"]), "name of another module"),
    "debug": (configured(x={"_target_": "Compose", "_mode_": "debug"}), "debugger"),
    "breakpoint": (configured(x={"_target_": "Compose", "_debug_": True}), "open a debugger"),
    "macro": (configured(x="%/etc/evil.json#x"), "no JSON inside the bundle"),
    "macro_above": (configured(x="%../evil.json#x"), "no JSON inside the bundle"),
    "path": (configured(output_dir="/home/someone"), "leads out of the bundle"),
    "path_above": (configured(output_dir="../../x"), "leads out of the bundle"),
    "path_in_expression": (configured(x="$os.path.join('/home', 'x')"), "leads out"),
    "upsampler": (configured(features={"upsampler": "evil"}), "code of an upsampler"),
    "overlaid_upsampler": (
        written("configs/o.json", '{"features#upsampler": "evil"}'),
        "code of an upsampler",
    ),
    "remote_code": (configured(x={"trust_remote_code": True}), "would load code"),
    "unsafe_load": (configured(x={"weights_only": False}), "would load code"),
    "duplicate_key": (written("configs/o.json", '{"a": {"b": 1, "b": 2}}'), "'b' twice"),
    "deep": (written("configs/o.json", "[" * 3000 + "]" * 3000), "nested too deeply"),
    "no_json": (written("configs/o.json", "{"), "no JSON that can be judged"),
    "yaml": (written("configs/o.yaml", "a: 1"), "only JSON is judged"),
    "yml": (written("configs/o.yml", "a: 1"), "only JSON is judged"),
    "altered_code": (written("custom/nets.py", CODE + SYSTEM), "differs from this project's file"),
    "telling_line": (written("custom/nets.py", SYSTEM), "import os (line 1)"),
    "new_code": (written("custom/evil.py", SYSTEM), "does not have"),
    "code_elsewhere": (written("torch/__init__.py", SYSTEM), "outside of custom/ and scripts/"),
    "startup": (written("sitecustomize.py", SYSTEM), "at every start"),
    "conftest": (written("conftest.py", SYSTEM), "pytest runs it"),
    "site_packages": (written("x.pth", "import os"), "site-packages"),
    "compiled": (written("custom/__pycache__/nets.pyc", b"x"), "compiled Python"),
    "library": (written("custom/x.so", b"\x7fELF"), "compiled program"),
    "disguised": (written("docs/x.txt", b"\x7fELF"), "compiled program"),
    "shell": (written("run.sh", "#!/bin/sh\n"), "is a program"),
    "script": (written("docs/x.txt", "#!/bin/sh\n"), "is a script"),
    "notebook": (written("docs/x.ipynb", "{}"), "notebooks run code"),
    "hidden": (written(".git/config", "x"), "is hidden"),
    "picture": (written("docs/x.svg", "<svg><script>1</script></svg>"), "script in it"),
    "unknown_kind": (written("docs/x.xyz", "x"), "no bundle needs"),
    "torch_pickle": (saved_by_torch, "would import 'posix system'"),
    "pickle": (pickled("models/x.pkl"), "is a pickle"),
    "old_pickle": (pickled("models/model.pt", protocol=0), "would import 'posix system'"),
    "new_pickle": (pickled("models/model.pt", protocol=5), "would import 'posix system'"),
    "disguised_pickle": (pickled("models/x.safetensors"), "is a pickle"),
    "objects": (array_of_objects, "array of objects"),
    "torchscript": (torchscript, "TorchScript"),
    "logging_args": (
        written("configs/logging.conf", LOGGING.replace("(sys.stdout,)", "(os.system('id'),)")),
        "which Python would evaluate",
    ),
    "logging_class": (
        written("configs/logging.conf", LOGGING.replace("StreamHandler", "os.system")),
        "has the class 'os.system'",
    ),
    "logging_defaults": (
        written("configs/logging.conf", f"{LOGGING}defaults=os.system('id')\n"),
        "which Python would evaluate",
    ),
    "event_in_picture": (written("docs/x.svg", "<svg\nONLOAD ='1'/>"), "script in it"),
    "requirement": (written("requirements.txt", "torchh==1"), "does not need"),
    "index": (written("requirements.txt", "--index-url http://x\ntorch"), "no plain requirement"),
    "download": (
        written("large_files.yml", 'large_files:\n- path: "../x.pt"\n  url: "https://x/y"\n'),
        "not inside models/",
    ),
    "download_unhashed": (
        written("large_files.yml", "large_files:\n- path: models/x.pt\n  url: http://x/y\n"),
        "without its sha256",
    ),
    "executable": (executable, "permission to be run"),
    "link": (link, "is a link"),
    "fifo": (fifo, "neither a file nor a folder"),
    "changed": (changed_later, "changed since the manifest"),
    "missing": (missing, "missing"),
    "no_manifest": (without_manifest, "no manifest.json"),
    "extra_member": (member("small/docs/x.txt"), "not in the manifest"),
    "zip_slip": (member("small/../../evil.txt"), "outside the bundle's folder"),
    "absolute_member": (member("/etc/evil.txt"), "outside the bundle's folder"),
    "windows_member": (member("small\\..\\evil.txt"), "outside the bundle's folder"),
    "linked_member": (member("small/docs/x.txt", b"/etc", stat.S_IFLNK | 0o777), "is a link"),
    "second_top": (member("monai/x.txt"), "more than one top folder"),
    "case": (member("small/docs/readme.MD"), "is one file with"),
    "twice": (twice, "is in the zip 2 times"),
    "bomb": (bomb, "as bombs do"),
    "damaged_member": (damaged("small/docs/x.txt"), "cannot be read"),
    "damaged_weights": (weights_damaged_inside, "is damaged"),
    "copied_import": (
        configured(x="%imports#0", y="$@x.execvp('touch', ['touch', 'MARKER'[1:]])"),
        "copies an import",
    ),
    "copied_file": (
        configured(x="%configs/train.json", y="$@x['imports'][0].abort()"),
        "copies more than one key",
    ),
    "other_name": (other_name_inside, "cannot be read"),
}


@pytest.mark.parametrize("danger", DANGERS)
def test_a_planted_danger_is_found_and_does_not_run(bundle: Received, danger: str) -> None:
    plant, words = DANGERS[danger]
    report = bundle.report(plant(bundle))
    found = [f"{item.path}: {item.what}" for item in report.findings.dangers]
    assert not report.safe
    assert any(words in line for line in found), found
    assert not bundle.marker.exists()


def test_the_bundle_without_dangers_is_safe_as_a_folder_and_as_a_zip(bundle: Received) -> None:
    for path in (bundle.folder, bundle.zipped()):
        report = bundle.report(path)
        assert report.safe, report.lines()
        assert report.files == 9


def test_everything_that_would_run_is_listed(bundle: Received) -> None:
    executed = {(item.kind, item.text) for item in bundle.report().findings.executed}
    assert {
        ("target", "custom.nets.Network"),
        ("target", "Compose"),
        ("expression", "$@width * 2"),
        ("import", "$import torch"),
    } <= executed
    assert [kind for kind, _ in executed].count("pickle") == 1


def test_inspection_loads_neither_torch_nor_monai_nor_anything_of_the_bundle(
    bundle: Received,
) -> None:
    bundle.write("custom/evil.py", f"open({str(bundle.marker)!r}, 'w')")
    own = bundle.own
    program = f"""
import sys
from pathlib import Path
from custom.inspection.bundle import inspect_bundle
from custom.inspection.own_project import OwnProject
folder, *own = {[str(bundle.folder), str(own.custom), str(own.bundle)]}
report = inspect_bundle(folder, OwnProject(*map(Path, own)))
print(len(report.findings.dangers), {{"torch", "monai"}} & set(sys.modules))
print([m for m in sys.modules.values() if str(getattr(m, "__file__", "")).startswith(folder)])
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["1 set()", "[]"]
    assert not bundle.marker.exists()


def test_the_command_answers_without_torch_and_monai(bundle: Received) -> None:
    root = Path(__file__).parents[2]
    program = f"""
import runpy, sys
sys.path[:0] = {[str(root), str(root / "bundle")]}
sys.argv = ["scripts.bundle", "inspect", {str(bundle.folder)!r}]
try:
    runpy.run_module("scripts.bundle", run_name="__main__")
finally:
    print({{"torch", "monai"}} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "set()", done.stderr
    assert "NOT SAFE" in done.stdout and done.returncode == 1  # another project's code


def test_what_a_hub_adds_is_no_danger_and_a_changed_card_is(bundle: Received) -> None:
    card = bundle.folder / "docs" / "README.md"
    root = bundle.folder / "README.md"
    root.write_text("---\ntags:\n- monai\n---\n" + card.read_text())
    (bundle.folder / ".gitattributes").write_text("*.pt filter=lfs\n")
    notes = bundle.folder / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    (notes / "x.metadata").write_text("x")
    assert bundle.report().safe, bundle.report().lines()
    root.write_text("# another card\n")
    assert not bundle.report().safe


def test_code_of_another_version_says_which_checkout_to_take(bundle: Received) -> None:
    bundle.write("custom/__init__.py", '__version__ = "2"\n')
    notes = [item.what for item in bundle.report().findings.notes]
    assert any("version 2, this project's 1" in note for note in notes)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 but not more"])
def test_what_is_no_zip_cannot_be_read(bundle: Received, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is no zip that can be read"):
        bundle.report(path)


def test_nothing_there_cannot_be_read(bundle: Received, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a zip nor a folder"):
        bundle.report(tmp_path / "nothing")


def test_lines_are_short_and_json_has_everything(bundle: Received) -> None:
    for k in range(40):
        bundle.write(f"custom/evil_{k}.py", "import os")
    report = bundle.report()
    assert len(report.lines()) < 40
    assert "and 10 more" in "\n".join(report.lines())
    assert len(json.loads(report.to_json())["dangers"]) == 40


def test_text_of_a_bundle_cannot_write_to_the_terminal(bundle: Received) -> None:
    bundle.configure(**{"x": {"_target_": "\x1b[2Jsafe\n"}})
    assert all(line.isprintable() for line in bundle.report().lines())


@pytest.mark.parametrize("place", ["configs", "configs/experiments"])
def test_an_overlay_in_the_checkout_vouches_for_nobody(bundle: Received, place: str) -> None:
    folder = bundle.own.bundle / place
    folder.mkdir(exist_ok=True)
    (folder / "downloaded.json").write_text(json.dumps({"x": {"_target_": "subprocess.run"}}))
    (folder / "broken.json").write_text("{")
    assert bundle.report().safe
    bundle.configure(x={"_target_": "subprocess.run"})
    assert any("subprocess.run" in finding.what for finding in bundle.report().findings.dangers)


def test_unfinished_code_of_ones_own_does_not_end_an_inspection(bundle: Received) -> None:
    (bundle.own.custom / "mine.py").write_text("class Mine(")
    bundle.configure(x={"_target_": "custom.mine.Mine"})
    assert any("custom.mine.Mine" in finding.what for finding in bundle.report().findings.dangers)
