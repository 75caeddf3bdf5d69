"""The target arrays of a cached volume: written aside, then put in place of older ones."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from funlib.geometry.roi import Roi
from numpy.typing import NDArray

from custom.features.cache_files import (
    TARGET_ARRAYS,
    Json,
    VolumeFiles,
    create_array,
    described,
    read_json,
    write_array,
    write_json,
    writing,
)

TARGET_CHUNK = (32, 32, 32)  # voxels; of all channels
COMPRESSION = "zstd"


class TargetWriter:
    """Writes a finished volume's targets block by block, and takes up an interrupted writer's work.

    They are written into ``.targets`` beside the volume's arrays. ``finish`` puts them in place:
    first the metadata say that there are no targets, last that these are there. Whenever the
    process is killed, the metadata are right.

    Args:
        files: of a finished volume.
        settings: of the targets, plain JSON values.
        channels: affinities and LSDs together.
        shape: (D, H, W) of the volume.

    Raises:
        InputError: here and in all methods: the disk is full, or the folder may not be written.
    """

    def __init__(
        self, files: VolumeFiles, settings: Mapping[str, Any], channels: int, shape: Sequence[int]
    ) -> None:
        self.files = files
        self._progress: Json = {"settings": dict(settings), "blocks": 0}
        found = read_json(self._marker)
        if found.get("settings") == self._progress["settings"]:
            self._progress = found
        elif files.targets_aside.exists():
            _remove(files, [files.targets_aside])
        write_json(self._marker, self._progress)
        self._arrays = {
            name: create_array(files.targets_aside / name, size, dtype, chunks, COMPRESSION)
            for name, size, dtype, chunks in (
                ("target", (channels, *shape), np.uint8, (channels, *TARGET_CHUNK)),
                ("boundary_weights", tuple(shape), np.float16, TARGET_CHUNK),
            )
            if not self._progress.get("complete")
        }

    @property
    def blocks_done(self) -> int:
        """How many blocks are there already."""
        return int(self._progress["blocks"])

    def write(self, block: Roi, target: NDArray[np.uint8], weights: NDArray[np.float16]) -> None:
        """Write the next block: target (C, D, H, W) and weights (D, H, W)."""
        box = block.to_slices()
        for name, place, values in (
            ("target", (slice(None), *box), target),
            ("boundary_weights", box, weights),
        ):
            write_array(self._arrays[name], self.files.targets_aside / name, place, values)
        self._note(blocks=self.blocks_done + 1)

    def finish(self) -> None:
        """Put the arrays in place of older ones, and say so in the volume's metadata."""
        self._note(complete=True)
        _forget_targets(self.files)
        for name in TARGET_ARRAYS:
            aside, place = self.files.targets_aside / name, self.files.arrays / name
            if aside.exists():  # else a killed run has put it in place
                _remove(self.files, [place])
                with writing(place):
                    aside.rename(place)
        metadata = read_json(self.files.metadata)
        arrays = {name: described(self.files.arrays / name) for name in TARGET_ARRAYS}
        settings = self._progress["settings"]
        arrays = {**metadata["arrays"], **arrays}
        write_json(self.files.metadata, {**metadata, "targets": settings, "arrays": arrays})
        _remove(self.files, [self.files.targets_aside])

    @property
    def _marker(self) -> Path:
        return self.files.targets_aside / "progress.json"

    def _note(self, **values: Any) -> None:
        self._progress |= values
        write_json(self._marker, self._progress)


def drop_targets(files: VolumeFiles) -> bool:
    """Remove a volume's targets, and what killed runs left of them; returns whether any were."""
    _forget_targets(files)
    return remove_target_leftovers(files)


def remove_target_leftovers(files: VolumeFiles) -> bool:
    """Remove targets that a volume's metadata do not know; returns whether there were any."""
    left = files.target_leftovers
    _remove(files, left)
    return bool(left)


def _forget_targets(files: VolumeFiles) -> None:
    """From now on the volume's metadata know no targets; their arrays may be changed."""
    metadata = read_json(files.metadata)
    if "targets" in metadata:
        del metadata["targets"]
        kept = {k: v for k, v in metadata["arrays"].items() if k not in TARGET_ARRAYS}
        write_json(files.metadata, {**metadata, "arrays": kept})


def _remove(files: VolumeFiles, folders: Sequence[Path]) -> None:
    with writing(files.arrays):
        for folder in folders:
            if folder.exists():
                shutil.rmtree(folder)
