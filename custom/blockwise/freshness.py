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
    reasons = [_reason(task, one) for task, one in zip(tasks, wanted, strict=True)]
    first = next((number for number, reason in enumerate(reasons) if reason), None)
    if first is not None:
        _say(tasks[first], reasons[first] or "")
        for task in reversed(tasks[first:]):
            _drop(task)
    for task, one in zip(tasks, wanted, strict=True):
        if not (task.meta_dir / IDENTITY).exists():
            write_atomically(task.meta_dir / IDENTITY, json.dumps(one, indent=1).encode())


def identities(tasks: Sequence[Tracked]) -> list[dict[str, Any]]:
    """What the output of every task depends on: identity, blocks, and the tasks before it.

    Args:
        tasks: in their order.
    """
    found: list[dict[str, Any]] = []
    before = None
    for task in tasks:
        entry = {"settings": task.identity, "blocks": _blocks(task), "before": before}
        found.append(json.loads(json.dumps(entry)))
        before = hashlib.sha256(json.dumps(found[-1], sort_keys=True).encode()).hexdigest()
    return found


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
    logger.warning("%s begins anew, and all after it; %s", task.name, reason)


def _drop(task: Tracked) -> None:
    """Output first: until its folder of state is gone, a task without identity begins anew."""
    if task.meta_dir.exists():
        (task.meta_dir / IDENTITY).unlink(missing_ok=True)
        task.drop_artifacts()  # type: ignore[no-untyped-call]  # of volara
        shutil.rmtree(task.meta_dir)
