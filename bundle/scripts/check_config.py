"""Check a run's configuration without running it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from custom.array_check import check_arrays
from custom.array_report import ArrayReport
from custom.config_check.check import Request, config_findings
from custom.config_check.findings import Finding, message, mistakes, notes
from custom.config_check.sources import neighbours, read_sources
from custom.disk_space import size
from custom.errors import InputError
from custom.json_fields import flag
from custom.preflight import user_mistake
from scripts.strict import strict


@strict
def check(
    *config_files: Any, run_id: str | None = None, arrays: bool = True, **overrides: Any
) -> None:
    """Say all that is wrong with a configuration, one sentence each; status 1 if anything is.

    Where it is right, its arrays are looked at as a run does before any work: what is there, what
    fits, what there is room for. Nothing is run and nothing written. Files in ``%`` are looked for
    from here, as in a run.

    Args:
        config_files: the configuration of a run and its overlays, one after the other or as one
            quoted list.
        run_id: the run, such as training; also that is checked then.
        arrays: look at the arrays, too.
        overrides: keys of the configuration with new values, as for a run.
    """
    names = [str(name) for given in config_files for name in _listed(given)]
    if not names:
        raise InputError("give a config file, such as configs/train.json")
    with_arrays = flag(arrays, "--arrays")
    found = findings_of(names, overrides, run_id)
    for note in notes(found):
        print(f"note: {note}")
    if wrong := mistakes(found):
        raise InputError(message(wrong))
    print(f"{', '.join(names)}: no mistake found")
    if with_arrays:
        for line in _lines(arrays_of(names, overrides, run_id)):
            print(line)


def findings_of(names: list[str], overrides: dict[str, Any], run_id: str | None) -> list[Finding]:
    """What is wrong with files and overrides; with the files alone where one cannot be read."""
    files, found = read_sources(names)
    if len(files) < len(names):
        return found
    first = Path(names[0])
    others = {name: c for name, c in neighbours(names[0]).items() if name != first.name}
    request = Request(files, overrides, others, run_id)
    return [*found, *config_findings(request)]


def arrays_of(names: list[str], overrides: dict[str, Any], run_id: str | None) -> ArrayReport:
    """What a run of a right configuration would find.

    Raises:
        InputError: names the first mistake.
    """
    parser = ConfigParser()
    parser.read_config(names)
    parser.update({key: value for key, value in overrides.items() if value is not None})
    try:
        parser.resolve_macro_and_relative_ids()
        return check_arrays(dict(parser.get("")), run_id or "run")
    except Exception as error:  # MONAI wraps a user's mistake in its own
        mistake = user_mistake(error)
        if mistake is None:
            raise
        raise mistake from error


def _lines(report: ArrayReport) -> Iterator[str]:
    """What was found, for people."""
    for section, volumes in report.split.items():
        number = f"{len(volumes)} volume{'' if len(volumes) == 1 else 's'}"
        yield f"{section}: {number}, {', '.join(str(volume['id']) for volume in volumes)}"
    for key, needed in report.disk.items():
        yield f"{key}: up to {size(needed)} will be written"
    if report.memory is not None:
        yield f"memory: about {size(report.memory)} (estimated)"


def _listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given]
