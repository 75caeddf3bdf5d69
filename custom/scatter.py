"""A chart of points in a plane, one of them marked."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from custom.view import CHART_WIDTH, PLOT, placed, ticks

HEIGHT = 235  # the chart's and a line for what is along x


@dataclass(frozen=True)
class Point:
    """One point of a chart.

    Args:
        x: to the right.
        y: upwards.
        text: shown where the pointer rests on it.
    """

    x: float
    y: float
    text: str


def scatter(title: str, across: str, up: str, points: Sequence[Point], chosen: int) -> str:
    """A chart as inline SVG; both axes begin at 0.

    Args:
        title: of the chart.
        across: what x is.
        up: what y is.
        points: at least one.
        chosen: index of the point that is marked.
    """
    xs = ticks(0.0, max(point.x for point in points))
    ys = ticks(0.0, max(point.y for point in points))
    marks = [_tick(placed(y, ys, PLOT["bottom"], PLOT["top"]), f"{y:g}") for y in ys]
    for x in xs:
        at = placed(x, xs, PLOT["left"], PLOT["right"])
        marks.append(f'<text x="{at}" y="208" text-anchor="middle">{x:g}</text>')
    middle = (PLOT["left"] + PLOT["right"]) / 2
    marks.append(f'<text x="{middle}" y="228" text-anchor="middle">{escape(across)}</text>')
    marks.append(
        f'<text transform="translate(14 101) rotate(-90)" text-anchor="middle">{escape(up)}</text>'
    )
    order = [i for i in range(len(points)) if i != chosen] + [chosen]  # the marked one on top
    for i in order:
        place = (
            placed(points[i].x, xs, PLOT["left"], PLOT["right"]),
            placed(points[i].y, ys, PLOT["bottom"], PLOT["top"]),
        )
        marks.append(_dot(*place, points[i].text, i == chosen))
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {CHART_WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(marks)}</svg></figure>'
    )


def _tick(at: float, text: str) -> str:
    """A line across, and its number."""
    return (
        f'<line x1="{PLOT["left"]}" x2="{PLOT["right"]}" y1="{at}" y2="{at}" '
        f'stroke="var(--line)"/><text x="{PLOT["left"] - 6}" y="{at + 4}" '
        f'text-anchor="end">{text}</text>'
    )


def _dot(x: float, y: float, text: str, chosen: bool) -> str:
    """A point; the chosen one is larger, has another colour and a ring."""
    shown = f"<title>{escape(text)}</title>"
    if not chosen:
        return f'<circle cx="{x}" cy="{y}" r="3.5" fill="var(--s0)" opacity=".6">{shown}</circle>'
    ring = f'<circle cx="{x}" cy="{y}" r="9" fill="none" stroke="var(--s1)" stroke-width="2"/>'
    return (
        f'{ring}<circle class="chosen" cx="{x}" cy="{y}" r="4.5" fill="var(--s1)">{shown}</circle>'
    )
