"""A look at the arrays of a training before any work."""

import json
import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from custom.array_report import ArrayReport, cached, placed, refuse_memory
from custom.cached_targets import refuse_other_targets
from custom.context import CONTEXT
from custom.datalist import SECTIONS, entries_in, place_entry
from custom.datasets import FEATURE_DTYPES, fitting
from custom.disk_space import refuse_full_disk
from custom.features.backbone import available_device
from custom.features.cache import CachedVolume, refuse_difference
from custom.features.settings import asked_of, complete_settings
from custom.features.triplane import entries_for
from custom.inference_check import check_model
from custom.json_fields import flag, picked, whole_number, whole_numbers
from custom.model_files import read_description
from custom.model_folder import DESCRIPTION, SAFE_WEIGHTS, WEIGHTS
from custom.networks.fusion import TokenUNet
from custom.planes import NORMAL_AXIS
from custom.step_memory import Shapes, Step, StepMemory, step_memory
from custom.training import cached_section, refuse_token_channels

logger = logging.getLogger(__name__)

PARTS = ("training", "validation")
PATCH = 16  # pixels: assumed where no cache says it and the backbone is not loaded
SMALLER = (
    "make crop_size or batch_size smaller, set checkpointing or amp to true, or take another device"
)


@dataclass(frozen=True)
class Extent:
    """A volume that is not cached, as far as ``fitting`` looks at it."""

    id: str
    shape: tuple[int, int, int]
    has_labels: bool


def check_training(parser: ConfigParser) -> ArrayReport:
    """Volumes, crops, channels, room on the disk and in memory.

    Raises:
        InputError: names the first mistake.
    """
    value = parser.get_parsed_content
    crop_size = whole_numbers(list(value("crop_size")), 3, 1, "crop_size")
    whole_number(value("batch_size"), 1, "batch_size")
    targets = value("train#targets")
    targets.refuse_crop(crop_size)
    first: CachedVolume | None = None
    if value("source") == "cache":
        volumes = {part: _cached(parser, part) for part in PARTS}
        fitting(volumes["training"], crop_size)
        if value("cached_targets"):
            refuse_other_targets(volumes["training"], targets)
        _warn_of_missing(parser, volumes)
        split = {part: cached(found) for part, found in volumes.items()}
        first = volumes["training"][0]
    else:
        split = {part: _listed(parser, part, crop_size) for part in PARTS}
    memory = training_memory(parser, batch_of(parser, first))
    if memory is None:
        return ArrayReport(split)
    averaged = memory.weights if parser.get("ema_decay") else 0
    needed = memory.peak + averaged
    refuse_memory(needed, available_device(value("device")), _what(parser), SMALLER)
    disk = checkpoint_bytes(memory, averaged, Path(value("model_dir")))
    refuse_full_disk("model_dir", value("model_dir"), disk, "choose another one, or make room")
    return ArrayReport(split, {"model_dir": disk}, needed)


def check_validation(parser: ConfigParser) -> ArrayReport:
    """Volumes and model of an evaluation that is a validation.

    Raises:
        InputError: names the first mistake.
    """
    value = parser.get_parsed_content
    part = value("validate#volumes#section")
    description = read_description(value("model_dir"))
    if value("source") == "cache":
        volumes = _cached(parser, part)
        check_model(parser, description, volumes[0].spec)
        return ArrayReport({part: cached(volumes)})
    check_model(parser, description, None)
    return ArrayReport({part: _listed(parser, part, ())})


def _cached(parser: ConfigParser, part: str) -> list[CachedVolume]:
    """Volumes of a cache, with the features that are wanted as far as settings tell."""
    value = parser.get_parsed_content
    chosen = value("volume_indices") if part == "training" else None
    volumes = cached_section(value("cache_dir"), part, chosen)
    first = volumes[0]
    refuse_difference(first.spec, asked_of(first.spec, value("features")), first.path)
    refuse_token_channels(value("token_channels"), first.id, first.spec)
    return volumes


def _listed(parser: ConfigParser, part: str, crop_size: Sequence[int]) -> list[dict[str, Any]]:
    """Entries of a datalist, whose features will be extracted on the fly."""
    value = parser.get_parsed_content
    entries = entries_in(value("datalist"), part)
    if part == "training" and (chosen := value("volume_indices")) is not None:
        ids = picked([entry.id for entry in entries], chosen, "volume_indices")
        entries = tuple(entry for entry in entries if entry.id in ids)
    opened = [place_entry(entry) for entry in entries]
    if part == "training" and crop_size:
        extents = [
            Extent(
                o.entry.id, (o.roi.shape[0], o.roi.shape[1], o.roi.shape[2]), o.labels is not None
            )
            for o in opened
        ]
        fitting(extents, crop_size)
    return placed(opened)


