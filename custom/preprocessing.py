"""The preprocessing run: features, raw and labels of every entry of a datalist into a cache."""

import fcntl
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from funlib.geometry.roi import Roi
from tqdm import tqdm

import custom
from custom.cached_targets import update_targets
from custom.datalist import SECTIONS, OpenEntry, open_entry, parse_datalist
from custom.errors import InputError
from custom.features.backbone import Backbone, BackboneSource
from custom.features.batching import checked_windows_at_once
from custom.features.cache import RAW_KEPT, RAW_RESCALED, refuse_difference
from custom.features.cache_basis import stored_or_fitted
from custom.features.cache_files import (
    COMPRESSIONS,
    DENSE_CHUNK,
    GRID_CHUNK,
    TOKEN_CHUNK,
    VOXEL_CHUNK,
    Json,
    VolumeFiles,
    copy_of,
    entry_name,
    entry_of,
    read_json,
    slabs,
    volumes_in,
    writing,
)
from custom.features.cache_writer import VolumeWriter
from custom.features.copies import CopyPlan, IntensityChange, changed_volume, plan_copies
from custom.features.dense_writer import DenseVolumeWriter
from custom.features.extraction import PlaneExtraction, RawBox
from custom.features.intensity import IntensityWindow, measure_intensity_window, to_uint8
from custom.features.lattice import plane_lattice
from custom.features.pca import PcaBasis
from custom.features.pca_fit import fit_basis
from custom.features.reduced import unreduced, with_basis
from custom.features.settings import complete_settings, load_backbone_and_spec
from custom.features.spec import FeatureSpec
from custom.locations import moved
from custom.targets.settings import parse_target_settings

logger = logging.getLogger(__name__)

PACKAGES = ("monai", "torch", "transformers", "tensorstore", "numpy")


@dataclass(frozen=True)
class VolumeJob:
    """One entry of the datalist on its way into the cache.

    Args:
        files: where the volume lies.
        section: of the datalist.
        opened: the entry's volumes.
        copy: number of the copy, from 1 on; 0 for the volume as it is.
        change: of the copy's raw.
    """

    files: VolumeFiles
    section: str
    opened: OpenEntry
    copy: int = 0
    change: IntensityChange | None = None

    @property
    def id(self) -> str:
        """Id of the entry."""
        return self.opened.entry.id

    @property
    def name(self) -> str:
        """Volume and entry, for people."""
        return f"{self.files.name} ({entry_name({'id': self.id, 'copy': self.copy})})"

    def changed(self, window: IntensityWindow) -> tuple["VolumeJob", IntensityWindow]:
        """The job with the raw that the backbone sees, and its intensity window."""
        if self.change is None:
            return self, window
        raw = changed_volume(self.opened.raw, window, self.change)
        return replace(self, opened=replace(self.opened, raw=raw)), (0.0, 1.0)

    def source(self) -> Json:
        """What the volume is made from; paths are relative to the cache."""
        found = self._unchanged()
        if self.change is not None:
            found["entry"]["copy"] = self.copy
            found["intensity_change"] = self.change.to_json()
        return found

    def _unchanged(self) -> Json:
        """What the volume is made from if raw stays as it is."""
        entry, opened = self.opened.entry, self.opened
        relative = {
            name: path and moved(path, self.files.cache_dir)
            for name, path in (("raw", entry.raw), ("labels", entry.labels), ("mask", entry.mask))
        }
        window = entry.intensity_window
        size = list(opened.source.metadata.voxel_size_nm)
        finer = {} if opened.source is opened.raw else {"raw_voxel_size_nm": size}
        return {
            "entry": {"id": entry.id, "section": self.section, **relative, **self._classes()},
            "given_intensity_window": None if window is None else list(window),
            "roi": {"offset": list(opened.roi.offset), "shape": list(opened.roi.shape)},
            "volume_shape": list(opened.raw.metadata.shape),
            "voxel_size_nm": list(opened.voxel_size_nm),
            **finer,
            "offset_nm": [
                o + b * v
                for o, b, v in zip(
                    opened.raw.metadata.offset_nm,
                    opened.roi.begin,
                    opened.voxel_size_nm,
                    strict=True,
                )
            ],
        }

    def _classes(self) -> Json:
        """Paths and ids of the classes, nothing where labels are in one volume."""
        classes, ids = self.opened.entry.classes, self.opened.entry.class_ids
        if classes is None:
            return {}
        cache_dir = self.files.cache_dir
        relative = {name: path and moved(path, cache_dir) for name, path in classes.items()}
        return {"classes": relative, "class_ids": ids}

    def bytes_needed(self, spec: FeatureSpec) -> int:
        """Upper bound of what the volume takes on disk: whole chunks, nothing compressed."""
        shape = self.opened.raw.metadata.shape
        lattices = (plane_lattice(spec, shape, self.opened.roi, plane) for plane in spec.planes)
        chunk = GRID_CHUNK if spec.layout == "dense" else TOKEN_CHUNK
        entries = [_in_chunks(lattice.shape, chunk) for lattice in lattices]
        values = sum(entries) * np.dtype(spec.dtype).itemsize
        if spec.layout == "dense":  # all planes' grids are float beside it, until it is complete
            values = sum(entries) * np.dtype(spec.float_dtype).itemsize
            voxels = _in_chunks(tuple(self.opened.roi.shape), DENSE_CHUNK)
            values += voxels * np.dtype(spec.dtype).itemsize
        elif spec.dtype == "int8":  # one plane at a time is float16 beside it, until it is complete
            values += max(entries) * np.dtype(spec.float_dtype).itemsize
        per_voxel = 1 if self.opened.labels is None else 6
        return values * spec.channels + per_voxel * _in_chunks(
            tuple(self.opened.roi.shape), VOXEL_CHUNK
        )


