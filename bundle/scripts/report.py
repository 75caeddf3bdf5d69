"""The report of a recipe: what its folder holds, as one HTML page."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray

from custom import __version__
from custom.datalist import parse_datalist
from custom.datalist_entry import DatalistEntry
from custom.evaluation import Comparison, compared
from custom.pictures import grey_image, matched_to_truth, overlay, paint, plane_slice
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
from scripts.steps import BUNDLE, Record

PACKAGES = ("monai", "torch", "transformers", "numpy", "tensorstore", "mwatershed")
CURVES = {
    "Loss": ("train_loss", "validation_loss"),
    "VOI on the validation volume, bits": ("voi", "voi_split", "voi_merge"),
    "Adapted Rand error on the validation volume": ("adapted_rand",),
}


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


def _pictures(entry: DatalistEntry, output_dir: Path) -> str:
    """Raw, truth, affinities and segmentation in the middle slices of the held-out region."""
    comparison = compared(entry, output_dir)
    affinities = _nearest_affinities(entry, output_dir, comparison)
    low, high = np.percentile(comparison.raw, (0.5, 99.5))
    matched = matched_to_truth(comparison.truth, comparison.segmentation)
    size = comparison.voxel_size_nm
    rows = []
    for plane in PLANES:
        grey = grey_image(plane_slice(comparison.raw, plane, size), float(low), float(high))
        truth = paint(plane_slice(comparison.truth, plane, size))
        segments = paint(plane_slice(matched, plane, size))
        images = {
            "raw": grey,
            "truth": overlay(truth, grey),
            "affinities": plane_slice(affinities, plane, size),
            "segmentation": overlay(segments, grey),
        }
        rows.append(gallery([Picture(f"{plane}: {name}", image) for name, image in images.items()]))
    return "".join(rows) + paragraph(
        "A segment has the colour of the true object that it covers best; other colours are pieces "
        "split off. Red, green and blue are the affinities to the neighbours along z, y and x."
    )


def _nearest_affinities(
    entry: DatalistEntry, output_dir: Path, comparison: Comparison
) -> NDArray[np.uint8]:
    """Affinities of the three shortest offsets on the compared voxels, (D, H, W, 3)."""
    array = zarr.open_array(output_dir / f"{entry.id}.zarr" / "affinities" / "s0", mode="r")
    offsets = np.abs(np.asarray(array.attrs["offsets"]))
    nearest = np.argsort((offsets**2).sum(axis=1), kind="stable")[:3]
    nearest = nearest[np.argsort(offsets[nearest].argmax(axis=1), kind="stable")]
    box = comparison.written.to_slices()
    return np.stack([np.asarray(array[(int(k), *box)]) for k in nearest], axis=-1)


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
