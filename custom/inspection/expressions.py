"""``$`` expressions: parsed, never evaluated; what they name must be on the list."""

import ast
import builtins
import re
from collections.abc import Iterator, Mapping

from custom.inspection.allow_lists import (
    CALLED,
    CLOSED_NAMES,
    MODULES,
    PARENTS,
    SAFE_BUILTINS,
    VALUES,
)
from custom.inspection.contents import name_fault
from custom.inspection.findings import quoted
from custom.inspection.own_project import OwnProject, is_module
from custom.inspection.targets import target_fault

GLOBALS = {"monai": "monai", "torch": "torch", "np": "numpy", "numpy": "numpy"}  # MONAI's own
BOOTSTRAP = (
    "[sys.path.append(p) for p in (os.path.abspath(@bundle_root), "
    "os.path.dirname(os.path.abspath(@bundle_root))) if p not in sys.path]"
)
"""How our configurations find ``custom``; any other change of ``sys.path`` is refused."""

_REFERENCE = re.compile(r"@\w*(?:(?:::|#)\w*)*")
_HARMLESS = (
    ast.Expression,
    ast.Constant,
    ast.List,
    ast.Tuple,
    ast.Dict,
    ast.Set,
    ast.UnaryOp,
    ast.BinOp,
    ast.BoolOp,
    ast.Compare,
    ast.IfExp,
    ast.Subscript,
    ast.Slice,
    ast.Starred,
    ast.keyword,
    ast.comprehension,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
    ast.expr_context,
)


def path_fault(text: str) -> str | None:
    """Why a plain string would lead out of the bundle, as the end of a sentence; None if not."""
    if text.startswith(("/", "~", "\\", "file:")) or re.match(r"[A-Za-z]:[\\/]", text):
        return "leads out of the bundle"
    if ".." in re.split(r"[\\/]", text):
        return "leads out of the bundle"
    return None


def is_import(text: str) -> bool:
    """Whether MONAI takes an expression (without its ``$``) for an import."""
    return re.match(r"\s*(import|from)\b", text) is not None


