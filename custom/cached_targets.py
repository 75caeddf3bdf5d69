"""Targets in a cache: computed once from cached labels, and read in training."""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from funlib.geometry.roi import Roi
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from custom.errors import InputError
from custom.features.cache import CachedVolume
from custom.features.cache_files import VolumeFiles, read_json, volumes_in
from custom.features.target_files import TargetWriter, drop_targets, remove_target_leftovers
from custom.live import FeatureVolume
from custom.targets.blocks import target_block
from custom.targets.settings import TargetSettings, stored_settings

logger = logging.getLogger(__name__)

BLOCK = 64  # voxels along every axis; whole chunks
UPDATE = "run python -m scripts.cache update-targets"


@runtime_checkable
class TargetVolume(Protocol):
    """A volume that may have targets ready."""

    metadata: Mapping[str, Any]

    def read_targets(self, roi: Roi) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        """Target (C, D, H, W) and boundary weights (D, H, W) of a box inside the volume."""


def update_targets(
    cache_dir: Path, settings: TargetSettings, show_progress: bool = True
) -> list[VolumeFiles]:
    """Compute the targets of every finished, labelled volume that has not those already.

    Needs no more than the cached labels and their mask. Hold the cache (``exclusive``) meanwhile.
    Killed, it leaves every volume with old targets, with new ones or with none, and goes on from
    there when it is called again.

    Args:
        cache_dir: folder of the cache.
        settings: of the targets.
        show_progress: draw a progress bar.

    Returns:
        The volumes whose targets were computed.
    """
    labelled = [f for f in volumes_in(cache_dir) if "gt" in read_json(f.metadata).get("arrays", {})]
    old = [files for files in labelled if not _has_targets(files, settings)]
    for files in labelled:
        if files not in old:
            remove_target_leftovers(files)
    volumes = {files: CachedVolume(files.arrays) for files in old}
    total = sum(len(list(_blocks(volume.shape))) for volume in volumes.values())
    with tqdm(total=total, unit="block", desc="targets", disable=not show_progress) as bar:
        for files, volume in volumes.items():
            _write(files, volume, settings, bar)
            logger.info("%s: targets written", files.title)
    return old


def remove_targets(cache_dir: Path) -> list[VolumeFiles]:
    """Remove the targets of every finished volume; returns those that had some."""
    finished = [files for files in volumes_in(cache_dir) if files.finished]
    return [files for files in finished if drop_targets(files)]


def refuse_other_targets(volumes: Sequence[FeatureVolume], settings: TargetSettings) -> None:
    """Refuse to train on cached targets that are not there or are others than the config's.

    Volumes without labels, which cannot have any, are left to whoever needs the labels.

    Raises:
        InputError: names the volume, and what differs.
    """
    for volume in volumes:
        if not isinstance(volume, TargetVolume):
            raise InputError(
                f"cached_targets needs source 'cache': volume '{volume.id}' is not in a cache."
            )
        found = volume.metadata.get("targets")
        if not volume.has_labels:
            continue
        if found is None:
            raise InputError(
                f"cached_targets: volume '{volume.id}' has no targets in the cache: {UPDATE}, or "
                f"set cached_targets to false."
            )
        difference = stored_settings(found).difference(settings)
        if difference:
            raise InputError(
                f"cached_targets: the targets of volume '{volume.id}' differ from the "
                f"configuration in {', '.join(difference)}: {UPDATE}, or set cached_targets to "
                f"false."
            )


def stored_targets(volume: FeatureVolume, roi: Roi) -> dict[str, Tensor]:
    """A crop's ``target`` (C, D, H, W) uint8 and ``boundary_weights`` (1, D, H, W) float32."""
    assert isinstance(volume, TargetVolume)  # refuse_other_targets has looked
    target, weights = volume.read_targets(roi)
    return {
        "target": torch.from_numpy(target),
        "boundary_weights": torch.from_numpy(weights.astype(np.float32))[None],
    }


def _has_targets(files: VolumeFiles, settings: TargetSettings) -> bool:
    """Whether a volume's targets are these; settings that earlier versions had not are defaults."""
    found = read_json(files.metadata).get("targets")
    if found is None:
        return False
    try:
        return not stored_settings(found).difference(settings)
    except InputError:  # of a later version
        return False


def _write(files: VolumeFiles, volume: CachedVolume, settings: TargetSettings, bar: Any) -> None:
    """Targets of one volume."""
    writer = TargetWriter(files, settings.to_json(), settings.layout.num_outputs, volume.shape)
    bar.update(writer.blocks_done)
    for block in itertools.islice(_blocks(volume.shape), writer.blocks_done, None):
        target, weights = target_block(
            volume.read_labels, volume.shape, block, volume.voxel_size_nm, settings
        )
        writer.write(block, target, weights)
        bar.update(1)
    writer.finish()


def _blocks(shape: Sequence[int]) -> Iterator[Roi]:
    """Blocks that tile a volume."""
    for corner in itertools.product(*(range(0, size, BLOCK) for size in shape)):
        yield Roi(corner, [min(BLOCK, n - c) for c, n in zip(corner, shape, strict=True)])
