"""The report of a training: curves, scores, pictures, speed and settings on one HTML page."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from custom.changed_settings import as_text
from custom.distributed import is_writer, world_size
from custom.history import History
from custom.memory_use import memory_mib
from custom.panels import latest_pictures
from custom.run_record import versions
from custom.scores import KeyMetric
from custom.step_timing import StepTiming
from custom.view import (
    Section,
    charts,
    embedded,
    notice,
    numbers_of,
    paragraph,
    table,
    tiles,
    write_report,
)

CURVES = {
    "VOI, bits": ("voi", "voi_split", "voi_merge"),
    "Adapted Rand error": ("adapted_rand",),
    "F1 of affinities": ("affinity_f1",),
    "Dice and IoU": ("dice", "iou"),
    "Learning rate": ("lr",),
    "Gradient norm": ("gradient_norm",),
    "Skipped steps": ("skipped_steps",),
}


class TrainingReport:
    """``report.html``: one file that needs no other, written again after every epoch.

    Attach to the trainer after the history. Only one of several processes writes.

    Args:
        path: of the file.
        history: losses and scores.
        key: the score that decides which model is kept.
        description: what ``model.json`` says: split and versions are taken from it.
        changed: settings that differ from the defaults, by key.
        timing: of this process's steps.
    """

    def __init__(
        self,
        path: str,
        history: History,
        key: KeyMetric,
        description: Mapping[str, Any],
        changed: Mapping[str, Any],
        timing: StepTiming,
    ) -> None:
        self.path = Path(path)
        self.history = history
        self.key = key
        self.description = description
        self.changed = changed
        self.timing = timing

    def attach(self, engine: Engine) -> None:
        """Write after every epoch."""
        if is_writer():
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write."""
        state: Any = engine.state
        best = self.history.best(self.key)
        over = state.epoch >= state.max_epochs or bool(engine.should_terminate)  # stopped early
        sections = [] if over else [Section("", notice("This training has not come to its end."))]
        sections += [
            Section("", _headline(state, best, self.key)),
            Section("Curves", self._curves()),
            *([] if best is None else _scores(best)),
            Section("Pictures of the last validation", _pictures(self.path.parent)),
            Section("Speed and memory", self._speed(state)),
            Section("Settings that differ from the defaults", _settings(self.changed)),
            Section("Data", _split(self.description.get("split", {}))),
            Section("Versions", table(["package", "version"], list(versions().items()))),
        ]
        subtitle = f"Epoch {state.epoch} of {state.max_epochs}, {state.iteration:,} batches"
        write_report(self.path, "Training", subtitle, sections)

    def _curves(self) -> str:
        entries = [numbers_of(entry) for entry in self.history.entries]
        components = [name for name in entries[-1] if name.startswith("loss_")]
        groups = {"Loss": ("train_loss", *components), **CURVES}
        if not any(entry.get("skipped_steps") for entry in entries):
            del groups["Skipped steps"]
        return charts(entries, groups)

    def _speed(self, state: Any) -> str:
        figures = self.timing.total.figures(world_size())
        shown = {
            "samples per second": f"{figures.get('samples_per_second', 0):.2f}",
            "voxels per second": f"{figures.get('voxels_per_second', 0):,.0f}",
            "of the time waiting for data": f"{figures.get('data_wait_share', 0):.1%}",
        }
        for name, mib in memory_mib(getattr(state, "device", "cpu")).items():
            shown[f"MiB, {name.replace('_', ' ')}"] = f"{mib:,.0f}"
        return tiles(shown) + paragraph("Since the training was last started.")


def _headline(state: Any, best: Mapping[str, Any] | None, key: KeyMetric) -> str:
    """The figures at the top."""
    figures = {"epochs": f"{state.epoch} of {state.max_epochs}"}
    if best is not None:
        figures |= {
            f"best {key.title}": f"{best[key.name]:.3f}",
            "in epoch": f"{best['epoch']}",
        }
    return tiles(figures)


def _scores(best: Mapping[str, Any]) -> list[Section]:
    """Scores of every volume, and the settings of segmentation, where the key score is best."""
    of_volumes = best.get("volume_scores", {})
    names = list(dict.fromkeys(name for scores in of_volumes.values() for name in scores))
    rows = [
        [volume, *(f"{scores[n]:.3f}" if n in scores else "" for n in names)]
        for volume, scores in of_volumes.items()
    ]
    found = []
    if rows:
        title = f"Scores of every volume in epoch {best['epoch']}, the best"
        found.append(Section(title, table(["volume", *names], rows)))
    if settings := best.get("segmentation"):
        pairs = [[name, as_text(value)] for name, value in settings.items()]
        found.append(Section("Segmentation chosen there", table(["setting", "value"], pairs)))
    return found


def _pictures(folder: Path) -> str:
    """The latest panel and animation."""
    return "".join(embedded(path.name, path.read_bytes()) for path in latest_pictures(folder))


def _settings(changed: Mapping[str, Any]) -> str:
    if not changed:
        return paragraph("None.")
    return table(["key", "value"], [[key, as_text(value)] for key, value in changed.items()])


def _split(split: Mapping[str, Any]) -> str:
    """Which box of which volume was trained on, and which validated."""
    rows = [
        [section, part["id"], json.dumps(part["offset"]), json.dumps(part["shape"])]
        for section, parts in split.items()
        for part in parts
    ]
    return table(["section", "volume", "offset, voxels", "shape, voxels"], rows)