def imported(text: str) -> dict[str, str]:
    """Names that an import binds, and what each stands for; empty if it cannot be parsed."""
    try:
        tree = ast.parse(text.strip())
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return {}
    found: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            found.update({alias.asname or alias.name: alias.name for alias in node.names})
        elif isinstance(node, ast.ImportFrom):
            found.update(
                {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            )
        else:
            return {}
    return found


def import_faults(text: str, own: OwnProject) -> Iterator[str]:
    """What is wrong with an import, as ends of sentences."""
    names = imported(text)
    if not names:
        yield "cannot be parsed"
    for alias, name in names.items():
        if not _may_be_imported(name, own):
            yield f"imports {quoted(name)}, which is outside the allow-list"
        elif GLOBALS.get(alias, name) != name or (alias in MODULES and alias != name):
            yield f"calls {quoted(name)} by the name of another module, {quoted(alias)}"


def _may_be_imported(name: str, own: OwnProject) -> bool:
    if name in MODULES or name in CALLED | VALUES:
        return True
    if name.split(".")[0] in PARENTS and not re.search(r"(^|\.)_", name) and is_module(name):
        return True
    return target_fault(name, own) is None


def expression_faults(text: str, aliases: Mapping[str, str], own: OwnProject) -> Iterator[str]:
    """What is wrong with an expression, as ends of sentences.

    Args:
        text: without its ``$``.
        aliases: names that imports bind, and what each stands for.
        own: for names of classes.
    """
    if text.replace("::", "#").strip() == BOOTSTRAP:
        return
    for reference in _REFERENCE.findall(text):
        if fault := reference_fault(reference):
            yield fault
    try:
        tree = ast.parse(_REFERENCE.sub(" referred_value ", text).strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        yield f"cannot be parsed ({type(error).__name__})"
        return
    try:
        yield from list(_Judge({**GLOBALS, **aliases}, own).faults(tree))
    except RecursionError:
        yield "is nested too deeply"


def reference_fault(reference: str) -> str | None:
    """References to whatever an import gave would hide a module behind a name."""
    first, *rest = re.split("::|#", reference.removeprefix("@"))
    if first == "" or _leads_to_imports([first, *rest]):
        return f"refers to {quoted(reference)}, which may be a module"
    return None


class _Judge:
    """Walks through one expression.

    Args:
        aliases: what each name of a module stands for.
        own: for names of classes.
    """

    def __init__(self, aliases: Mapping[str, str], own: OwnProject) -> None:
        self.aliases = aliases
        self.own = own

    def faults(self, tree: ast.AST) -> Iterator[str]:
        """Everything that is not on the list."""
        bound = {
            node.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        known = {"referred_value", *SAFE_BUILTINS}
        if taken := bound & {*self.aliases, *known, *dir(builtins)}:
            yield f"gives the name {quoted(min(taken))} another meaning"
        yield from self._node(tree, bound | known)

    def _node(self, node: ast.AST, known: set[str]) -> Iterator[str]:
        dotted = self._dotted(node)
        if dotted is not None:  # a name of a module, or in one, used as a value
            if dotted not in VALUES and target_fault(dotted, self.own) is not None:
                yield f"hands on {quoted(dotted)}"
            return
        if isinstance(node, ast.Call):
            yield from self._call(node, known)
            return
        if isinstance(node, ast.Attribute):
            yield from self._attribute(node)
        elif isinstance(node, ast.Name):
            if node.id not in known:
                yield f"uses {quoted(node.id)}, which is outside the allow-list"
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, str) and path_fault(node.value):
                yield f"has the path {quoted(node.value)}, which leads out of the bundle"
        elif not isinstance(node, _HARMLESS):
            yield f"has a {type(node).__name__}"
        for child in ast.iter_child_nodes(node):
            yield from self._node(child, known)

    def _call(self, node: ast.Call, known: set[str]) -> Iterator[str]:
        dotted, called = self._dotted(node.func), node.func
        if dotted is not None:
            if dotted not in CALLED and target_fault(dotted, self.own) is not None:
                yield f"calls {quoted(dotted)}, which is outside the allow-list"
        elif isinstance(called, ast.Name):
            if called.id not in SAFE_BUILTINS:
                yield f"calls {quoted(called.id)}, which is outside the allow-list"
        elif isinstance(called, ast.Attribute):
            yield from self._attribute(called)
            yield from self._node(called.value, known)
        else:
            yield "calls what it has put together itself"
            yield from self._node(called, known)
        for part in [*node.args, *node.keywords]:
            yield from self._node(part, known)

    def _attribute(self, node: ast.Attribute) -> Iterator[str]:
        if node.attr.startswith("_") or node.attr in CLOSED_NAMES:
            yield f"reaches for {quoted(node.attr)}"

    def _dotted(self, node: ast.AST) -> str | None:
        """Full name of what a chain of attributes that starts at a module leads to."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id not in self.aliases:
            return None
        return ".".join([self.aliases[node.id], *reversed(parts)])


def macro_fault(text: str) -> str | None:
    """Why a ``%`` macro would read more than a value of a configuration; None if it would not.

    A copy of an import would be a module behind a name, as with ``reference_fault``, and so would
    one in a copy of a whole file, or of the configuration that a model's description keeps.
    """
    path, *keys = re.split("::|#", text.removeprefix("%"))
    if _leads_to_imports([path, *keys]):
        return "copies an import"
    if "." not in path and "/" not in path:  # a key of the same configuration
        return None if re.fullmatch(r"\w+", path) else "is no plain macro"
    if name_fault(path) or not path.endswith(".json"):
        return "reads a file that is no JSON inside the bundle"
    if not path.startswith("configs/") or not any(keys):
        return "copies more than one key of a file in configs/"
    return None


def _leads_to_imports(keys: list[str]) -> bool:
    """Whether the parts of a nested key may name what imports gave."""
    return any(key.removeprefix("+") == "imports" for key in keys)
