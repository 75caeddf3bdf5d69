"""Tasks that begin anew because what made their output is not what the run wants now."""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from custom.blockwise.tracked import Tracked
from custom.files import write_atomically

logger = logging.getLogger(__name__)

IDENTITY = "identity.json"


def begin_anew_where_changed(tasks: Sequence[Tracked]) -> None:
    """Drop what was made with other settings, and all that was made from it.

    That is so where a task's identity, its blocks, or a task before it changed; where the record of
    them is damaged or missing; and where blocks are done but the output is gone. Later tasks go
    first: a run that is killed meanwhile leaves nothing that was made from something else.

    Args:
        tasks: in their order.
    """
    wanted = identities(tasks)
    anew: set[int] = set()
    for number, (task, one) in enumerate(zip(tasks, wanted, strict=True)):
        if anew.intersection(_read_by(tasks, number)):
            anew.add(number)
        elif reason := _reason(task, one):
            _say(task, reason)
            anew.add(number)
    for number in sorted(anew, reverse=True):
        _drop(tasks[number])
    for task, one in zip(tasks, wanted, strict=True):
        if not (task.meta_dir / IDENTITY).exists():
            write_atomically(task.meta_dir / IDENTITY, json.dumps(one, indent=1).encode())


def is_finished(tasks: Sequence[Tracked]) -> bool:
    """Whether the last of some tasks is done, and none of them begins anew.

    Args:
        tasks: the first ones of a run, in their order.
    """
    changed = any(map(_reason, tasks, identities(tasks)))
    return not changed and tasks[-1].count_done() >= tasks[-1].total_blocks


def identities(tasks: Sequence[Tracked]) -> list[dict[str, Any]]:
    """What the output of every task depends on: identity, blocks, and the tasks it is made from.

    Args:
        tasks: in their order.
    """
    found: list[dict[str, Any]] = []
    digests: list[str] = []
    for number, task in enumerate(tasks):
        before = [digests[other] for other in _read_by(tasks, number)]
        entry = {
            "settings": task.identity,
            "blocks": _blocks(task),
            "before": before[-1] if before else None,
        }
        found.append(json.loads(json.dumps(entry)))
        content = json.dumps(found[-1], sort_keys=True)
        digests.append(hashlib.sha256(content.encode()).hexdigest())
    return found


def _read_by(tasks: Sequence[Tracked], number: int) -> list[int]:
    """Numbers of the tasks before one that it may be made from; the last one knows the others."""
    kind = type(tasks[number])
    return [n for n, task in enumerate(tasks[:number]) if not task.aside or type(task) is kind]


def _blocks(task: Tracked) -> dict[str, Any]:
    low, high = task.contexts
    places = {
        "offset": task.write_roi.offset,
        "shape": task.write_roi.shape,
        "block size": task.write_size,
        "context before": low,
        "context after": high,
    }
    return {name: [int(i) for i in place] for name, place in places.items()}


def _reason(task: Tracked, wanted: Mapping[str, Any]) -> str | None:
    """Why a task begins anew; None where it goes on, or has not begun."""
    if not task.meta_dir.exists():
        return None
    before = _read(task.meta_dir / IDENTITY)
    if before is None:
        return "what it was made with is not known (its record is damaged or missing)"
    if changed := _changed(before, wanted):
        return f"changed since the last run: {', '.join(changed)}"
    if task.count_done() and not task.outputs_exist():
        return "its output is gone"
    return None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    known = isinstance(found, dict) and isinstance(found.get("settings"), dict)
    return found if known and isinstance(found.get("blocks"), dict) else None


def _changed(before: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    parts = [(before[part], wanted[part]) for part in ("settings", "blocks")]
    changed = [key for old, new in parts for key in {**old, **new} if old.get(key) != new.get(key)]
    return changed or (["what it is made from"] if before.get("before") != wanted["before"] else [])


def _say(task: Tracked, reason: str) -> None:
    others = "" if task.aside else ", and all after it"
    logger.warning("%s begins anew%s; %s", task.name, others, reason)


def _drop(task: Tracked) -> None:
    """Output first: until its folder of state is gone, a task without identity begins anew."""
    if task.meta_dir.exists():
        (task.meta_dir / IDENTITY).unlink(missing_ok=True)
        task.drop_artifacts()  # type: ignore[no-untyped-call]  # of volara
        shutil.rmtree(task.meta_dir)
