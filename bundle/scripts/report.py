"""Reports as one HTML page: of any finished run, and of a recipe.

From inside ``bundle/``: ``python -m scripts.report output``
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import fire
import numpy as np
import zarr
from numpy.typing import NDArray

from custom import __version__
from custom.comparison import Comparison, Cut, compared
from custom.comparison_picture import grey_range, matched
from custom.datalist import parse_datalist
from custom.datalist_entry import DatalistEntry
from custom.pictures import grey_image, overlay, paint, plane_slice
from custom.planes import PLANES
from custom.view import (
    Picture,
    Section,
    charts,
    commands,
    gallery,
    notice,
    paragraph,
    read_history,
    table,
    tiles,
    write_report,
)
from custom.viewing.run_report import write_run_report
from scripts.steps import BUNDLE, Record
from scripts.strict import strict

PACKAGES = ("monai", "torch", "transformers", "numpy", "tensorstore", "mwatershed")
CURVES = {
    "Loss": ("train_loss", "validation_loss"),
    "VOI on the validation volume, bits": ("voi", "voi_split", "voi_merge"),
    "Adapted Rand error on the validation volume": ("adapted_rand",),
    "Dice and IoU on the validation volume": ("dice", "iou"),
}


@strict
def report(folder: str = ".", out: str | None = None, datalist: str | None = None) -> None:
    """Write a report of what a folder holds: scores, pictures, sizes, curves, commands, settings.

    Args:
        folder: output_dir, eval_dir, the folder of both, or one <id>.zarr.
        out: path of the HTML file; run_report.html in the folder if left out.
        datalist: names raw and truth; without it the one that inference was run with.
    """
    place = Path(str(folder)).expanduser().absolute()
    beside = place.parent if place.suffix == ".zarr" else place
    path = beside / "run_report.html" if out is None else Path(str(out)).expanduser().absolute()
    write_run_report(place, path, datalist)
    print(f"Report: {path}")


def write_recipe_report(
    out: Path,
    title: str,
    notice_text: str,
    overlay_config: Path,
    settings: Mapping[str, str],
    records: Sequence[Record],
) -> Path:
    """Write ``report.html`` into a recipe's folder.

    Args:
        out: holds ``data`` or ``datalist.json``, ``output`` and ``eval``.
        title: of the page.
        notice_text: a line at the top that must not be overlooked; empty for none.
        overlay_config: the overlay that the runs used.
        settings: shown in a table.
        records: of the steps.

    Returns:
        Path of the report.
    """
    scores = json.loads((out / "eval" / "scores.json").read_text())
    entries = {entry.id: entry for entry in parse_datalist(scores["datalist"]).section("test")}
    sections = [Section("", notice(notice_text))] if notice_text else []
    for row in scores["entries"]:
        sections.append(Section(f"Scores of {row['id']}", _score_tiles(row)))
        sections.append(
            Section(f"Pictures of {row['id']}", _pictures(entries[row["id"]], out / "output"))
        )
    history = read_history(out / "eval" / "history.json")
    if history:
        sections.append(Section("Training", charts(history, CURVES)))
    sections += [
        Section("Commands", _commands(records)),
        Section("Time and memory", _steps(records)),
        Section("Settings", _settings(settings, overlay_config)),
        Section("Versions", _versions()),
    ]
    minutes = sum(record.seconds for record in records) / 60
    path = out / "report.html"
    write_report(
        path, title, f"Scores on held-out voxels; all steps took {minutes:.1f} minutes", sections
    )
    return path


def _score_tiles(row: Mapping[str, float]) -> str:
    """Headline figures of one entry."""
    if "dice" in row:
        return _class_tiles(row)
    figures = {
        "VOI, bits": f"{row['voi']:.3f}",
        "of it split": f"{row['voi_split']:.3f}",
        "of it merge": f"{row['voi_merge']:.3f}",
        "adapted Rand error": f"{row['adapted_rand']:.3f}",
        "segments": f"{row['segments']:,}",
        "objects in the truth": f"{row['truth_objects']:,}",
    }
    explained = (
        "0 is perfect for VOI and adapted Rand error. Split counts objects cut into pieces, merge "
        f"counts objects joined. {row['voxels']:,} voxels were compared."
    )
    return tiles(figures) + paragraph(explained)


def _class_tiles(row: Mapping[str, float]) -> str:
    """Headline figures of one entry of classes."""
    figures = {
        f"{title}{name.removeprefix(score).replace('_', ' of ', 1)}": f"{value:.3f}"
        for score, title in (("dice", "Dice"), ("iou", "IoU"))
        for name, value in row.items()
        if name.startswith(score)
    }
    explained = (
        "1 is perfect; figures without a name are means over the classes but the background. "
        f"{row['voxels']:,} voxels were compared."
    )
    return tiles(figures) + paragraph(explained)


def _pictures(entry: DatalistEntry, output_dir: Path) -> str:
    """Raw, truth, prediction and segmentation in the middle slices of the held-out region."""
    comparison = compared(entry, output_dir)
    cuts = [comparison.middle(plane) for plane in PLANES]
    predicted, explained = _prediction(entry, output_dir, comparison, cuts)
    low, high = grey_range(cuts)
    size = comparison.voxel_size_nm
    rows = []
    agreeing = matched(comparison, cuts)
    for plane, cut, prediction, found in zip(PLANES, cuts, predicted, agreeing, strict=True):
        grey = grey_image(plane_slice(cut.raw, plane, size), low, high)
        truth = paint(plane_slice(cut.truth, plane, size))
        segments = paint(plane_slice(found, plane, size))
        images = {
            "raw": grey,
            "truth": overlay(truth, grey),
            "prediction": plane_slice(prediction, plane, size),
            "segmentation": overlay(segments, grey),
        }
        rows.append(gallery([Picture(f"{plane}: {name}", image) for name, image in images.items()]))
    return "".join(rows) + paragraph(explained)


def _prediction(
    entry: DatalistEntry, output_dir: Path, comparison: Comparison, cuts: Sequence[Cut]
) -> tuple[list[NDArray[np.uint8]], str]:
    """What the network predicted on the sections, (D, H, W, 3) each, and what colours say."""
    group = output_dir / f"{entry.id}.zarr"
    if comparison.classes:
        array = zarr.open_array(group / "probabilities" / "s0", mode="r")
        foreground = (255 - np.asarray(array[(0, *cut.written.to_slices())]) for cut in cuts)
        return [np.repeat(values[..., None], 3, axis=-1) for values in foreground], (
            "A class has one colour in truth and segmentation; the prediction is bright where it "
            "is not background."
        )
    array = zarr.open_array(group / "affinities" / "s0", mode="r")
    nearest = nearest_offsets(np.asarray(array.attrs["offsets"]))
    colours = [np.zeros((*cut.truth.shape, 3), np.uint8) for cut in cuts]
    for cut, values in zip(cuts, colours, strict=True):
        for axis, k in nearest.items():
            values[..., axis] = array[(k, *cut.written.to_slices())]
    return colours, (
        "A segment has the colour of the true object that it covers best; other colours are pieces "
        "split off. Red, green and blue are the affinities to the neighbours along z, y and x."
    )


def nearest_offsets(offsets: NDArray[np.integer]) -> dict[int, int]:
    """For every axis that offsets (K, 3) lead along, the index of the shortest that does."""
    length = (offsets**2).sum(axis=1)
    mainly = np.abs(offsets).argmax(axis=1)
    return {
        int(axis): int(np.flatnonzero(mainly == axis)[length[mainly == axis].argmin()])
        for axis in np.unique(mainly)
    }


def _commands(records: Sequence[Record]) -> str:
    """Every command with its step's name."""
    return paragraph("From inside bundle/:") + commands([record.command for record in records])


def _steps(records: Sequence[Record]) -> str:
    """Seconds and peak memory of every step."""
    rows = [[record.step, round(record.seconds), round(record.peak_mib)] for record in records]
    return table(["step", "seconds", "peak MiB"], rows)


def _settings(settings: Mapping[str, str], overlay_config: Path) -> str:
    """Settings of the recipe and the overlay as it was."""
    name = overlay_config.relative_to(BUNDLE)
    rows = [[key, value] for key, value in settings.items()]
    text = overlay_config.read_text().strip()
    return table(["setting", "value"], rows) + paragraph(f"{name}:") + commands([text])


def _versions() -> str:
    """Python, this project and the packages that do the work."""
    rows = [["emseg", __version__], ["Python", platform.python_version()]]
    for package in PACKAGES:
        try:
            rows.append([package, version(package)])
        except PackageNotFoundError:
            continue
    rows.append(["machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"])
    return table(["package", "version"], rows)


if __name__ == "__main__":
    fire.Fire(report)
