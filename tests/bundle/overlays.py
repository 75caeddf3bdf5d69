"""The overlays that the bundle ships, and the runs that each is given to."""

import json
from typing import Any

from tests.bundle import tiny

FOLDER = tiny.CONFIGS / "experiments"
RECIPES = ("demo", "fib25")  # not one change but a whole recipe, with a command of its own
EXPERIMENTS = sorted(path.stem for path in FOLDER.glob("*.json") if path.stem not in RECIPES)


def content(name: str) -> dict[str, Any]:
    """Keys and values of an overlay."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


def config(run: str) -> dict[str, Any]:
    """The configuration of a run."""
    path = tiny.CONFIGS / f"{tiny.CONFIG_OF[run]}.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def runs_of(name: str) -> list[str]:
    """Runs whose configuration has a key, or what holds it, that the overlay changes."""
    tops = {key.removeprefix("+").split("#")[0] for key in content(name)}
    return [run for run in tiny.RUNS if tops & set(config(run))]
