"""A report as one HTML file that needs nothing else: pictures, curves, scores, commands."""

import base64
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import isfinite
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from custom.files import write_atomically
from custom.pictures import enlarged, png_bytes

CHART_WIDTH, CHART_HEIGHT = 480, 220
PLOT = {"left": 68, "right": 470, "top": 12, "bottom": 190}

STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --soft: #6a6a70; --line: #d9d9de; --page: #fdfdfc;
  --tile: #f3f3f1; --s0: #2f6f9f; --s1: #b5562b; --s2: #4d8a4a; --s3: #7a5ba6; --notice: #fdf3d8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ea; --soft: #a0a0a8; --line: #3a3a40;
  --page: #17171a; --tile: #222226; --s0: #7ab8e6; --s1: #e99a70; --s2: #8fcf8b; --s3: #b9a0e0;
  --notice: #3a3219; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.25rem 1rem 4rem; max-width: 62rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .75rem; }
p { margin: .5rem 0; } .soft, figcaption, th { color: var(--soft); font-weight: normal; }
.notice { background: var(--notice); padding: .6rem .9rem; border-radius: 6px; }
.grid { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); }
.pictures { grid-template-columns: repeat(auto-fit, minmax(min(11rem, 45%), 1fr));
  margin-bottom: 1rem; }