class Preprocessor:
    """Extracts the features of every entry of a datalist into a cache, once.

    All inputs are checked before the first forward pass. Volumes that are finished are kept, an
    interrupted one is taken up where it stood.

    Args:
        datalist: path of the datalist.
        cache_dir: folder of the cache, created if missing.
        backbone: hub id, folder, or configuration for random weights (``load_backbone``).
        features: scale, window and the rest (``make_spec``).
        sections: of the datalist that are cached.
        device: where the backbone computes.
        windows_at_once: batch size of the forward pass; ``None`` for as many as fit into memory.
        show_progress: draw progress bars.
        compression: of the features: "none", "lz4" or "zstd". Finished volumes are kept as they
            are, whatever theirs.
        compile: run the backbone through torch.compile.
        targets: settings of the targets that every labelled volume gets (``target_settings``);
            volumes that have others get these, their features are left alone. None leaves targets
            as they are.
        copies: changed copies of the training volumes; none when left out.

    Raises:
        InputError: an unknown section or compression, windows_at_once is no such number, a mistake
            in ``targets``, or copies without the training section.
    """

    def __init__(
        self,
        datalist: str | Path,
        cache_dir: str | Path,
        backbone: BackboneSource,
        features: Mapping[str, Any],
        sections: Sequence[str] = ("training", "validation"),
        device: str | torch.device = "cpu",
        windows_at_once: int | None = None,
        show_progress: bool = True,
        compression: str = "none",
        compile: bool = False,
        targets: Mapping[str, Any] | None = None,
        copies: CopyPlan | None = None,
    ) -> None:
        self.copies = copies or plan_copies(0, {})
        self.targets = None if targets is None else parse_target_settings(targets)
        self.datalist = Path(datalist)
        self.cache_dir = Path(cache_dir).expanduser().absolute()
        self.backbone = backbone
        self.features = features
        unknown = sorted(set(sections) - set(SECTIONS))
        if unknown:
            raise InputError(f"sections: {unknown[0]!r} is none of {', '.join(SECTIONS)}")
        self.sections = [name for name in SECTIONS if name in sections]
        if self.copies.count and "training" not in sections:
            raise InputError(
                f"augmented_copies is {self.copies.count}, but only training entries have copies, "
                f"and sections lacks 'training'; add it, or set augmented_copies to 0"
            )
        self.device = device
        self.windows_at_once = checked_windows_at_once(windows_at_once)
        self.compile = compile
        self.show_progress = show_progress
        if compression not in COMPRESSIONS:
            known = ", ".join(COMPRESSIONS)
            raise InputError(f"compression must be one of {known}, got {compression!r}")
        self.compression = compression

    def run(self) -> list[Path]:
        """Fill the cache; returns the folders of its volumes in the datalist's order.

        Raises:
            InputError: a mistake in the datalist, its volumes, the backbone or the settings; a
                cache that was made with others; another run at work; a full disk.
        """
        jobs = self._jobs()
        self._refuse_strangers(jobs)
        backbone, spec = load_backbone_and_spec(
            self.backbone, self.features, self.device, self.compile
        )
        pending = [job for job in jobs if not _is_kept(job, spec)]
        windows = {id: _intensity_window(job, spec) for id, job in _by_id(pending).items()}
        self._refuse_full_disk(pending, spec)
        with exclusive(self.cache_dir):
            self._remove_leftovers(jobs)
            for job in pending:
                _mark_unfinished(job)
            if spec.pca is not None:
                basis = self._basis(jobs, backbone, spec, windows)
                backbone, spec = with_basis(backbone, spec, basis, self.cache_dir)
            for job in jobs:
                if job.id not in windows or _is_kept(job, spec):
                    job.files.remove_progress()
                    logger.info("%s: finished, kept", job.name)
                else:
                    self._make(job, backbone, spec, windows[job.id])
            if self.targets is not None:
                update_targets(self.cache_dir, self.targets, self.show_progress)
        return [job.files.arrays for job in jobs]

    def _jobs(self) -> list[VolumeJob]:
        """Every entry of the sections, opened and checked."""
        datalist = parse_datalist(self.datalist)
        sources = [
            (section, open_entry(entry))
            for section in self.sections
            for entry in datalist.section(section)
        ]
        held = {_identity(entry_of(files)): files.index for files in volumes_in(self.cache_dir)}
        free = (index for index in count() if index not in held.values())
        jobs = []
        for copy in range(self.copies.count + 1):
            for section, opened in sources:
                if copy and section != "training":
                    continue
                identity = (opened.entry.id, copy)
                index = held[identity] if identity in held else next(free)
                change = self.copies.change(*identity) if copy else None
                files = VolumeFiles(self.cache_dir, index)
                jobs.append(VolumeJob(files, section, opened, copy, change))
        return jobs

    def _refuse_strangers(self, jobs: Sequence[VolumeJob]) -> None:
        """A cache may not hold finished volumes that the datalist does not have."""
        for files in self._strangers(jobs):
            entry, copies = entry_of(files), self.copies.count
            if files.finished and copy_of(entry) and entry["id"] in _by_id(jobs):
                raise InputError(
                    f"cache_dir '{self.cache_dir}' holds {files.name}, copy {copy_of(entry)} of "
                    f"entry '{entry['id']}', but augmented_copies is {copies} (of training entries "
                    f"alone); remove it (python -m scripts.cache prune --copies {copies}) or raise "
                    f"augmented_copies"
                )
            if files.finished:
                raise InputError(
                    f"cache_dir '{self.cache_dir}' holds {files.name} of entry '{entry['id']}', "
                    f"which is not in the datalist '{self.datalist}'; remove it (python -m "
                    f"scripts.cache prune) or choose another cache_dir"
                )

    def _remove_leftovers(self, jobs: Sequence[VolumeJob]) -> None:
        """Unfinished volumes of another datalist."""
        for files in self._strangers(jobs):
            if not files.finished:
                files.remove()

    def _strangers(self, jobs: Sequence[VolumeJob]) -> list[VolumeFiles]:
        """Volumes that are none of the jobs'."""
        wanted = {job.files.index for job in jobs}
        return [files for files in volumes_in(self.cache_dir) if files.index not in wanted]

    def _refuse_full_disk(self, jobs: Sequence[VolumeJob], spec: FeatureSpec) -> None:
        """The cache must fit before anything is computed for it."""
        needed = sum(job.bytes_needed(spec) for job in jobs)
        folder = next(p for p in (self.cache_dir, *self.cache_dir.parents) if p.exists())
        free = shutil.disk_usage(folder).free
        logger.info("cache of %d volumes: up to %.2f GB", len(jobs), needed / 1e9)
        if needed > free:
            raise InputError(
                f"cache_dir '{self.cache_dir}' needs {needed / 1e9:.1f} GB, its disk has "
                f"{free / 1e9:.1f} GB left; choose another one, fewer pixels_per_voxel or smaller "
                f"ROIs"
            )

    def _basis(
        self,
        jobs: Sequence[VolumeJob],
        backbone: Backbone,
        spec: FeatureSpec,
        windows: Mapping[str, IntensityWindow],
    ) -> PcaBasis:
        """The cache's basis; fitted now, to the training entries, where there is none yet."""
        found = [read_json(job.files.metadata)["features"] for job in jobs if job.files.finished]
        training = [job for job in jobs if job.section == "training"] or jobs

        def fit() -> PcaBasis:
            assert spec.pca is not None
            boxes = {job.id: _raw_box(job.opened, windows[job.id]) for job in training}
            whole, progress = unreduced(spec, backbone), self.show_progress
            return fit_basis(boxes, backbone, whole, spec.pca, self.windows_at_once, progress)

        return stored_or_fitted(self.cache_dir, [FeatureSpec.from_json(f) for f in found], fit)

    def _make(
        self, job: VolumeJob, backbone: Backbone, spec: FeatureSpec, window: IntensityWindow
    ) -> None:
        """Write one volume."""
        started = time.perf_counter()
        request = {
            **job.source(),
            "features": spec.to_json(),
            "settings": complete_settings(self.features),
            "intensity_window": list(window),
            "raw_rule": RAW_KEPT if _is_kept_raw(job) else RAW_RESCALED,
            "backbone_seed": backbone.seed,
        }
        kind = DenseVolumeWriter if spec.layout == "dense" else VolumeWriter
        writer = kind(job.files, request, self.compression)
        if writer.resumed:
            logger.info("%s: taken up again", job.name)
        job, window = job.changed(window)
        _write_voxels(writer, job.opened, window)
        windows, planes = self._write_planes(writer, job, backbone, spec, window)
        seconds = time.perf_counter() - started
        writer.finish(
            {
                "planes": planes,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "timing": {
                    "seconds": round(seconds, 3),
                    "windows": windows,
                    "resumed": writer.resumed,
                },
                "versions": {"custom": custom.__version__, **{p: version(p) for p in PACKAGES}},
            }
        )
        logger.info("%s: finished, %d windows, %.1f s", job.name, windows, seconds)

    def _write_planes(
        self,
        writer: VolumeWriter,
        job: VolumeJob,
        backbone: Backbone,
        spec: FeatureSpec,
        window: IntensityWindow,
    ) -> tuple[int, Json]:
        """Write the features; returns the number of windows computed, and where the grids lie."""
        box = _raw_box(job.opened, window)
        planes = {
            plane: PlaneExtraction(box, backbone, spec, plane, self.windows_at_once)
            for plane in spec.planes
        }
        done = {p: writer.create_tokens(p, e.shape, spec.dtype) for p, e in planes.items()}
        total = sum(extraction.num_windows for extraction in planes.values())
        initial = sum(done[p] * e.windows_per_slice for p, e in planes.items())
        with tqdm(
            total=total,
            initial=initial,
            unit="window",
            desc=job.files.name,
            disable=not self.show_progress,
        ) as bar:
            for plane, extraction in planes.items():
                for begin, slab in extraction.slabs(done[plane], bar.update):
                    writer.write_tokens(plane, begin, slab)
                writer.complete_tokens(plane)
        placements = {p: (e.lattice.start, e.lattice.step) for p, e in planes.items()}
        if isinstance(writer, DenseVolumeWriter):
            writer.combine(placements, self.show_progress)
        placed = {p: {"start": list(a), "step": list(b)} for p, (a, b) in placements.items()}
        return total - initial, placed


