"""Check a bundle's configuration, hand the bundle over, and look into one that was handed to you.

From inside ``bundle/``: ``python -m scripts.bundle <check|share|inspect|push|export> ...``
"""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import fire

MODULES = {
    "check": "check_config",
    "share": "share",
    "inspect": "share",
    "push": "share",
    "export": "export",
}


def commands(wanted: str = "") -> dict[str, Callable[..., Any]]:
    """The command that is wanted, else all: each brings what it needs alone.

    ``inspect`` has its answer before torch and MONAI, which others need, are loaded.
    """
    names = [wanted] if wanted in MODULES else list(MODULES)
    return {name: getattr(import_module(f"scripts.{MODULES[name]}"), name) for name in names}


if __name__ == "__main__":
    fire.Fire(commands(*sys.argv[1:2]))
