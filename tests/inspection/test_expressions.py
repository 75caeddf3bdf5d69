"""The small grammar of expressions."""

from pathlib import Path

import pytest

import custom
from custom.inspection.expressions import (
    expression_faults,
    import_faults,
    imported,
    macro_fault,
    path_fault,
    reference_fault,
)
from custom.inspection.own_project import OwnProject
from tests.bundle import tiny

OWN = OwnProject(Path(custom.__file__).parent, tiny.BUNDLE)
ALIASES = {"os": "os", "sys": "sys", "optim": "torch.optim"}


def faults(text: str) -> list[str]:
    return list(expression_faults(text, ALIASES, OWN))


@pytest.mark.parametrize(
    "text",
    [
        "@a + 1",
        "@a#b#0.c",
        "@network.to(@device).eval()",
        "[{'b': b, 'm': m} for b in (-0.7, -0.8) for m in (1, 3) if b < m]",
        "{@a.name: @b}",
        "None if @a is None else max(@a, 2) ** 2",
        "os.path.join(@bundle_root, 'x', str(@a))",
        "torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "torch.float16",
        "torch.nn.ReLU",
        "optim.AdamW(@network.parameters(), lr=0.1)",
        "np.arange(3)[::2].tolist()",
        "' '.join(['a', 'b']).upper()",
        "@a if @b and not @c else sorted(@d)[0]",
        "monai.utils.set_determinism(@seed)",
        "monai.networks.nets.DynUNet",
        "torch.distributed.get_rank() > 0",
    ],
)
def test_what_configurations_need_is_allowed(text: str) -> None:
    assert faults(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "os.remove('x')",
        "os.path.os.system('x')",
        "os.environ",
        "sys.modules",
        "sys.exit()",
        "torch.load('x')",
        "torch.ops.load_library('x')",
        "torch.hub.load('a/b', 'c')",
        "torch.serialization.os.system('x')",
        "monai.bundle.run('x')",
        "monai.utils.misc.run_cmd(['x'])",
        "monai.data.utils.pickle_operations",
        "open('x')",
        "open",
        "type(@a)",
        "vars(@a)",
        "globals()",
        "__import__('os')",
        "__builtins__",
        "@a.__class__",
        "@a._private",
        "@a.f.__globals__['os']",
        "(1).__class__",
        "'{0.x}'.format(@a)",
        "f'{@a}'",
        "@a('x')",
        "@a['f']('x')",
        "[f for f in (len,)][0]('x')",
        "(lambda: 0)",
        "(x := 1)",
        "[open for open in (1,)]",
        "[x.system for x in (os,)]",
        "@a.write_text('x')",
        "@imports#0",
        "@",
        "x",
        "import os; os.system('x')",
        "1 +",
        "'/etc/x'",
        "os.path.join('..', 'x')",
        "eval('1')",
        "print(1)",
        "__local_refs['x']",
        "@a if True else os",
        "dict(f=eval)",
        "map(print, [1])",
        "(yield)",
        "sys.path.append('x')",
        "[sys.path.append(p) for p in (os.path.abspath('x'),)]",
        "(" * 300 + ")" * 300,
        "+".join(["1"] * 1500),
        "@a" + ".b()" * 900,
    ],
)
def test_everything_else_is_not(text: str) -> None:
    assert faults(text)


@pytest.mark.parametrize(
    "text",
    [
        "import os",
        "import torch",
        "from math import pi",
        "import torch.nn as nn",
        "import monai.networks.nets as nets",
        "from torch.optim import AdamW",
    ],
)
def test_imports_of_known_modules_are_allowed(text: str) -> None:
    assert list(import_faults(text, OWN)) == []


@pytest.mark.parametrize(
    "text",
    [
        "import subprocess",
        "from os import system",
        "from os import path as torch",
        "import os, subprocess",
        "import os as torch",
        "import antigravity",
        "import scripts",
        "import custom.not_there",
        "from builtins import eval",
        "import torch.os",
        "import os\nos.x()",
        "from . import x",
        "import",
    ],
)
def test_other_imports_are_not(text: str) -> None:
    assert list(import_faults(text, OWN))


def test_names_that_imports_bind() -> None:
    assert imported("import a.b as c") == {"c": "a.b"}
    assert imported("from a import b as c, d") == {"c": "a.b", "d": "a.d"}


@pytest.mark.parametrize("text", ["%losses#focal", "%configs/losses.json#focal"])
def test_macros_inside_the_bundle_are_allowed(text: str) -> None:
    assert macro_fault(text) is None


@pytest.mark.parametrize("text", ["%/a.json", "%../a.json#b", "%a.yaml#b", "%x:/a.json"])
def test_macros_of_other_files_are_not(text: str) -> None:
    assert macro_fault(text)


@pytest.mark.parametrize(
    "text",
    [
        "%imports",
        "%imports#0",
        "%imports::0",
        "%configs/train.json#imports#0",
        "%configs/mine.json#+imports#0",
        "%configs/train.json",
        "%configs/train.json#",
        "%models/model.json#config",
    ],
)
def test_macros_that_copy_a_module_are_not(text: str) -> None:
    assert macro_fault(text)


def test_references_into_a_copy_of_imports_are_not() -> None:
    assert reference_fault("@x#imports#0") and reference_fault("@a#b") is None


@pytest.mark.parametrize("text", ["/a", "~/a", "a/../b", "..", "C:\\a", "\\\\host\\a", "file:///a"])
def test_paths_that_leave_the_bundle(text: str) -> None:
    assert path_fault(text)


@pytest.mark.parametrize("text", ["a/b", "1.5 ... 2", "s3://bucket/x", "cuda:0", "a..b", "./a"])
def test_texts_that_do_not(text: str) -> None:
    assert path_fault(text) is None
