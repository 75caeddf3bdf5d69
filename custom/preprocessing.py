"""The preprocessing run: features, raw and labels of every entry of a datalist into a cache."""

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch

from custom.cached_targets import update_targets
from custom.datalist import SECTIONS, OpenEntry, open_entry, parse_datalist, place_entry
from custom.datalist_entry import DatalistEntry
from custom.disk_space import refuse_full_disk
from custom.errors import InputError
from custom.features.backbone import Backbone, BackboneSource
from custom.features.batching import checked_windows_at_once
from custom.features.cache_basis import stored_or_fitted
from custom.features.cache_files import (
    COMPRESSIONS,
    Json,
    VolumeFiles,
    bytes_on_disk,
    copy_of,
    entry_of,
    read_json,
    volumes_in,
)
from custom.features.cache_lock import exclusive
from custom.features.copies import CopyPlan, plan_copies
from custom.features.intensity import IntensityWindow
from custom.features.pca import PcaBasis
from custom.features.pca_fit import fit_basis
from custom.features.reduced import unreduced, with_basis
from custom.features.settings import asked_of, load_backbone_and_spec
from custom.features.spec import FeatureSpec
from custom.features.target_files import TARGET_CHUNK
from custom.targets.settings import parse_target_settings
from custom.volume_jobs import VolumeJob, in_chunks
from custom.volume_making import VolumeMaker
from custom.workforce import WORKERS_STATE, Workforce

