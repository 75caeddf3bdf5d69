"""Volumes of a cache in the making: features, raw and labels of one entry of a datalist."""

import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
from funlib.geometry.roi import Roi
from tqdm import tqdm

import custom
from custom.datalist import OpenEntry
from custom.features.backbone import Backbone
from custom.features.cache_files import VOXEL_CHUNK, Json, slabs
from custom.features.cache_writer import VolumeWriter
from custom.features.dense_writer import DenseVolumeWriter
from custom.features.extraction import PlaneExtraction
from custom.features.intensity import IntensityWindow, to_uint8
from custom.features.settings import complete_settings
from custom.features.spec import FeatureSpec
from custom.volume_jobs import VolumeJob

logger = logging.getLogger(__name__)

PACKAGES = ("monai", "torch", "transformers", "tensorstore", "numpy")


class VolumeMaker:
    """Writes volumes of a cache, one after the other.

    Args:
        backbone: gives the features.
        spec: of the features, with the digest of a basis where they are reduced.
        features: settings that the spec was made from.
        compression: of the features: "none", "lz4" or "zstd".
        windows_at_once: batch size of the forward pass; None for as many as fit into memory.
        show_progress: draw progress bars.
    """

    def __init__(
        self,
        backbone: Backbone,
        spec: FeatureSpec,
        features: Mapping[str, Any],
        compression: str = "none",
        windows_at_once: int | None = None,
        show_progress: bool = False,
    ) -> None:
        self.backbone, self.spec, self.features = backbone, spec, features
        self.compression = compression
        self.windows_at_once = windows_at_once
        self.show_progress = show_progress

    def make(self, job: VolumeJob, window: IntensityWindow) -> None:
        """Write one volume, or the rest of an interrupted one.

        Args:
            job: the volume.
            window: grey values that become 0 and 255.

        Raises:
            InputError: the disk is full, or the folder may not be written.
        """
        started = time.perf_counter()
        request = {
            **job.source(),
            "features": self.spec.to_json(),
            "settings": complete_settings(self.features),
            "intensity_window": list(window),
            "raw_rule": job.raw_rule,
            "backbone_seed": self.backbone.seed,
        }
        kind = DenseVolumeWriter if self.spec.layout == "dense" else VolumeWriter
        writer = kind(job.files, request, self.compression)
        if writer.resumed:
            logger.info("%s: taken up again", job.name)
        job, window = job.changed(window)
        _write_voxels(writer, job.opened, window)
        windows, planes = self._write_planes(writer, job, window)
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
        self, writer: VolumeWriter, job: VolumeJob, window: IntensityWindow
    ) -> tuple[int, Json]:
        """Write the features; returns the number of windows computed, and where the grids lie."""
        box, spec = job.raw_box(window), self.spec
        planes = {
            plane: PlaneExtraction(box, self.backbone, spec, plane, self.windows_at_once)
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
