"""Python of a bundle: the project's own, file by file, or code that nobody here knows."""

import ast
from collections.abc import Iterator

from custom.inspection.allow_lists import TELLING_CALLS, TELLING_MODULES
from custom.inspection.own_project import CODE, OwnProject

MOST_SHOWN = 4


def python_faults(path: str, content: bytes, digest: str, own: OwnProject) -> Iterator[str]:
    """Why a Python file cannot be trusted; nothing if it is the project's own, byte for byte.

    Args:
        path: inside the bundle.
        content: of the file.
        digest: its sha256.
        own: the project that inspects.
    """
    if own.digests.get(path) == digest:
        return
    if path.split("/")[0] not in CODE:
        known = "is Python outside of custom/ and scripts/"
    elif path in own.digests:
        known = "differs from this project's file"
    else:
        known = "is Python that this project does not have"
    remarks = list(suspicious(content))
    shown = ", ".join(remarks[:MOST_SHOWN]) + (", ..." if len(remarks) > MOST_SHOWN else "")
    yield f"{known}{f'; look at {shown}' if shown else ''}"


def suspicious(content: bytes) -> Iterator[str]:
    """Imports and calls that may do anything, each with its line."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        yield f"what cannot be parsed ({type(error).__name__})"
        return
    nodes = [node for node in ast.walk(tree) if hasattr(node, "lineno")]
    for node in sorted(nodes, key=lambda node: node.lineno):
        for name in sorted(_modules(node) & TELLING_MODULES):
            yield f"import {name} (line {node.lineno})"
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in TELLING_CALLS
        ):
            yield f"{node.func.id}() (line {node.lineno})"


def _modules(node: ast.AST) -> set[str]:
    """Top packages that a statement imports."""
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        return {(node.module or "").split(".")[0]}
    return set()
