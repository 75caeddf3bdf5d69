"""``$`` expressions: their syntax, their imports and the names they use; none is evaluated."""

import ast
import builtins
from importlib import import_module
from types import ModuleType
from typing import Any

from monai.bundle import ReferenceResolver

from custom.config_check.findings import Finding, Rank, close_to, did_you_mean
from custom.config_check.key_tree import Path, key_of, walk
from custom.config_check.references import METADATA, Resolved, references

GIVEN = {"monai": "monai", "torch": "torch", "np": "numpy", "numpy": "numpy"}
"""Modules that MONAI gives to every expression."""

Statement = ast.Import | ast.ImportFrom


class Expressions:
    """The expressions of a configuration.

    Args:
        resolved: the configuration.
    """

    def __init__(self, resolved: Resolved) -> None:
        self.resolved = resolved
        self.findings: list[Finding] = []
        self.names: dict[str, Any] = {name: import_module(full) for name, full in GIVEN.items()}
        imports, expressions = self._parsed()
        for path, statement in imports:
            self._import(path, statement)
        for path, tree in expressions:
            self._check_names(path, tree)

    def _parsed(self) -> tuple[list[tuple[Path, Statement]], list[tuple[Path, ast.expr]]]:
        """Import statements, and expressions, with references replaced by a name."""
        imports: list[tuple[Path, Statement]] = []
        expressions: list[tuple[Path, ast.expr]] = []
        for path, value in walk(self.resolved.config):
            if isinstance(value, str) and value.startswith("$") and path[0] != METADATA:
                node = self._tree(path, value)
                if isinstance(node, Statement):
                    imports.append((path, node))
                elif isinstance(node, ast.Expr):
                    expressions.append((path, node.value))
        return imports, expressions

    def _tree(self, path: Path, value: str) -> ast.stmt | None:
        """The one statement of an expression; None, and a finding, where it is none."""
        try:
            body = ast.parse(_plain(value)).body
        except (SyntaxError, ValueError) as error:
            found = error.msg if isinstance(error, SyntaxError) else str(error)
            self._find(path, f"is no valid Python after the $: {found}, in {_shown(value)}")
            return None
        if len(body) == 1 and isinstance(body[0], ast.Expr | Statement):
            return body[0]
        self._find(path, f"must be one Python expression after the $, got {_shown(value)}")
        return None

    def _import(self, path: Path, node: Statement) -> None:
        alias = node.names[0]
        text = ast.unparse(node)
        if len(node.names) > 1:
            self._find(
                path, f"imports only '{alias.name}' of '{text}': MONAI takes one name per $import"
            )
        if isinstance(node, ast.Import) and "." in alias.name and alias.asname is None:
            short = alias.name.rpartition(".")[2]
            way = f"write '$import {alias.name} as {short}'"
            self._find(
                path, f"imports '{alias.name}', a name with a dot that no expression can use; {way}"
            )
        found = self._imported(path, node, text)
        self.names[alias.asname or alias.name] = found

    def _imported(self, path: Path, node: Statement, text: str) -> Any:
        """What a statement gives; None, and a finding, where it gives nothing."""
        name = node.names[0].name
        module = name if isinstance(node, ast.Import) else str(node.module)
        try:
            found = import_module(module)
        except Exception as error:  # whatever the module raises, MONAI would keep silent about it
            self._find(path, f"fails in silence at '{text}': {error}")
            return None
        if isinstance(node, ast.Import):
            return found
        if not hasattr(found, name):
            hint = did_you_mean(close_to(name, dir(found)))
            self._find(path, f"fails in silence at '{text}': {module} has no '{name}'{hint}")
        return getattr(found, name, None)

    def _check_names(self, path: Path, tree: ast.expr) -> None:
        """Names that nothing gives, and what modules do not have."""
        nodes = list(ast.walk(tree))
        bound = {n.id for n in nodes if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
        bound |= {n.arg for n in nodes if isinstance(n, ast.arg)}
        for name in sorted({n.id for n in nodes if isinstance(n, ast.Name)} - bound):
            if name not in self.names and not hasattr(builtins, name) and name != REFERENCE:
                self._find(path, f"uses '{name}', which no import gives{self._name_hint(name)}")
        for node in nodes:
            if isinstance(node, ast.Attribute):
                self._check_attribute(path, node, bound)

    def _name_hint(self, name: str) -> str:
        if name in self.resolved.config:
            return did_you_mean(f"@{name}")
        return did_you_mean(close_to(name, [*self.names, *dir(builtins)]))

    def _check_attribute(self, path: Path, node: ast.Attribute, bound: set[str]) -> None:
        holder = self._module(node.value, bound)
        if holder is not None and not hasattr(holder, node.attr):
            hint = did_you_mean(close_to(node.attr, dir(holder)))
            self._find(
                path,
                f"uses '{ast.unparse(node)}', but {holder.__name__} has no '{node.attr}'{hint}",
            )

    def _module(self, node: ast.expr, bound: set[str]) -> ModuleType | None:
        """The module that a dotted name stands for, if it is one."""
        found: Any = None
        if isinstance(node, ast.Name) and node.id not in bound:
            found = self.names.get(node.id)
        elif isinstance(node, ast.Attribute):
            holder = self._module(node.value, bound)
            found = getattr(holder, node.attr, None) if holder is not None else None
        return found if isinstance(found, ModuleType) else None

    def _find(self, path: Path, what: str) -> None:
        origin = self.resolved.origin(path)
        self.findings.append(Finding(Rank.EXPRESSION, origin, key_of(path), what))


REFERENCE = "__reference"


def _plain(value: str) -> str:
    """The Python of an expression, every reference replaced by one name, as MONAI does."""
    return (
        ReferenceResolver.id_matcher.sub(REFERENCE, value[1:]) if references(value) else value[1:]
    )


def _shown(value: str) -> str:
    return f"'{value.replace('::', '#')}'"
