"""The static check of a run's configuration: everything that is wrong, before any work."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from custom.config_check.components import Targets, wrong_components
from custom.config_check.expressions import Expressions
from custom.config_check.findings import Finding, Rank, close_to, did_you_mean, in_order
from custom.config_check.key_tree import MISSING, path_of, value_at
from custom.config_check.layers import Layers, merged
from custom.config_check.new_keys import unknown_keys, unused_keys
from custom.config_check.references import LIFE, Resolved, circles, is_run, undefined
from custom.config_check.sources import COMMAND_LINE, Source
from custom.config_check.value_kinds import other_kinds

BEGINNING = ("$@bootstrap", "@preflight")
"""What ``initialize`` begins with: without it, modules are not found and nothing is checked."""


@dataclass(frozen=True)
class Request:
    """What a run was asked for.

    Args:
        files: its configuration files, in order.
        overrides: what the command line gives, as it was given: also None, and keys with a plus.
        others: configurations of other runs of the bundle, by name.
        run_id: the list to be run; None where it is not known.
        known: top-level keys that are known although no file has them.
    """

    files: Sequence[Source]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    run_id: str | None = None
    known: frozenset[str] = frozenset()

    def sources(self) -> list[Source]:
        """The files, and what MONAI makes of the command line."""
        taken = {k.removeprefix("+"): v for k, v in self.overrides.items() if v is not None}
        return [*self.files, Source(COMMAND_LINE, taken, shared=False)]


def config_findings(request: Request, targets: Targets | None = None) -> list[Finding]:
    """All that is wrong with a configuration, most important first, and notes last.

    Nothing is instantiated and no expression is evaluated; modules of components and of ``$import``
    are imported.

    Args:
        request: the configuration.
        targets: keeps what it found for the next check; a new one if it is not given.
    """
    layers = merged(request.sources())
    if not {"run", "initialize", request.run_id} & layers.config.keys():
        return [_no_configuration(request.files[0])]
    resolved = Resolved(layers)
    findings = [*layers.findings, *resolved.findings]
    findings += _said_in_vain(request, layers)
    findings += unknown_keys(resolved, request.others, request.known)
    findings += other_kinds(resolved, request.others)
    findings += _no_such_run(request, layers)
    findings += _lost_beginning(layers)
    findings += undefined(resolved)
    findings += circles(resolved)
    findings += Expressions(resolved).findings
    findings += wrong_components(resolved, targets or Targets())
    findings += unused_keys(resolved, request.run_id)
    return in_order(findings)


def _no_configuration(source: Source) -> Finding:
    what = "is an overlay: give the configuration of a run, such as configs/train.json, before it"
    return Finding(Rank.FILE, source.name, "", what)


def _said_in_vain(request: Request, layers: Layers) -> Iterator[Finding]:
    """What MONAI's command line drops or takes for something else."""
    for key, value in request.overrides.items():
        before = value_at(layers.config, path_of(key.removeprefix("+")))
        if value is None and before is not None and before is not MISSING:
            what = f"None says nothing to MONAI: the key stays {before!r}; write null in an overlay"
            yield Finding(Rank.KEY, COMMAND_LINE, key, what)
        if key.startswith("+"):
            what = "replaces instead of adding: + works in files alone; write it in an overlay"
            yield Finding(Rank.KEY, COMMAND_LINE, key, what)


def _no_such_run(request: Request, layers: Layers) -> Iterator[Finding]:
    if request.run_id is None or request.run_id in layers.config:
        return
    runs = [key for key, value in layers.config.items() if is_run(value)]
    runs = [key for key in runs if key == "run" or key not in LIFE]
    hint = did_you_mean(close_to(request.run_id, runs)) or f"; there are {', '.join(runs)}"
    what = f"is a run that {request.files[0].name} does not have{hint}"
    yield Finding(Rank.RUN, COMMAND_LINE, request.run_id, what)


def _lost_beginning(layers: Layers) -> Iterator[Finding]:
    """An overlay that replaces ``initialize`` must repeat how it begins."""
    first, last = layers.first.get("initialize"), layers.config.get("initialize")
    if not isinstance(first, list):
        return
    kept = last if isinstance(last, list) else [last]
    lost = [item for item in BEGINNING if item in first and item not in kept]
    if lost:
        what = f"must begin with {' and '.join(map(repr, lost))}, as in the file before"
        yield Finding(Rank.KEY, layers.origin(("initialize",)), "initialize", what)
