"""Whether an evaluation's scores are those of a result and its truth as they are now."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from custom.comparison import made_with
from custom.file_stamps import file_stamp
from custom.outputs.images import SEGMENTATION
from custom.truth_identity import truth_identity
from custom.viewing.finished_output import FinishedOutput


def changed_since(scored: Mapping[str, Any], output: FinishedOutput) -> str | None:
    """What is another one than at the evaluation, None if nothing is.

    A folder that was moved is the same as far as its settings, model and classes are.

    Args:
        scored: of ``outputs`` in ``scores.json``; empty where it is not known.
        output: the result, with its truth if that is known.

    Returns:
        "segmentation", "truth" or None.
    """
    if scored and _is_other_segmentation(scored, output.path):
        return "segmentation"
    return "truth" if "truth" in scored and _is_other_truth(scored["truth"], output) else None


def _is_other_segmentation(scored: Mapping[str, Any], path: Path) -> bool:
    now = made_with(path)
    if any(scored[name] != now[name] for name in scored.keys() & now.keys()):
        return True
    array = str((path / SEGMENTATION / "s0").absolute())
    return "files" in scored and scored["path"] == array and scored["files"] != file_stamp(array)


def _is_other_truth(scored: Mapping[str, Any], output: FinishedOutput) -> bool:
    if output.entry is None or output.entry.entry.truth is None:
        return False
    now = truth_identity(output.entry)
    moved = any(scored["fields"][name] != now["fields"][name] for name in ("labels", "classes"))
    return not moved and scored != now
