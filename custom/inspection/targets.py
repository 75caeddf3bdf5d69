"""``_target_``: which callables a configuration may name."""

import re

from custom.inspection.allow_lists import (
    CLOSED_CLASSES,
    CLOSED_CUSTOM,
    CLOSED_MONAI,
    CUSTOM_FUNCTIONS,
    IGNITE_MODULES,
    OPEN_MONAI,
    TARGET_BUILTINS,
    TARGET_FUNCTIONS,
    TORCH_MODULES,
)
from custom.inspection.own_project import OwnProject, is_module

_NAME = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*")
_CLASS = re.compile(r"[A-Z]\w*")


def target_fault(target: object, own: OwnProject) -> str | None:
    """Why a ``_target_`` is outside the allow-list, as the end of a sentence; None if it is not.

    Allowed are classes of ``custom``, of ``monai``, of ``ignite`` and of those modules of ``torch``
    that networks and optimizers come from; a few functions and builtins. No configuration of the
    checkout counts: one that somebody gave its user may lie there. Nothing is imported. A dotted
    name must lead through modules: ``torch.os.system`` leads through what torch happens to have
    imported.
    """
    if not isinstance(target, str) or not _NAME.fullmatch(target):
        return "is no plain name"
    if target in CUSTOM_FUNCTIONS | TARGET_FUNCTIONS | TARGET_BUILTINS:
        return None
    module, _, last = target.rpartition(".")
    if not _CLASS.fullmatch(last):
        return "is no class and not on the list of functions"
    package = target.split(".")[0]
    if not module or package == "monai":
        return _monai_fault(module, last, own)
    if package == "custom":
        closed = any(module == name or module.startswith(f"{name}.") for name in CLOSED_CUSTOM)
        return None if own.defines_class(target) and not closed else "is no class of custom"
    if module in TORCH_MODULES or (module in IGNITE_MODULES and not last.endswith("Logger")):
        return None
    return "is outside the allow-list"


def _monai_fault(module: str, name: str, own: OwnProject) -> str | None:
    """The same of one of MONAI's, whose classes are found without their module, too."""
    homes = own.monai_classes.get(name, set())
    if name == "DataLoader" and module in ("", "monai.data"):
        return None
    if not homes:
        return "is no class of MONAI's"
    if name in CLOSED_CLASSES or not all(_open(home) for home in homes):
        return "is a class of MONAI's that may run or write what it is given"
    if module and not is_module(module):
        return "does not lead through modules"
    return None


def _open(home: str) -> bool:
    return home.split(".")[0] in OPEN_MONAI and home not in CLOSED_MONAI
