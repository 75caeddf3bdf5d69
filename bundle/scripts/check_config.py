"""Check a run's configuration without running it."""

from pathlib import Path
from typing import Any

from custom.config_check.check import Request, config_findings
from custom.config_check.findings import Finding, message, mistakes, notes
from custom.config_check.sources import neighbours, read_sources
from custom.errors import InputError
from scripts.strict import strict


@strict
def check(*config_files: Any, run_id: str | None = None, **overrides: Any) -> None:
    """Say all that is wrong with a configuration, one sentence each; status 1 if anything is.

    Nothing is run and nothing written. Files in ``%`` are looked for from here, as in a run.

    Args:
        config_files: the configuration of a run and its overlays, one after the other or as one
            quoted list.
        run_id: the run, such as training; also that is checked then.
        overrides: keys of the configuration with new values, as for a run.
    """
    names = [str(name) for given in config_files for name in _listed(given)]
    if not names:
        raise InputError("give a config file, such as configs/train.json")
    found = findings_of(names, overrides, run_id)
    for note in notes(found):
        print(f"note: {note}")
    if wrong := mistakes(found):
        raise InputError(message(wrong))
    print(f"{', '.join(names)}: no mistake found")


def findings_of(names: list[str], overrides: dict[str, Any], run_id: str | None) -> list[Finding]:
    """What is wrong with files and overrides; with the files alone where one cannot be read."""
    files, found = read_sources(names)
    if len(files) < len(names):
        return found
    first = Path(names[0])
    others = {name: c for name, c in neighbours(names[0]).items() if name != first.name}
    request = Request(files, overrides, others, run_id)
    return [*found, *config_findings(request)]


def _listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given]
