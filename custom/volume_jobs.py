"""What preprocessing has to do for one volume: its files, its source, and what it needs on disk."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from custom.datalist import OpenEntry
from custom.errors import InputError
from custom.features.cache import RAW_KEPT, RAW_RESCALED, refuse_difference
from custom.features.cache_files import (
    DENSE_CHUNK,
    GRID_CHUNK,
    TOKEN_CHUNK,
    VOXEL_CHUNK,
    Json,
    VolumeFiles,
    entry_name,
    read_json,
)
from custom.features.copies import IntensityChange, changed_volume
from custom.features.extraction import RawBox
from custom.features.intensity import IntensityWindow, entry_window
from custom.features.lattice import plane_lattice
from custom.features.spec import FeatureSpec
from custom.locations import moved

logger = logging.getLogger(__name__)


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
            "offset_nm": list(opened.offset_nm(opened.roi)),
        }

    def _classes(self) -> Json:
        """Paths and ids of the classes, nothing where labels are in one volume."""
        classes, ids = self.opened.entry.classes, self.opened.entry.class_ids
        if classes is None:
            return {}
        cache_dir = self.files.cache_dir
        relative = {name: path and moved(path, cache_dir) for name, path in classes.items()}
        return {"classes": relative, "class_ids": ids}

    def is_kept(self, spec: FeatureSpec) -> bool:
        """Whether a finished volume is there; it must be the one that is asked for."""
        if not self.files.finished:
            return False
        found = read_json(self.files.metadata)
        refuse_difference(FeatureSpec.from_json(found["features"]), spec, self.files.arrays)
        for name, wanted in self.source().items():
            if found.get(name) != wanted:
                raise InputError(
                    f"{self.files.arrays} was made from another source than entry '{self.id}' of "
                    f"the datalist: {name} ({found.get(name)}, not {wanted}). Choose another "
                    f"cache_dir or remove {self.files.name}*."
                )
        return True

    def mark_unfinished(self) -> None:
        """From now on the volume is known to be wanted, and its files to be ours."""
        source = self.source()
        found = read_json(self.files.progress).get("request", {})
        if found.get("entry") != source["entry"]:
            self.files.mark_unfinished(source)

    def intensity_window(self, spec: FeatureSpec) -> IntensityWindow:
        """The datalist's window, else the one measured on the whole raw volume."""
        window = entry_window(self.opened, spec.intensity_percentiles)
        found = "given" if self.opened.entry.intensity_window else "measured"
        logger.info("%s: grey values %g to %g (%s)", self.id, *window, found)
        return window

    @property
    def raw_rule(self) -> str:
        """How cached raw follows from the source's."""
        kept = self.change is None and self.opened.raw.metadata.dtype == "uint8"
        return RAW_KEPT if kept else RAW_RESCALED

    def raw_box(self, window: IntensityWindow) -> RawBox:
        """The box of raw that features are extracted from."""
        shape = self.opened.raw.metadata.shape
        return RawBox(self.opened.source.read, shape, self.opened.roi, window, self.opened.raw_axes)

    def bytes_needed(self, spec: FeatureSpec) -> int:
        """Upper bound of what the volume takes on disk: whole chunks, nothing compressed."""
        shape = self.opened.raw.metadata.shape
        lattices = (plane_lattice(spec, shape, self.opened.roi, plane) for plane in spec.planes)
        chunk = GRID_CHUNK if spec.layout == "dense" else TOKEN_CHUNK
        entries = [in_chunks(lattice.shape, chunk) for lattice in lattices]
        values = sum(entries) * np.dtype(spec.dtype).itemsize
        if spec.layout == "dense":  # all planes' grids are float beside it, until it is complete
            values = sum(entries) * np.dtype(spec.float_dtype).itemsize
            voxels = in_chunks(tuple(self.opened.roi.shape), DENSE_CHUNK)
            values += voxels * np.dtype(spec.dtype).itemsize
        elif spec.dtype == "int8":  # one plane at a time is float16 beside it, until it is complete
            values += max(entries) * np.dtype(spec.float_dtype).itemsize
        per_voxel = 1 if self.opened.labels is None else 6
        return values * spec.channels + per_voxel * in_chunks(
            tuple(self.opened.roi.shape), VOXEL_CHUNK
        )


def in_chunks(shape: Sequence[int], chunks: Sequence[int]) -> int:
    """Entries of an array that is padded to whole chunks."""
    sizes = [min(c, s) for c, s in zip(chunks, shape, strict=True)]
    return math.prod(-(-s // c) * c for s, c in zip(shape, sizes, strict=True))
