"""What a training and an evaluation left behind that a reader of the model card wants to see."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from custom.errors import InputError
from custom.json_fields import read_object

MOST_PICTURES = 6
LARGEST = 4 * 2**20  # bytes of one


@dataclass(frozen=True)
class Results:
    """Scores and pictures of a model.

    Args:
        validation: scores by volume, or of all as "all volumes", at the model's epoch.
        test: of an evaluating run, one row for each volume.
        section: of the datalist that it scored.
        pictures: PNGs.
    """

    validation: Mapping[str, Mapping[str, Any]]
    test: Sequence[Mapping[str, Any]]
    section: str
    pictures: Sequence[Path]


def found_results(eval_dir: str | Path, description: Mapping[str, Any]) -> Results:
    """What a folder of results holds of a model; nothing if there is none.

    Args:
        eval_dir: of the training and evaluating runs.
        description: of the model.

    Raises:
        InputError: ``scores.json`` is damaged, or the folder is of another training.
    """
    folder = Path(eval_dir)
    _refuse_other_training(folder, description)
    scores: Mapping[str, Any] = {}
    if (folder / "scores.json").is_file():
        scores = read_object(folder / "scores.json", f"scores '{folder / 'scores.json'}'")
    rows = [row for row in scores.get("entries", []) if isinstance(row, dict) and "id" in row]
    panels = sorted(folder.rglob(f"*{int(description.get('epoch', 0)):04d}*.png"))
    scored = [folder / f"{row['id']}.png" for row in rows]
    pictures = [p for p in (*panels, *scored) if p.is_file() and p.stat().st_size <= LARGEST]
    per_volume = description.get("volume_scores") or {}
    overall = {"all volumes": description.get("validation", {})}
    return Results(
        {**per_volume, **overall} if len(per_volume) != 1 else per_volume,
        rows,
        str(scores.get("section", "")),
        list(dict.fromkeys(pictures))[:MOST_PICTURES],
    )


def _refuse_other_training(folder: Path, description: Mapping[str, Any]) -> None:
    """A history in the folder must tell of the epoch that the model is of, with its scores."""
    if not (folder / "history.json").is_file():
        return
    try:
        history = json.loads((folder / "history.json").read_text())
        entries = {entry["epoch"]: entry for entry in history}
    except (ValueError, TypeError, KeyError):
        return  # damaged: it tells nothing
    scores, entry = description.get("validation", {}), entries.get(description.get("epoch"), {})
    if any(repr(entry.get(name)) != repr(value) for name, value in scores.items()):
        raise InputError(
            f"eval_dir '{folder}' is of another training than the model: its history.json has "
            f"other scores for epoch {description.get('epoch')}; give the --eval_dir of this one"
        )
