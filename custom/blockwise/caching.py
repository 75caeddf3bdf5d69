"""Preprocessing by workers: every block is a volume of the cache."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import daisy
import torch
from funlib.geometry import Coordinate, Roi
from pydantic import BaseModel

from custom.blockwise.presence import wait_until_alone
from custom.blockwise.runs import run_tasks
from custom.blockwise.tracked import ProcessBlock, Tracked
from custom.datalist import open_entry, parse_datalist
from custom.errors import InputError
from custom.features.cache_files import VolumeFiles
from custom.features.copies import IntensityChange
from custom.features.reduced import load_reduced
from custom.volume_jobs import VolumeJob
from custom.volume_making import VolumeMaker
from custom.workforce import WORKERS_STATE, Workforce


class Pending(BaseModel):
    """A volume that is to be written, as plain JSON.

    Args:
        index: of the volume in its cache.
        section: of the datalist.
        id: of the entry.
        copy_number: 0 for the volume as it is.
        change: of a copy's raw.
        window: grey values that become 0 and 255.
    """

    index: int
    section: str
    id: str
    copy_number: int
    change: dict[str, Any] | None
    window: tuple[float, float]


class CacheVolumes(Tracked):
    """Writes volumes of a cache that one run holds for all of its workers.

    The world has one dimension, and a voxel for each volume.

    Args:
        datalist: has the volumes' entries.
        cache_dir: with the basis of the features where they are reduced.
        volumes: to be written; what an interrupted run has written of them counts.
        backbone: as in ``load_backbone``.
        features: as in ``make_spec``.
        device: where the backbone computes; of several GPUs each worker takes one.
        compile: run the backbone through torch.compile.
        compression: of the features.
        windows_at_once: batch size of the forward pass; None for as many as fit into memory.
    """

    name: str = "volumes"
    datalist: Path
    cache_dir: Path
    volumes: list[Pending]
    backbone: str | dict[str, Any]
    features: dict[str, Any]
    device: str = "cpu"
    compile: bool = False
    compression: str = "none"
    windows_at_once: int | None = None
    fit: Literal["shrink"] = "shrink"
    read_write_conflict: Literal[False] = False

    @property
    def write_roi(self) -> Roi:
        """All volumes."""
        return Roi((0,), (len(self.volumes),))

    @property
    def write_size(self) -> Coordinate:
        """One volume."""
        return Coordinate((1,))

    @property
    def context_size(self) -> Coordinate:
        """None."""
        return Coordinate((0,))

    def drop_artifacts(self) -> None:
        """Volumes stay: how far they are is written beside each."""

    @contextmanager
    def process_block_func(self) -> Iterator[ProcessBlock]:
        """Load the backbone, then write one volume after the other."""
        backbone, spec = load_reduced(
            self.backbone,
            self.features,
            own_device(self.device),
            self.cache_dir,
            "run preprocessing again",
            self.compile,
        )
        options = (self.compression, self.windows_at_once)
        maker = VolumeMaker(backbone, spec, self.features, *options)

        def process(block: daisy.Block) -> None:
            volume = self.volumes[block.write_roi.offset[0]]
            job = self.job(volume)
            if job.files.finished:  # by a worker that was killed before it could say so
                return
            try:
                maker.make(job, volume.window)
            except InputError as error:
                raise InputError(f"{job.name}: {error}") from error

        yield process

    def job(self, volume: Pending) -> VolumeJob:
        """A volume with its sources opened.

        Args:
            volume: of ``volumes``.
        """
        entries = parse_datalist(self.datalist).section(volume.section)
        (entry,) = (entry for entry in entries if entry.id == volume.id)
        change = None if volume.change is None else IntensityChange(**volume.change)
        files = VolumeFiles(self.cache_dir, volume.index)
        return VolumeJob(files, volume.section, open_entry(entry), volume.copy_number, change)


def pending(job: VolumeJob, window: Sequence[float]) -> Pending:
    """A job as plain JSON.

    Args:
        job: a volume that is to be written.
        window: its grey values that become 0 and 255.
    """
    low, high = window
    return Pending(
        index=job.files.index,
        section=job.section,
        id=job.id,
        copy_number=job.copy,
        change=None if job.change is None else job.change.to_json(),
        window=(low, high),
    )


def own_device(device: str) -> torch.device:
    """Of several GPUs the one of this worker, else what is asked for.

    Args:
        device: "cuda" for any GPU.
    """
    count = torch.cuda.device_count() if device == "cuda" else 0
    if count < 2 or daisy.Context.ENV_VARIABLE not in os.environ:
        return torch.device(device)
    return torch.device("cuda", int(daisy.Context.from_env()["worker_id"]) % count)


def cache_with_workers(
    volumes: Sequence[Pending], workforce: Workforce, cache_dir: Path, settings: Mapping[str, Any]
) -> None:
    """Write volumes of a cache with a run's workers.

    Args:
        volumes: to be written.
        workforce: who writes them.
        cache_dir: held by this process.
        settings: the other arguments of ``CacheVolumes``.

    Raises:
        InputError: volumes could not be written; the others are.
    """
    if not volumes:
        return
    state = cache_dir / WORKERS_STATE
    task = CacheVolumes(
        state_dir=state,
        cache_dir=cache_dir,
        volumes=list(volumes),
        retries=workforce.retries,
        worker_config=workforce.worker(),
        **settings,
    )
    run_tasks([task], state, workforce.workers, "cache_dir")
    shutil.rmtree(state)


def forget_earlier_run(cache_dir: Path) -> None:
    """Wait for workers of a run that was killed, then drop its state.

    The volumes themselves say how far they are.

    Args:
        cache_dir: held by this process.

    Raises:
        InputError: they still work.
    """
    state = cache_dir / WORKERS_STATE
    if state.exists():
        wait_until_alone(state)
        shutil.rmtree(state)
