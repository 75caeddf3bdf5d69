"""A feature cache as a table for people, one row per volume."""

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

from custom.features.cache_files import VolumeFiles, bytes_on_disk, entry_name, entry_of, read_json

COLUMNS = (
    "id",
    "section",
    "shape",
    "features",
    "channels",
    "targets",
    "bytes",
    "bytes/voxel",
    "state",
)


def table_of(volumes: Sequence[VolumeFiles]) -> list[str]:
    """Lines of the table: its head, then one per volume, finished or not."""
    rows = [COLUMNS, *map(_row, volumes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [[c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in rows]
    return ["  ".join(row) for row in cells]


def _row(files: VolumeFiles) -> tuple[str, ...]:
    """Cells of one volume; what an unfinished one does not know yet is a dash."""
    entry = entry_of(files)
    known = read_json(files.metadata) or read_json(files.progress)["request"]
    shape = known["roi"]["shape"] if "roi" in known else []
    features = known.get("features")
    size = bytes_on_disk(files.arrays)
    return (
        entry_name(entry),
        str(entry.get("section", "-")),
        " x ".join(map(str, shape)) or "-",
        _in_short(features, known.get("compression")) if features else "-",
        str(features["channels"]) if features else "-",
        _targets_in_short(known.get("targets")),
        str(size),
        f"{size / prod(shape):.1f}" if files.finished else "-",
        "finished" if files.finished else "unfinished",
    )


def _in_short(features: dict[str, Any], compression: str | None) -> str:
    """What made the features, in a few words."""
    scale = features["pixels_per_voxel"]
    pixels = f"{scale[0]:g}" if len(set(scale)) == 1 else ",".join(f"{s:g}" for s in scale)
    packed = "" if compression in (None, "none") else f" {compression}"
    steps = features.get("slice_step", [1, 1, 1])
    slices = "" if max(steps) == 1 else f" slice_step {','.join(map(str, steps))}"
    components = f", pca {features['pca']}" if features.get("pca") else ""
    return (
        f"{Path(features['backbone']).name} layers {','.join(map(str, features['layers']))}, "
        f"{pixels} px/voxel, window {features['window']}, "
        f"stride {features.get('stride', features['patch_size'])}, "
        f"{' '.join(features['planes'])}{slices}{components}, {features['dtype']}"
        f"{packed}{_layout(features)}"
    )


def _layout(features: dict[str, Any]) -> str:
    """The layout and the upsampler, where they are not the usual ones."""
    upsampler = features.get("upsampler")
    guided = f" by {Path(upsampler).name}" if upsampler else ""
    return "" if features["layout"] == "tokens" else f", {features['layout']}{guided}"


def _targets_in_short(targets: dict[str, Any] | None) -> str:
    """Cached targets, in a few words."""
    if targets is None:
        return "-"
    sigma = targets["lsd_sigma_nm"]
    lsds = f", LSDs {sigma:g} nm" if sigma else ""
    return f"{len(targets['affinity_offsets'])} affinities{lsds}"
