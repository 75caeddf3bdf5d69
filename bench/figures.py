"""One measured number, and how a list of them is shown."""

from collections.abc import Sequence
from dataclasses import dataclass


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