@contextmanager
def exclusive(cache_dir: Path) -> Iterator[None]:
    """Hold a cache for writing; the lock goes with the process, however it ends.

    Raises:
        InputError: another process holds it, or the folder may not be written.
    """
    with writing(cache_dir):
        cache_dir.mkdir(parents=True, exist_ok=True)
        opened = (cache_dir / ".lock").open("a+")
    with opened as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            raise InputError(
                f"cache_dir '{cache_dir}' is being written by process {lock.read().strip()}; wait "
                f"for it to end"
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _is_kept(job: VolumeJob, spec: FeatureSpec) -> bool:
    """Whether a finished volume is there; it must be the one that is asked for."""
    if not job.files.finished:
        return False
    found = read_json(job.files.metadata)
    refuse_difference(FeatureSpec.from_json(found["features"]), spec, job.files.arrays)
    for name, wanted in job.source().items():
        if found.get(name) != wanted:
            raise InputError(
                f"{job.files.arrays} was made from another source than entry '{job.id}' of the "
                f"datalist: {name} ({found.get(name)}, not {wanted}). Choose another cache_dir or "
                f"remove {job.files.name}*."
            )
    return True


def _intensity_window(job: VolumeJob, spec: FeatureSpec) -> IntensityWindow:
    """The datalist's window, else the one measured on the whole raw volume."""
    given = job.opened.entry.intensity_window
    window = given or measure_intensity_window(job.opened.source, spec.intensity_percentiles)
    logger.info("%s: grey values %g to %g (%s)", job.id, *window, "given" if given else "measured")
    return window


def _mark_unfinished(job: VolumeJob) -> None:
    """From now on the volume is known to be wanted, and its files to be ours."""
    source = job.source()
    found = read_json(job.files.progress).get("request", {})
    if found.get("entry") != source["entry"]:
        job.files.mark_unfinished(source)


def _in_chunks(shape: Sequence[int], chunks: Sequence[int]) -> int:
    """Entries of an array that is padded to whole chunks."""
    sizes = [min(c, s) for c, s in zip(chunks, shape, strict=True)]
    return math.prod(-(-s // c) * c for s, c in zip(shape, sizes, strict=True))


def _raw_box(opened: OpenEntry, window: IntensityWindow) -> RawBox:
    shape = opened.raw.metadata.shape
    return RawBox(opened.source.read, shape, opened.roi, window, opened.raw_axes)


def _is_kept_raw(job: VolumeJob) -> bool:
    """Whether raw is cached as it is."""
    return job.change is None and job.opened.raw.metadata.dtype == "uint8"


def _identity(entry: Json) -> tuple[str, int]:
    """What tells a volume from all others of its cache."""
    return entry["id"], copy_of(entry)


def _by_id(jobs: Sequence[VolumeJob]) -> dict[str, VolumeJob]:
    """One job per entry."""
    return {job.id: job for job in jobs}


def _write_voxels(writer: VolumeWriter, opened: OpenEntry, window: IntensityWindow) -> None:
    """Write raw, and labels with their mask, some sections at a time."""
    shape = tuple(opened.roi.shape)
    done = writer.create_voxels("raw", shape, np.uint8)
    for begin, end in slabs(shape[0], VOXEL_CHUNK[0], done):
        raw = opened.read_raw(_sections(opened.roi, begin, end))
        writer.write_voxels("raw", begin, to_uint8(raw, window))
    if opened.labels is None:
        return
    ids = opened.label_ids()
    writer.write_table("gt_ids", ids)
    done = writer.create_voxels("gt", shape, np.uint32)
    writer.create_voxels("mask", shape, np.bool_)
    for begin, end in slabs(shape[0], VOXEL_CHUNK[0], done):
        labels, annotated = opened.read_labels(_sections(opened.roi, begin, end))
        writer.write_voxels("mask", begin, annotated)
        writer.write_voxels("gt", begin, np.searchsorted(ids, labels).astype(np.uint32))


def _sections(roi: Roi, begin: int, end: int) -> Roi:
    """Sections ``begin`` to ``end`` of a box."""
    z, y, x = roi.offset
    return Roi((z + begin, y, x), (end - begin, *roi.shape[1:]))
