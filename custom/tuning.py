"""Search of the settings of a segmentation method that are best on volumes with labels."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from tqdm import tqdm

from custom.best_setting import best_setting
from custom.comparison import Comparison, compared
from custom.datalist import entries_in
from custom.datalist_entry import DatalistEntry
from custom.errors import InputError
from custom.metrics import SCORES, instance_scores
from custom.model_folder import change_description, read_model
from custom.outputs.images import is_complete
from custom.segmentation.method import SegmentationMethod, same_fragments
from custom.segmentation_settings import METHOD, MUTEX_WATERSHED, SETTINGS, method_name
from custom.tuning_report import write_tuning_report
from custom.tuning_rows import ScoreTable, Tried

logger = logging.getLogger(__name__)

FOLDER = "tuning"  # in output_dir
AFFINITIES = "affinities"


@dataclass(frozen=True)
class Predicted:
    """Affinities of an entry beside its truth.

    Args:
        comparison: the entry, and the voxels to compare.
        path: of the array (K, D, H, W) uint8.
        identity: changes with affinities, truth and the voxels that are compared.
    """

    comparison: Comparison
    path: Path
    identity: str

    @property
    def name(self) -> str:
        """The entry's id."""
        return self.comparison.opened.entry.id

    def read(self) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
        """Affinities, and labels, 0 where there is no truth."""
        box = self.comparison.written
        stored = zarr.open_array(self.path, mode="r")
        affinities = np.asarray(stored[(slice(None), *box.to_slices())], dtype=np.uint8)
        labels, known = self.comparison.read_labels(box)
        return affinities, np.where(known, labels, 0)


@dataclass(frozen=True)
class Winner:
    """What a scan has found.

    Args:
        settings: of the grid, the best ones.
        scores: their means over the volumes.
        report: page with the chart.
    """

    settings: Mapping[str, Any]
    scores: Mapping[str, float]
    report: Path


def settings_in(grid: object) -> list[dict[str, Any]]:
    """All settings of a grid.

    Args:
        grid: lists of values by setting, of which all combinations are taken; or a list of
            settings.

    Raises:
        InputError: it is neither, or empty.
    """
    found: list[dict[str, Any]] = []
    if isinstance(grid, Mapping) and all(isinstance(v, list | tuple) for v in grid.values()):
        found = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    elif isinstance(grid, list | tuple) and all(isinstance(item, Mapping) for item in grid):
        found = [dict(item) for item in grid]
    if not found or not any(found):
        raise InputError(
            f"grid must have a list of values for every setting to scan, such as "
            f'{{"threshold": [0.5, 0.7, 0.9]}}, got {grid!r}.'
        )
    return found


def tune(
    method: SegmentationMethod,
    grid: Sequence[Mapping[str, Any]],
    datalist: str | Path,
    section: str,
    output_dir: str | Path,
    model_dir: str | Path,
    per_section: bool = False,
) -> Winner:
    """Score every setting on the affinities that inference wrote, and store the best one.

    Every volume's ROI is segmented on its own. The best setting is that of the lowest geometric
    mean of VOI and adapted Rand error, as at validation; it goes into ``model.json``, where
    inference finds it. Scores go into ``<output_dir>/tuning/<section>.csv`` one by one, and a scan
    that was interrupted, or has a larger grid now, goes on with what is there.

    Args:
        method: of the configuration; settings that are stored with the model for the same method
            count, too, where the grid does not name them.
        grid: settings to choose from.
        datalist: path of the datalist.
        section: of it.
        output_dir: folder that inference wrote to.
        model_dir: folder of the model.
        per_section: compare every section (of z) on its own.

    Raises:
        InputError: no model; a setting is unknown; there are no affinities or no labels, or they
            are of other offsets.
    """
    base = _base(method, read_model(Path(model_dir)))
    methods = [base.with_settings(**settings) for settings in grid]
    entries = entries_in(datalist, section)
    volumes = [_predicted(entry, Path(output_dir), method) for entry in entries]
    folder = Path(output_dir) / FOLDER
    rows = _scored(volumes, methods, ScoreTable(folder / f"{section}.csv"), per_section)
    index, means = best_setting(rows)
    name = method_name(method)
    report = folder / f"{section}.html"
    write_tuning_report(report, name.rpartition(".")[2], section, grid, means, index)
    stored = _stored(method, read_model(Path(model_dir)))
    change_description(Path(model_dir), {METHOD: name, SETTINGS: {**stored, **grid[index]}})
    return Winner(dict(grid[index]), means[index], report)


