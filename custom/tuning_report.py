"""The page of a scan of segmentation settings: VOI split against merge, and the best ones."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from custom.scatter import Point, scatter
from custom.view import Section, paragraph, table, tiles, write_report

SHOWN = 20  # settings in the table


def write_tuning_report(
    path: Path,
    method: str,
    section: str,
    grid: Sequence[Mapping[str, Any]],
    means: Sequence[Mapping[str, float]],
    chosen: int,
) -> None:
    """Write the page.

    Args:
        path: of the HTML file.
        method: its name.
        section: of the datalist.
        grid: settings that were tried.
        means: scores of each.
        chosen: index of the best.
    """
    points = [
        Point(found["voi_merge"], found["voi_split"], f"{_text(settings)}: VOI {found['voi']:.3f}")
        for settings, found in zip(grid, means, strict=True)
    ]
    best = means[chosen]
    figures = {
        "VOI, bits": f"{best['voi']:.3f}",
        "of it split": f"{best['voi_split']:.3f}",
        "of it merge": f"{best['voi_merge']:.3f}",
        "adapted Rand error": f"{best['adapted_rand']:.3f}",
    }
    chart = scatter("VOI in bits, every setting", "merge", "split", points, chosen)
    order = sorted(range(len(grid)), key=lambda i: (i != chosen, means[i]["cremi"]))[:SHOWN]
    names = ("voi", "voi_split", "voi_merge", "adapted_rand")
    rows: list[list[str | float]] = [
        [_text(grid[i]), *(means[i][name] for name in names)] for i in order
    ]
    explained = (
        "0 is perfect. The setting with the ring has the lowest geometric mean of VOI and adapted "
        "Rand error; it is stored with the model."
    )
    sections = [
        Section("The best setting", tiles(figures) + paragraph(_text(grid[chosen]))),
        Section("Split against merge", chart + paragraph(explained)),
        Section("Settings, the best first", table(["setting", *names], rows)),
    ]
    write_report(path, f"Settings of {method}", f"{len(grid)} tried on section {section}", sections)


def _text(settings: Mapping[str, Any]) -> str:
    """Settings in one line."""
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in settings.items())