def _warn_of_missing(parser: ConfigParser, volumes: Mapping[str, Sequence[CachedVolume]]) -> None:
    """Entries that the datalist has by now, and the cache does not; a moved cache may have none."""
    path = Path(parser.get_parsed_content("datalist"))
    try:
        content = json.loads(path.read_text())
        listed = {part: [entry["id"] for entry in content.get(part, [])] for part in SECTIONS}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return
    wanted = PARTS if parser.get("volume_indices") is None else ("validation",)
    for part in wanted:
        known = {volume.id for volume in volumes[part]}
        if missing := [id_ for id_ in listed[part] if id_ not in known]:
            logger.warning(
                "datalist '%s' has the %s entry '%s', which the cache lacks: run preprocessing",
                *(path, part, missing[0]),
            )


def batch_of(parser: ConfigParser, first: CachedVolume | None) -> Shapes:
    """Shapes of what the network takes of a batch, as ``CropDataset`` and its loader make it.

    Args:
        parser: of the training's configuration.
        first: one of its cached volumes; None for volumes that are not cached.
    """
    value = parser.get_parsed_content
    number, crop = value("batch_size"), list(value("crop_size"))
    batch: dict[str, tuple[Sequence[int], torch.dtype]] = {
        "image": ([number, 1, *crop], torch.float32)
    }
    channels = value("token_channels")
    if channels:
        settings = complete_settings(value("features"))
        dtype = FEATURE_DTYPES[value("feature_dtype")] or (
            torch.float32 if settings["dtype"] == "float32" else torch.float16
        )
        if settings["layout"] == "dense":
            batch["features"] = [number, channels, *crop], dtype
        else:
            for plane in settings["planes"]:
                grid = _entries(plane, crop, settings, first)
                batch[f"tokens_{plane}"] = [number, channels, *grid], dtype
                batch[f"placement_{plane}"] = [number, 2, 3], torch.float32
    if value("context_factor") is None:
        return batch
    context = {CONTEXT + name: shape for name, shape in batch.items()}
    return {**batch, **context, f"{CONTEXT}placement": ([number, 2, 3], torch.float32)}


def _entries(
    plane: str, crop: Sequence[int], settings: Mapping[str, Any], first: CachedVolume | None
) -> Sequence[int]:
    """Entries of a plane's grid that a crop needs, zyx."""
    if first is not None:
        return entries_for(*first.placement(plane), (0, 0, 0), crop)[1]
    scale = settings["pixels_per_voxel"]
    scales = scale if isinstance(scale, list) else [scale] * 3
    steps = [(settings["stride"] or PATCH) / pixels for pixels in scales]
    steps[NORMAL_AXIS[plane]] = 1.0
    return entries_for((0, 0, 0), (steps[0], steps[1], steps[2]), (0, 0, 0), crop)[1]


def training_memory(parser: ConfigParser, batch: Shapes) -> StepMemory | None:
    """Memory of a training step as a configuration has it; None where it cannot be known.

    Args:
        parser: of the training's configuration.
        batch: shapes of what the network takes.

    Raises:
        InputError: the network cannot take the crops, or its result does not fit the targets.
    """
    config = _without_balance(parser.get(""))
    config |= {"device": "cpu", "network": "@network_def"}

    def step() -> Step | None:
        own = ConfigParser(deepcopy(config))
        network = own.get_parsed_content("network")
        if not isinstance(network, TokenUNet):
            return None  # it may take other arguments; the first step will tell
        return Step(network, own.get_parsed_content("loss"), own.get_parsed_content("optimizer"))

    return step_memory(step, batch, parser.get_parsed_content("channels"), amp_type(parser))


def _without_balance(config: Any) -> Any:
    """The same without weights that are counted from labels: they are a few numbers."""
    if isinstance(config, Mapping):
        if config.get("_target_") == "custom.class_balance.class_balance":
            return None
        return {key: _without_balance(value) for key, value in config.items()}
    if isinstance(config, list):
        return [_without_balance(value) for value in config]
    return config


def amp_type(parser: ConfigParser) -> torch.dtype | None:
    """What the network computes in under autocast; None for float32."""
    if not flag(parser.get_parsed_content("amp"), "amp"):
        return None
    named = parser.get_parsed_content("amp_dtype") if "amp_dtype" in parser else "bfloat16"
    return torch.float16 if named == "float16" else torch.bfloat16


def checkpoint_bytes(memory: StepMemory, averaged: int, model_dir: Path) -> int:
    """What the files of a training take at most, beside those of it that are there already.

    Of the last state and of the best model, there are two while one takes the other's place.

    Args:
        memory: of a training step.
        averaged: bytes of averaged weights.
        model_dir: folder of the files.
    """
    last = memory.weights + averaged + memory.optimizer
    best = 2 * memory.weights
    paths = [model_dir / name for name in ("last.pt", WEIGHTS, SAFE_WEIGHTS, DESCRIPTION)]
    there = sum(path.stat().st_size for path in paths if path.is_file())
    return max(last, best, 2 * (last + best) - there)


def _what(parser: ConfigParser) -> str:
    """A training step, for people."""
    crop, number = (parser.get_parsed_content(key) for key in ("crop_size", "batch_size"))
    return f"a training step with crop_size {list(crop)} and batch_size {number}"