def _base(method: SegmentationMethod, description: Mapping[str, Any]) -> SegmentationMethod:
    """The method with what is stored for it."""
    return method.with_settings(**_stored(method, description))


def _stored(method: SegmentationMethod, description: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that a model has for this method."""
    same = (description.get(METHOD) or MUTEX_WATERSHED) == method_name(method)
    return dict(description.get(SETTINGS, {})) if same else {}


def _predicted(entry: DatalistEntry, output_dir: Path, method: SegmentationMethod) -> Predicted:
    """What inference wrote of an entry, as far as its metadata."""
    store = output_dir / f"{entry.id}.zarr"
    path = store / AFFINITIES / "s0"
    if not path.is_dir() or not is_complete(store):
        raise InputError(
            f"there are no affinities of entry '{entry.id}' in {store}: run inference on its "
            f"section of the datalist first (python -m monai.bundle run inference --config_file "
            f"configs/inference.json --section <section>)."
        )
    array = zarr.open_array(path, mode="r")
    found: Any = array.attrs.get("offsets")
    wanted = [list(offset) for offset in method.offsets]
    if found is not None and [list(offset) for offset in found] != wanted:
        raise InputError(
            f"the affinities of entry '{entry.id}' are of other offsets than the config's "
            f"affinity_offsets: {found}, not {wanted}."
        )
    comparison = compared(entry, output_dir)
    changed = max(os.stat(folder).st_mtime_ns for folder, _, _ in os.walk(path))
    said = json.dumps([changed, comparison.identity()])
    return Predicted(comparison, path, hashlib.sha256(said.encode()).hexdigest()[:16])


def _scored(
    volumes: Sequence[Predicted],
    methods: Sequence[SegmentationMethod],
    table: ScoreTable,
    per_section: bool,
) -> list[list[dict[str, float]]]:
    """Scores of every volume at every setting."""
    keys = [[_tried(volume, method, per_section) for method in methods] for volume in volumes]
    left = sum(table.find(key) is None for row in keys for key in row)
    total = sum(map(len, keys))
    if left < total:
        logger.info("%d of %d scores are in %s already", total - left, total, table.path)
    with tqdm(total=total, initial=total - left, desc="tuning", unit="setting") as bar:
        for volume, row in zip(volumes, keys, strict=True):
            open_ = [i for i, key in enumerate(row) if table.find(key) is None]
            for i, scores in _segmented(volume, methods, open_, per_section):
                table.add(row[i], scores)
                bar.update()
    return [[dict(table.rows[key.key]) for key in row] for row in keys]


def _tried(volume: Predicted, method: SegmentationMethod, per_section: bool) -> Tried:
    identity = f"{volume.identity}{'-sections' if per_section else ''}"
    return Tried(volume.name, identity, method_name(method), method.describe())


def _segmented(
    volume: Predicted,
    methods: Sequence[SegmentationMethod],
    wanted: Sequence[int],
    per_section: bool,
) -> Iterator[tuple[int, dict[str, float]]]:
    """Scores at the wanted settings; fragments are made once where settings share them."""
    if not wanted:
        return
    affinities, truth = volume.read()
    if not truth.any():
        raise InputError(
            f"the labels of entry '{volume.name}' are all zero where the affinities "
            f"are, so there is nothing to compare with."
        )
    left = list(wanted)
    while left:
        first = methods[left[0]]
        shared = [i for i in left if same_fragments(methods[i], first)]
        fragments = first.fragments(affinities)
        for i in shared:
            segments = methods[i].join(fragments, affinities)
            scores = instance_scores(truth, segments, per_section)
            yield i, {name: scores[name] for name in SCORES}
        left = [i for i in left if i not in shared]