.wide { grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
.tile { background: var(--tile); border-radius: 6px; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.6rem; font-weight: 600; line-height: 1.2;
  font-variant-numeric: tabular-nums; }
figure { margin: 0; } figure img, svg { width: 100%; height: auto; display: block; }
figure img { border-radius: 4px; image-rendering: pixelated; max-height: 22rem;
  object-fit: contain; object-position: left top; }
figure.whole img { max-height: none; width: auto; max-width: 100%; }
figure.whole { cursor: zoom-in; } figure.whole:focus { overflow-x: auto; cursor: auto; }
figure.whole:focus img { max-width: none; }
figcaption { font-size: .85rem; margin-top: .2rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .95rem; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
pre { background: var(--tile); border-radius: 6px; padding: .7rem .9rem; margin: .5rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; font: .82rem/1.5 ui-monospace, monospace; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
.key::before { content: ""; display: inline-block; width: .9rem; height: 3px; margin-right: .4rem;
  vertical-align: middle; background: var(--tone); } .key { margin-right: 1rem; }
"""


@dataclass(frozen=True)
class Section:
    """One part of a report.

    Args:
        heading: plain text; an empty one shows none.
        body: HTML, made by the functions of this module.
    """

    heading: str
    body: str


@dataclass(frozen=True)
class Picture:
    """One image of a report.

    Args:
        caption: plain text.
        image: (rows, columns, 3) uint8 RGB.
    """

    caption: str
    image: NDArray[np.uint8]


def write_report(
    path: str | os.PathLike[str], title: str, subtitle: str, sections: Sequence[Section]
) -> None:
    """Write a report as one self-contained HTML file, atomically.

    Args:
        path: of the file; its folder is created if missing.
        title: plain text, also the page's title.
        subtitle: plain text below the title.
        sections: in reading order.
    """
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f'<h1>{escape(title)}</h1><p class="soft">{escape(subtitle)}</p>',
    ]
    for section in sections:
        heading = f"<h2>{escape(section.heading)}</h2>" if section.heading else ""
        parts.append(f"<section>{heading}{section.body}</section>")
    parts.append("</body></html>\n")
    write_atomically(path, "\n".join(parts).encode())


def notice(text: str) -> str:
    """A line that must not be overlooked."""
    return f'<p class="notice">{escape(text)}</p>'


def paragraph(text: str) -> str:
    """Plain text."""
    return f"<p>{escape(text)}</p>"


def tiles(figures: Mapping[str, str]) -> str:
    """Headline figures: name to value."""
    cells = (
        f'<div class="tile"><b>{escape(value)}</b><span class="soft">{escape(name)}</span></div>'
        for name, value in figures.items()
    )
    return f'<div class="grid">{"".join(cells)}</div>'


def gallery(pictures: Sequence[Picture]) -> str:
    """Pictures side by side, fewer in a row on a narrow screen; small ones are enlarged."""
    figures = []
    for picture in pictures:
        factor = max(1, 256 // max(picture.image.shape[:2]))
        data = base64.b64encode(png_bytes(enlarged(picture.image, factor))).decode()
        caption = escape(picture.caption)
        figures.append(
            f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return f'<div class="grid pictures">{"".join(figures)}</div>'


def embedded(caption: str, content: bytes) -> str:
    """An image's file, PNG or GIF, as wide as the page; after a click pixel for pixel."""
    kind = "gif" if content.startswith(b"GIF") else "png"
    data, shown = base64.b64encode(content).decode(), escape(caption)
    return (
        f'<figure class="whole" tabindex="0">'
        f'<img alt="{shown}" src="data:image/{kind};base64,{data}">'
        f"<figcaption>{shown}</figcaption></figure>"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str | float]]) -> str:
    """A table; numbers are set to the right."""

    def cell(tag: str, value: str | float, number: bool) -> str:
        kind = ' class="number"' if number else ""
        return f"<{tag}{kind}>{escape(_shown(value))}</{tag}>"

    numeric = [all(not isinstance(row[i], str) for row in rows) for i in range(len(header))]
    lines = ["".join(map(cell, ["th"] * len(header), header, numeric))]
    lines += ["".join(map(cell, ["td"] * len(header), row, numeric)) for row in rows]
    return f'<div class="scroll"><table><tr>{"</tr><tr>".join(lines)}</tr></table></div>'


def commands(lines: Sequence[str]) -> str:
    """Commands as they were typed, one block each."""
    return "".join(f"<pre>{escape(line)}</pre>" for line in lines)


def read_history(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """Training history: a JSON list with one mapping per epoch; numbers only, the rest is dropped.

    A file that is not there is an empty history.
    """
    path = Path(path)
    if not path.exists():
        return []
    return [numbers_of(entry) for entry in json.loads(path.read_text())]


def numbers_of(entry: Mapping[str, object]) -> dict[str, float]:
    """What of a history's entry can be drawn."""
    return {k: float(v) for k, v in entry.items() if isinstance(v, int | float) and isfinite(v)}


def charts(history: Sequence[Mapping[str, float]], groups: Mapping[str, Sequence[str]]) -> str:
    """One line chart over epochs per group of keys; keys without values are left out.

    Args:
        history: one mapping per epoch with "epoch" and other keys.
        groups: title of the chart to keys drawn in it.
    """
    drawn = []
    for title, keys in groups.items():
        series = {
            key: [(entry["epoch"], entry[key]) for entry in history if key in entry] for key in keys
        }
        series = {key: points for key, points in series.items() if points}
        if series:
            drawn.append(_chart(title, series))
    return f'<div class="grid wide">{"".join(drawn)}</div>'


def _chart(title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """One line chart as inline SVG; its key names every line and the line's last value."""
    points = [point for line in series.values() for point in line]
    xs = ticks(min(x for x, _ in points), max(x for x, _ in points))
    ys = ticks(min(0.0, *(y for _, y in points)), max(y for _, y in points))
    marks, keys = [], []
    for y in ys:
        at = placed(y, ys, PLOT["bottom"], PLOT["top"])
        marks.append(
            f'<line x1="{PLOT["left"]}" x2="{PLOT["right"]}" y1="{at}" y2="{at}" '
            f'stroke="var(--line)"/><text x="{PLOT["left"] - 6}" '
            f'y="{at + 4}" text-anchor="end">{y:g}</text>'
        )
    for x in xs:
        at = placed(x, xs, PLOT["left"], PLOT["right"])
        unit = " epochs" if x == xs[-1] else ""
        anchor = "end" if unit else "middle"
        marks.append(f'<text x="{at}" y="208" text-anchor="{anchor}">{x:g}{unit}</text>')
    for i, (key, line) in enumerate(series.items()):
        tone = f"var(--s{i % 4})"
        path = " ".join(
            f"{placed(x, xs, PLOT['left'], PLOT['right'])},"
            f"{placed(y, ys, PLOT['bottom'], PLOT['top'])}"
            for x, y in line
        )
        marks.append(
            f'<polyline points="{path}" fill="none" stroke="{tone}" stroke-width="2" '
            'stroke-linejoin="round"/>'
        )
        if len(line) == 1:
            across, down = path.split(",")
            marks.append(f'<circle cx="{across}" cy="{down}" r="3" fill="{tone}"/>')
        keys.append(
            f'<span class="key" style="--tone: {tone}">{escape(key)} {line[-1][1]:.3g}</span>'
        )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(marks)}</svg>'
        f"<figcaption>{''.join(keys)}</figcaption></figure>"
    )


def ticks(low: float, high: float) -> list[float]:
    """Round numbers, evenly spaced, that enclose a range with about four steps.

    Args:
        low: beginning of the range.
        high: its end.
    """
    span = (high - low) or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / 4))
    step = min((unit * m for m in (1, 2, 5, 10)), key=lambda s: abs(span / s - 4))
    first, last = math.floor(low / step), math.ceil(high / step)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def placed(value: float, ticks: Sequence[float], start: float, stop: float) -> float:
    """Position of a value between the first and the last tick, in SVG units.

    Args:
        value: what is drawn.
        ticks: of its axis.
        start: where the first tick is.
        stop: where the last one is.
    """
    share = (value - ticks[0]) / (ticks[-1] - ticks[0])
    return round(start + share * (stop - start), 1)


def _shown(value: str | float) -> str:
    """Text as it is, whole numbers whole, others with three digits."""
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