logger = logging.getLogger(__name__)


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
        on_start: called when all is checked, before anything is computed.
        workforce: who writes the volumes; this process when left out.

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
        on_start: Callable[[], object] | None = None,
        workforce: Workforce | None = None,
    ) -> None:
        self.workforce = workforce or Workforce()
        self.copies = copies or plan_copies(0, {})
        self.on_start = on_start
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
        pending = [job for job in jobs if not job.is_kept(spec)]
        windows = {id: job.intensity_window(spec) for id, job in _by_id(pending).items()}
        self._refuse_full_disk(jobs, pending, spec)
        with exclusive(self.cache_dir):
            if self.on_start is not None:
                self.on_start()
            self._forget_earlier_run()
            self._remove_leftovers(jobs)
            for job in pending:
                job.mark_unfinished()
            if spec.pca is not None:
                basis = self._basis(jobs, backbone, spec, windows)
                backbone, spec = with_basis(backbone, spec, basis, self.cache_dir)
            wanted = []
            for job in jobs:
                if job.id not in windows or job.is_kept(spec):
                    job.files.remove_progress()
                    logger.info("%s: finished, kept", job.name)
                else:
                    wanted.append((job, windows[job.id]))
            self._make(wanted, backbone, spec)
            if self.targets is not None:
                update_targets(self.cache_dir, self.targets, self.show_progress)
        return [job.files.arrays for job in jobs]

    def check(self) -> list[VolumeJob]:
        """As far as it shows without loading the backbone, whether ``run`` would be refused.

        Reads metadata alone and writes nothing.

        Returns:
            what ``run`` would fill the cache with.

        Raises:
            InputError: as ``run``.
        """
        jobs = self._jobs(place_entry)
        self._refuse_strangers(jobs)
        finished = [job for job in jobs if job.files.finished]
        specs = [read_json(job.files.metadata)["features"] for job in finished]
        wanted = [asked_of(FeatureSpec.from_json(spec), self.features) for spec in specs]
        for job, spec in zip(finished, wanted, strict=True):
            job.is_kept(spec)
        if wanted:
            pending = [job for job in jobs if not job.files.finished]
            self._refuse_full_disk(jobs, pending, wanted[0])
        return jobs

    def _jobs(self, opening: Callable[[DatalistEntry], OpenEntry] = open_entry) -> list[VolumeJob]:
        """Every entry of the sections, opened and checked."""
        datalist = parse_datalist(self.datalist)
        sources = [
            (section, opening(entry))
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
            if files.finished:
                raise InputError(f"cache_dir '{self.cache_dir}' holds {self._strange(files, jobs)}")

    def _strange(self, files: VolumeFiles, jobs: Sequence[VolumeJob]) -> str:
        """What a finished volume is that is none of the jobs', and what to do."""
        entry, copies, job = entry_of(files), self.copies.count, _by_id(jobs)
        copy, id_ = copy_of(entry), entry["id"]
        if copy > copies and id_ in job:
            return (
                f"{files.name}, copy {copy} of entry '{id_}', but augmented_copies is {copies}; "
                f"remove it (python -m scripts.cache prune --copies {copies}) or raise "
                f"augmented_copies"
            )
        if copy and id_ in job:
            return (
                f"{files.name}, copy {copy} of entry '{id_}', which is in section "
                f"'{job[id_].section}' now, and only training entries have copies; remove "
                f"{files.name}* or choose another cache_dir"
            )
        if entry["section"] not in self.sections:
            return (
                f"{files.name} of entry '{id_}' in section '{entry['section']}', which sections "
                f"lacks; add it, remove {files.name}*, or choose another cache_dir"
            )
        return (
            f"{files.name} of entry '{id_}', which is not in the datalist '{self.datalist}'; "
            f"remove it (python -m scripts.cache prune) or choose another cache_dir"
        )

    def _remove_leftovers(self, jobs: Sequence[VolumeJob]) -> None:
        """Unfinished volumes of another datalist."""
        for files in self._strangers(jobs):
            if not files.finished:
                files.remove()

    def _forget_earlier_run(self) -> None:
        """State of a run with workers that was killed."""
        if (self.cache_dir / WORKERS_STATE).exists():
            from custom.blockwise.caching import forget_earlier_run  # imports volara: slow

            forget_earlier_run(self.cache_dir)

    def _strangers(self, jobs: Sequence[VolumeJob]) -> list[VolumeFiles]:
        """Volumes that are none of the jobs'."""
        wanted = {job.files.index for job in jobs}
        return [files for files in volumes_in(self.cache_dir) if files.index not in wanted]

    def _refuse_full_disk(
        self, jobs: Sequence[VolumeJob], pending: Sequence[VolumeJob], spec: FeatureSpec
    ) -> None:
        """What the cache lacks must fit before anything is computed for it."""
        needed = self._bytes_of_targets(jobs)
        for job in pending:  # what an interrupted run has written is on the disk already
            needed += max(0, job.bytes_needed(spec) - bytes_on_disk(job.files.arrays))
        logger.info("%d volumes to make", len(pending))
        way_out = "choose another one, fewer pixels_per_voxel or smaller ROIs"
        refuse_full_disk("cache_dir", self.cache_dir, needed, way_out)

    def _bytes_of_targets(self, jobs: Sequence[VolumeJob]) -> int:
        """Upper bound of what targets take beside older ones, which stay until these are there."""
        if self.targets is None:
            return 0
        wanted, per_voxel = self.targets.to_json(), self.targets.layout.num_outputs + 2
        return per_voxel * sum(
            in_chunks(tuple(job.opened.roi.shape), TARGET_CHUNK)
            for job in jobs
            if job.opened.labels is not None
            and read_json(job.files.metadata).get("targets") != wanted
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
            boxes = {job.id: job.raw_box(windows[job.id]) for job in training}
            whole, progress = unreduced(spec, backbone), self.show_progress
            return fit_basis(boxes, backbone, whole, spec.pca, self.windows_at_once, progress)

        return stored_or_fitted(self.cache_dir, [FeatureSpec.from_json(f) for f in found], fit)

    def _make(
        self,
        wanted: Sequence[tuple[VolumeJob, IntensityWindow]],
        backbone: Backbone,
        spec: FeatureSpec,
    ) -> None:
        """Write volumes, each with its intensity window."""
        if self.workforce.workers is not None:
            self._make_with_workers(wanted)
            return
        options = (self.compression, self.windows_at_once, self.show_progress)
        maker = VolumeMaker(backbone, spec, self.features, *options)
        for job, window in wanted:
            maker.make(job, window)

    def _make_with_workers(self, wanted: Sequence[tuple[VolumeJob, IntensityWindow]]) -> None:
        from custom.blockwise.caching import cache_with_workers, pending  # imports volara: slow

        settings = {
            "datalist": self.datalist.absolute(),
            "backbone": str(self.backbone) if isinstance(self.backbone, Path) else self.backbone,
            "features": self.features,
            "device": self.workforce.device(str(self.device)),
            "compile": self.compile,
            "compression": self.compression,
            "windows_at_once": self.windows_at_once,
        }
        volumes = [pending(job, window) for job, window in wanted]
        cache_with_workers(volumes, self.workforce, self.cache_dir, settings)


def _identity(entry: Json) -> tuple[str, int]:
    """What tells a volume from all others of its cache."""
    return entry["id"], copy_of(entry)


def _by_id(jobs: Sequence[VolumeJob]) -> dict[str, VolumeJob]:
    """One job per entry."""
    return {job.id: job for job in jobs}
