"""One measured number, and how a list of them is shown and kept."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from custom.files import write_atomically


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Args:
        name: what was measured, parts separated by dots, such as "demo.training.seconds".
        value: the number.
        unit: "s", "MiB", "bytes", "bits" or "1" (a ratio).
    """

    name: str
    value: float
    unit: str


def table(figures: Sequence[Figure]) -> str:
    """Figures as aligned text."""
    widest = max(len(figure.name) for figure in figures)
    return "\n".join(f"{f.name:<{widest}}  {f.value:>10.3f} {f.unit}" for f in figures)


def publish(path: Path, setting: Mapping[str, Any], figures: Sequence[Figure]) -> None:
    """Write figures, with what they were measured on and when, and print them."""
    results = {
        **setting,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "figures": [asdict(figure) for figure in figures],
    }
    write_atomically(path, (json.dumps(results, indent=2, default=float) + "\n").encode())
    print(f"\n{table(figures)}\n\nWritten to {path}")
