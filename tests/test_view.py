import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from custom.view import (
    STYLE,
    Picture,
    Section,
    charts,
    commands,
    embedded,
    gallery,
    notice,
    read_history,
    table,
    tiles,
    write_report,
)

VOID = {"meta", "img", "line", "circle", "polyline"}
HISTORY = [{"epoch": e, "train_loss": 1 / e, "voi": 3.0 - e / 10} for e in range(1, 9)]


class Outline(HTMLParser):
    """Checks that tags close in order, and collects text and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    assert parser.open == []
    return parser


def report(folder: Path) -> str:
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    write_report(
        folder / "report.html",
        "Demo <1>",
        "a & b",
        [
            Section("", notice("the backbone was random")),
            Section("Scores", tiles({"VOI": "0.5"})),
            Section("Pictures", gallery([Picture("xy: raw", image)])),
            Section("Training", charts(HISTORY, {"Loss": ["train_loss"], "VOI": ["voi"]})),
            Section("Commands", commands(["python -m x --a \"['b']\""])),
            Section("Steps", table(["step", "seconds"], [["training", 12]])),
        ],
    )
    return (folder / "report.html").read_text()


def test_a_report_is_well_formed_and_holds_all_it_was_given(tmp_path: Path) -> None:
    page = report(tmp_path)
    assert page.count("Demo &lt;1&gt;") == 2  # title and headline
    text = " ".join(outline(page).text)
    for part in (
        "Demo <1>",
        "a & b",
        "the backbone was random",
        "0.5",
        "xy: raw",
        "python -m x --a \"['b']\"",
        "training",
        "12",
    ):
        assert part in text


def test_a_report_needs_no_other_file(tmp_path: Path) -> None:
    page = report(tmp_path)
    for name, value in outline(page).attributes:
        if name in ("src", "href"):
            assert value.startswith("data:")
    assert "<script" not in page
    assert not re.search(r"url\(|@import|https?://", page)


def test_pictures_arrive_pixel_for_pixel_enlarged(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (20, 100, 3), dtype=np.uint8)
    (source,) = re.findall(r"base64,([^\"]+)", gallery([Picture("a", image)]))
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(source))))
    assert shown.shape == (40, 200, 3)
    np.testing.assert_array_equal(shown[::2, 1::2], image)


def test_a_curve_has_one_point_per_epoch_and_falls_when_the_values_fall() -> None:
    page = charts(HISTORY, {"VOI": ["voi"]})
    (points,) = re.findall(r'<polyline points="([^"]+)"', page)
    at = np.array([[float(n) for n in point.split(",")] for point in points.split()])
    assert len(at) == len(HISTORY)
    assert (np.diff(at[:, 0]) > 0).all()
    assert (np.diff(at[:, 1]) > 0).all()  # down the page


def test_a_curve_without_values_is_left_out_and_one_point_is_a_dot() -> None:
    history = [{"epoch": 1.0, "train_loss": 0.5}]
    page = charts(history, {"Loss": ["train_loss", "validation_loss"], "VOI": ["voi"]})
    outline(page)
    assert page.count("<polyline") == 1
    assert page.count("<circle") == 1
    assert "VOI" not in page


@pytest.mark.parametrize(
    "values", [[0.0, 0.0], [0.1, 0.37], [-3.0, 2.0], [1e-6, 3e-6], [5.0], [1e5, 3e5]]
)
def test_curves_stay_inside_the_axes(values: list[float]) -> None:
    history = [{"epoch": float(i), "a": value} for i, value in enumerate(values)]
    (points,) = re.findall(r'<polyline points="([^"]+)"', charts(history, {"A": ["a"]}))
    at = np.array([[float(n) for n in point.split(",")] for point in points.split()])
    assert at[:, 0].min() >= 44
    assert at[:, 0].max() <= 470
    assert at[:, 1].min() >= 12
    assert at[:, 1].max() <= 190


@pytest.mark.parametrize("high", [0.0015, 0.00015, -0.00015, 2e-05, -1.5e-07, 1e7])
def test_the_labels_of_the_vertical_axis_are_inside_the_chart(high: float) -> None:
    page = charts([{"epoch": 0.0, "a": 0.0}, {"epoch": 1.0, "a": high}], {"A": ["a"]})
    found = re.findall(r'text x="([\d.]+)" y="[\d.]+" text-anchor="end">([^<]+)<', page)
    labels = [label for label in found if "epoch" not in label[1]]
    assert len(labels) > 2
    for right, text in labels:
        assert float(right) >= 7.2 * len(text)  # pixels of a digit


def test_a_wide_picture_can_be_shown_pixel_for_pixel() -> None:
    assert '<figure class="whole" tabindex="0">' in embedded("panel", b"")  # can have the focus
    assert "figure.whole:focus img { max-width: none; }" in STYLE


def test_a_point_on_a_grid_line_has_the_value_beside_it() -> None:
    page = charts([{"epoch": 0.0, "a": 0.0}, {"epoch": 10.0, "a": 4.0}], {"A": ["a"]})
    (points,) = re.findall(r'<polyline points="([^"]+)"', page)
    grid = {
        float(value): float(at)
        for at, value in re.findall(r'y2="([\d.]+)"[^>]*/><text[^>]*>([\d.]+)<', page)
    }
    assert [float(point.split(",")[1]) for point in points.split()] == [grid[0], grid[4]]


def test_history_keeps_finite_numbers(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    assert read_history(path) == []
    path.write_text(json.dumps([{"epoch": 1, "voi": None, "note": "x", "loss": float("nan")}]))
    assert read_history(path) == [{"epoch": 1.0}]


def test_table_sets_numbers_to_the_right_and_escapes_text() -> None:
    page = table(["a", "b", "c"], [["<x>", 1234, 0.51239], ["y", 2, 3.0]])
    assert "&lt;x&gt;" in page
    assert '<td class="number">1,234</td><td class="number">0.512</td>' in page
    assert page.count("<tr>") == page.count("</tr>") == 3
