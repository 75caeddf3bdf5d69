"""The report of any finished run: what its folders hold, on one HTML page."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from custom.changed_settings import as_text
from custom.errors import InputError
from custom.outputs.images import SEGMENTATION, is_complete, is_result
from custom.panels import latest_pictures
from custom.training_report import CURVES
from custom.view import (
    Picture,
    Section,
    charts,
    commands,
    embedded,
    gallery,
    notice,
    paragraph,
    read_history,
    table,
    tiles,
    write_report,
)
from custom.viewing.finished_output import FinishedOutput, find_outputs
from custom.viewing.object_sizes import object_volumes_um3, size_chart
from custom.viewing.output_pictures import output_pictures
from custom.viewing.scored import changed_since

RUNS = ("preprocessing", "training", "inference", "evaluating")
TITLES = {
    "voi": "VOI, bits",
    "voi_split": "of it split",
    "voi_merge": "of it merge",
    "adapted_rand": "adapted Rand error",
    "ap": "average precision",
    "dice": "mean Dice",
    "iou": "mean IoU",
    "segments": "segments",
    "truth_objects": "objects in the truth",
    "voxels": "voxels compared",
}
COLOURS = (
    "A segment has the colour of the true object that it covers best. Errors: orange where a piece "
    "was split off, blue where objects were merged, purple both, red where nothing was found. Red, "
    "green and blue are the affinities along z, y and x."
)
SHOWN_SETTINGS = ("_target_", "imports", "bootstrap", "preflight")
WORST = 10


@dataclass(frozen=True)
class RunFolders:
    """Where a run's results are, as far as there are any.

    Args:
        outputs: results of inference, finished or not.
        eval_dir: scores, history and pictures.
        records: of runs, the latest of each kind.
    """

    outputs: Sequence[Path]
    eval_dir: Path | None
    records: Sequence[Mapping[str, Any]]


def find_run(folder: Path) -> RunFolders:
    """What a folder holds: a project's (``output``, ``eval``, ...), one of these, or a result.

    Args:
        folder: what the user names.

    Raises:
        InputError: there is nothing to report.
    """
    if not folder.exists():
        raise InputError(f"there is no folder '{folder}'")
    output_dir = folder.parent if is_result(folder) else _output_dir(folder)
    eval_dir = _eval_dir(folder, output_dir)
    if output_dir is None and eval_dir is not None:
        output_dir = _scored_output_dir(eval_dir)
    found = sorted(output_dir.glob("*.zarr")) if output_dir else []
    outputs = [folder] if is_result(folder) else [path for path in found if is_result(path)]
    places = {folder, folder / "cache", *(p for p in (output_dir, eval_dir) if p is not None)}
    records = _latest_records(places)
    if not outputs and eval_dir is None and not records:
        raise InputError(
            f"there is nothing to report in '{folder}': no result of inference, scores or history; "
            f"name the output_dir or eval_dir of a run, or the folder of both"
        )
    return RunFolders(outputs, eval_dir, records)


def write_run_report(folder: Path, path: Path, datalist: str | None = None) -> None:
    """Write the report.

    Args:
        folder: as of ``find_run``.
        path: of the HTML file.
        datalist: names raw and truth; None for what inference was run with.

    Raises:
        InputError: there is nothing to report, or the datalist does not fit.
    """
    run = find_run(folder)
    scores = _read_json(run.eval_dir / "scores.json") if run.eval_dir else {}
    sections = []
    for output in run.outputs:
        sections += _output_sections(output, scores, run.eval_dir, datalist)
    shown = {output.name.removesuffix(".zarr") for output in run.outputs}
    for row in scores.get("entries", ()):
        if row["id"] not in shown:
            sections.append(Section(f"Scores of {row['id']}", _score_tiles(row)))
    if run.eval_dir is not None:
        sections += _training_sections(run.eval_dir)
    sections += _record_sections(run.records)
    kinds = [record["run"] for record in run.records]
    write_report(path, folder.resolve().name, f"Runs: {', '.join(kinds) or 'no records'}", sections)


def _output_dir(folder: Path) -> Path | None:
    """The folder itself or ``output`` in it, whichever holds results."""
    places = (folder, folder / "output")
    return next((p for p in places if any(is_result(one) for one in p.glob("*.zarr"))), None)


def _eval_dir(folder: Path, output_dir: Path | None) -> Path | None:
    """The folder of scores and history."""
    places = [folder, folder / "eval", *([output_dir.parent / "eval"] if output_dir else [])]
    names = ("scores.json", "history.json")
    return next((p for p in places if any((p / name).is_file() for name in names)), None)


def _scored_output_dir(eval_dir: Path) -> Path | None:
    """Where the scored results are, if they are still there."""
    named = _read_json(eval_dir / "scores.json").get("output_dir")
    places = [Path(str(named)).expanduser()] if named else []
    places += [eval_dir.parent / places[0].name] if places else []
    return next((p.absolute() for p in places if any(p.glob("*.zarr"))), None)


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"'{path}' is not valid JSON: {error}; run again what wrote it") from error
    return found


def _latest_records(places: set[Path]) -> list[dict[str, Any]]:
    """The latest record of every kind of run, in the order of the runs."""
    found = []
    for kind in RUNS:
        paths = [path for place in places for path in (place / "runs").glob(f"{kind}_*.json")]
        if paths:
            found.append(_read_json(max(paths, key=lambda path: path.name)))
    return found


def _output_sections(
    path: Path, scores: Mapping[str, Any], eval_dir: Path | None, datalist: str | None
) -> list[Section]:
    """Scores, pictures, sizes and the worst errors of one result."""
    id_ = path.name.removesuffix(".zarr")
    if not is_complete(path):
        return [Section(id_, notice(f"{id_}: inference has not come to its end."))]
    output = _opened(path, scores, datalist)
    sections = []
    if changed := changed_since(scores.get("outputs", {}).get(id_, {}), output):
        sections.append(Section(f"Scores of {id_}", _evaluate_again(changed, scores, eval_dir)))
        scores = {}
    rows = [row for row in scores.get("entries", ()) if row["id"] == id_]
    sections += [Section(f"Scores of {id_}", _score_tiles(row)) for row in rows]
    sections.append(Section(f"Pictures of {id_}", _pictures(output, eval_dir)))
    if not output.classes and not output.per_section:
        volumes = object_volumes_um3(path)
        if volumes is not None and volumes.size:
            sections.append(Section(f"Sizes of objects of {id_}", size_chart(volumes)))
    for kind in ("splits", "merges"):
        worst = scores.get(f"worst_{kind}", {}).get(id_)
        if worst:
            sections.append(Section(f"Worst {kind} of {id_}", _worst(worst)))
    made = output.attributes(SEGMENTATION).get("segmentation")
    if isinstance(made, Mapping):
        sections.append(Section(f"Segmentation of {id_}", _settings(made)))
    return sections


def _evaluate_again(changed: str, scores: Mapping[str, Any], eval_dir: Path | None) -> str:
    """That the scores are of what is no longer there, and the command that makes new ones."""
    places = {name: scores[name] for name in ("datalist", "section", "output_dir")}
    again = {"run": "evaluating", "config_files": ["configs/evaluate.json"]}
    command = _command({**again, "overrides": {**places, "eval_dir": str(eval_dir)}})
    said = f"The scores in '{eval_dir}' are of an earlier {changed}, so they are not shown."
    return notice(f"{said} Evaluate again:") + commands([command])


def _opened(path: Path, scores: Mapping[str, Any], datalist: str | None) -> FinishedOutput:
    """A result with its raw and truth, by the record of inference or the datalist of the scores."""
    (output,) = find_outputs([str(path)], str(path.parent), datalist)
    scored = scores.get("datalist")
    ids = [row["id"] for row in scores.get("entries", ())]
    if output.entry is None and scored and output.id in ids and Path(scored).is_file():
        (output,) = find_outputs([str(path)], str(path.parent), scored)
    return output


def _score_tiles(row: Mapping[str, Any]) -> str:
    """All scores of one entry, those with a title first."""
    names = [*(n for n in TITLES if n in row), *(n for n in row if n not in (*TITLES, "id"))]
    figures = {}
    for name in names:
        value = row[name]
        if isinstance(value, int | float) and isfinite(value):
            text = f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
            figures[TITLES.get(name, name.replace("_", " "))] = text
    return tiles(figures)


def _pictures(output: FinishedOutput, eval_dir: Path | None) -> str:
    """Three planes."""
    planes = output_pictures(output, eval_dir)
    galleries = [
        gallery([Picture(f"{one.plane}: {name}", image) for name, image in one.images.items()])
        for one in planes
    ]
    missing = "" if output.entry else "Raw is not known: give --datalist. "
    return "".join(galleries) + paragraph(missing + COLOURS)


def _worst(rows: Sequence[Mapping[str, Any]]) -> str:
    """The worst objects or segments, with a place to look at."""
    names = [name for name in rows[0] if not name.endswith("_nm")]
    values = [[_cell(row[name]) for name in names] for row in rows[:WORST]]
    place = "z, y and x are voxels of the segmentation: scripts.view takes them as --position."
    return table([name.replace("_", " ") for name in names], values) + paragraph(place)


def _cell(value: Any) -> str | float:
    return value if isinstance(value, int | float) else str(value)


def _training_sections(eval_dir: Path) -> list[Section]:
    """Curves and the latest pictures of a training."""
    history = read_history(eval_dir / "history.json")
    if not history:
        return []
    components = [name for name in history[-1] if name.startswith("loss_")]
    groups = {"Loss": ("train_loss", *components), **CURVES}
    sections = [Section("Training", charts(history, groups))]
    pictures = latest_pictures(eval_dir)
    if pictures:
        shown = "".join(embedded(path.name, path.read_bytes()) for path in pictures)
        sections.append(Section("Pictures of the last validation", shown))
    return sections


def _record_sections(records: Sequence[Mapping[str, Any]]) -> list[Section]:
    """Commands, times, settings and versions."""
    if not records:
        return []
    rows = [
        [
            record["run"],
            str(record.get("started", ""))[:19].replace("T", " "),
            f"{record['seconds']:,.0f}" if "seconds" in record else "",
            str(record.get("device", "")),
            str(record.get("outcome", "has not ended")),
        ]
        for record in records
    ]
    latest = records[-1]
    header = ["run", "started, UTC", "seconds", "device", "outcome"]
    sections = [
        Section("Runs", table(header, rows)),
        Section("Commands", commands([_command(record) for record in records])),
    ]
    for record in records:
        values = record.get("values", {})
        chosen = {k: v for k, v in values.items() if k not in SHOWN_SETTINGS}
        if chosen:
            sections.append(Section(f"Settings of {record['run']}", _settings(chosen)))
    versions = {k: str(v) for k, v in latest.get("versions", {}).items()}
    commit = latest.get("git") or {}
    if commit.get("commit"):
        versions["commit"] = commit["commit"] + (" and changes" if commit.get("dirty") else "")
    sections.append(Section("Versions", table(["package", "version"], list(versions.items()))))
    return sections


def _settings(values: Mapping[str, Any]) -> str:
    return table(["setting", "value"], [[key, as_text(value)] for key, value in values.items()])


def _command(record: Mapping[str, Any]) -> str:
    """The command of a run, as it would be typed."""
    files = list(record.get("config_files", ()))
    given = str(files).replace(" ", "") if len(files) > 1 else (files or [""])[0]
    parts = ["python", "-m", "monai.bundle", "run", record["run"], "--config_file", given]
    for key, value in record.get("overrides", {}).items():
        parts += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    return shlex.join(parts)
