"""Scores of segmentation settings in a CSV file, which a scan goes on with."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from custom.files import write_atomically
from custom.metrics import SCORES

KEYS = ("volume", "prediction", "method", "settings")
COLUMNS = (*KEYS, *SCORES)
Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class Tried:
    """A setting on a volume.

    Args:
        volume: id of the datalist's entry.
        prediction: what the affinities and the truth were.
        method: name of the segmentation method.
        settings: all of them.
    """

    volume: str
    prediction: str
    method: str
    settings: Mapping[str, Any]

    @property
    def key(self) -> Key:
        """As it stands in the file."""
        text = json.dumps(self.settings, sort_keys=True)
        return self.volume, self.prediction, self.method, text


class ScoreTable:
    """A CSV file with one row for a setting on a volume; rows are only ever added.

    A row that a kill has cut short is as if it were not there.

    Args:
        path: of the file; created with the first row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = _read(path)

    def find(self, tried: Tried) -> dict[str, float] | None:
        """The scores, where they are known."""
        return self.rows.get(tried.key)

    def add(self, tried: Tried, scores: Mapping[str, float]) -> None:
        """Write a row, and remember it."""
        known = {name: float(scores[name]) for name in SCORES}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_row(self.path)
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if not file.tell():
                writer.writerow(COLUMNS)
            writer.writerow([*tried.key, *(repr(known[name]) for name in SCORES)])
        self.rows[tried.key] = known


def _drop_torn_row(path: Path) -> None:
    """Cut a file's last row where a kill has cut it short."""
    content = path.read_bytes() if path.exists() else b""
    if content and not content.endswith(b"\n"):
        write_atomically(path, content[: content.rfind(b"\n") + 1])


def _read(path: Path) -> dict[Key, dict[str, float]]:
    """Whole rows of a file, by their keys."""
    found: dict[Key, dict[str, float]] = {}
    if not path.exists():
        return found
    with path.open(newline="") as file:
        for row in csv.reader(line for line in file if line.endswith("\n")):
            if len(row) == len(COLUMNS) and row[0] != KEYS[0]:
                volume, prediction, method, settings = row[: len(KEYS)]
                scores = dict(zip(SCORES, map(float, row[len(KEYS) :]), strict=True))
                found[volume, prediction, method, settings] = scores
    return found
