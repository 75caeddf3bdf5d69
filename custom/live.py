"""Volumes whose features are extracted when they are asked for, instead of read from a cache."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from funlib.geometry import Roi
from numpy.typing import NDArray
from torch import Tensor

from custom.datalist import OpenEntry, entries_in, open_entry
from custom.features.backbone import Backbone, BackboneSource
from custom.features.batching import checked_windows_at_once
from custom.features.dense import dense_features
from custom.features.extraction import ReadRaw, extract_planes
from custom.features.intensity import IntensityWindow, entry_window, to_uint8
from custom.features.pca import PcaBasis
from custom.features.reduced import load_reduced
from custom.features.spec import FeatureSpec
from custom.features.triplane import PlaneGrid, crop
from custom.json_fields import picked
from custom.voxel_grid import Triple


class FeatureVolume(Protocol):
    """What training needs of a volume, cached or live; boxes are in voxels of its ROI."""

    metadata: Mapping[str, Any]

    @property
    def spec(self) -> FeatureSpec:
        """How its features are made."""

    @property
    def basis(self) -> PcaBasis | None:
        """The basis that its features are coordinates in; None where they are not reduced."""

    @property
    def id(self) -> str:
        """Id of the datalist's entry."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W) of the ROI."""

    @property
    def voxel_size_nm(self) -> Triple:
        """Voxel size, zyx."""

    @property
    def offset_nm(self) -> Triple:
        """Position of the centre of the ROI's first voxel, zyx."""

    @property
    def raw_window(self) -> IntensityWindow:
        """Values that ``read_raw`` gives for the ends of the intensity window."""

    @property
    def has_labels(self) -> bool:
        """Whether there are labels and their mask."""

    def plane_grid(self, plane: str, roi: Roi | None = None) -> PlaneGrid:
        """A plane's features for a box, or for the whole ROI."""

    def read_features(self, roi: Roi | None = None) -> Tensor:
        """Features (C, D, H, W) of a box, or of the whole ROI, in the dense layout."""

    def read_raw(self, roi: Roi) -> NDArray[np.uint8]:
        """Raw of a box (D, H, W), 0 outside the ROI."""

    def read_labels(self, roi: Roi) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
        """Consecutive labels of a box, and where they count; 0 and False outside the ROI."""

    def label_ids(self) -> NDArray[np.uint64]:
        """The source's id of every label."""


class LiveFeatures:
    """A backbone and its spec; in a loader's worker, the backbone is loaded when first needed.

    Args:
        source: as in ``load_backbone``.
        settings: the config's ``features``.
        device: where the backbone computes.
        cache_dir: holds the basis of reduced features.
        windows_at_once: batch size of the forward pass; ``None`` for as many as fit into memory.
        compile: run the backbone through torch.compile.

    Raises:
        InputError: as ``load_reduced``; windows_at_once is no such number.
    """

    def __init__(
        self,
        source: BackboneSource,
        settings: Mapping[str, Any],
        device: str | torch.device,
        cache_dir: str | Path,
        windows_at_once: int | None = None,
        compile: bool = False,
    ) -> None:
        self.source, self.settings, self.device = source, settings, device
        self.cache_dir = cache_dir
        self.windows_at_once = checked_windows_at_once(windows_at_once)
        self.compile = compile
        self._backbone: Backbone | None
        self._backbone, self.spec = self._load()

    def _load(self) -> tuple[Backbone, FeatureSpec]:
        advice = "run preprocessing, which fits it, or set features.pca to null"
        return load_reduced(
            self.source, self.settings, self.device, self.cache_dir, advice, self.compile
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_backbone": None}

    @property
    def backbone(self) -> Backbone:
        """The backbone, loaded."""
        if self._backbone is None:
            self._backbone, _ = self._load()
        return self._backbone


class LiveVolume:
    """An entry of a datalist, with the same raw, labels and features that its cache would hold.

    Args:
        opened: the entry.
        features: extract its features; volumes may share them.
        window: grey values that are mapped to 0 and 1.
    """

    def __init__(self, opened: OpenEntry, features: LiveFeatures, window: IntensityWindow) -> None:
        self.opened = opened
        self.features = features
        self.window = window
        roi = opened.roi
        self.metadata: Mapping[str, Any] = {
            "entry": {"id": self.id, "class_ids": opened.entry.class_ids},
            "roi": {"offset": list(roi.offset), "shape": list(roi.shape)},
        }
        self._whole: dict[str, PlaneGrid] = {}
        self._read: ReadRaw = opened.source.read

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_whole": {}}

    def reading(self, read: ReadRaw) -> "LiveVolume":
        """The volume with features of what ``read`` gives for raw, and all else as it is.

        Args:
            read: returns any box (D, H, W) inside the raw file's voxels.
        """
        volume = copy(self)
        volume._read = read
        return volume

    @property
    def spec(self) -> FeatureSpec:
        """How its features are made."""
        return self.features.spec

    @property
    def basis(self) -> PcaBasis | None:
        """The basis that its features are coordinates in; None where they are not reduced."""
        return self.features.backbone.basis

    @property
    def id(self) -> str:
        """Id of the entry."""
        return self.opened.entry.id

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W) of the ROI."""
        depth, height, width = self.opened.roi.shape
        return int(depth), int(height), int(width)

    @property
    def voxel_size_nm(self) -> Triple:
        """Voxel size, zyx."""
        return self.opened.voxel_size_nm

    @property
    def offset_nm(self) -> Triple:
        """Position of the centre of the ROI's first voxel, zyx."""
        return self.opened.offset_nm(self.opened.roi)

    @property
    def raw_window(self) -> IntensityWindow:
        """Values that ``read_raw`` gives for the ends of the intensity window."""
        return self.window if self.opened.raw.metadata.dtype == "uint8" else (0.0, 255.0)

    @property
    def has_labels(self) -> bool:
        """Whether there are labels."""
        return self.opened.labels is not None

    def label_ids(self) -> NDArray[np.uint64]:
        """The source's id of every label, ascending, 0 first."""
        return self._label_ids

    @cached_property
    def _label_ids(self) -> NDArray[np.uint64]:
        return self.opened.label_ids()

    def plane_grid(self, plane: str, roi: Roi | None = None) -> PlaneGrid:
        """A plane's features for a box, or for the whole ROI, which are kept.

        As of the cache, the number of entries depends on the box's shape alone.
        """
        if roi is None:
            if plane not in self._whole:
                self._whole[plane] = self._extract(plane, Roi((0, 0, 0), self.shape))
            return self._whole[plane]
        return crop(self._extract(plane, roi), (0, 0, 0), tuple(roi.shape))

    def read_features(self, roi: Roi | None = None) -> Tensor:
        """Features (C, D, H, W) of a box, or of the whole ROI, whose grids are kept."""
        shape = self.shape if roi is None else tuple(roi.shape)
        grids = {
            plane: self.plane_grid(plane) if roi is None else self._extract(plane, roi)
            for plane in self.spec.planes
        }
        return dense_features(grids, shape, getattr(torch, self.spec.float_dtype))

    def _extract(self, plane: str, roi: Roi) -> PlaneGrid:
        spec = replace(self.spec, planes=(plane,))
        return extract_planes(
            self._read,
            self.opened.raw.metadata.shape,
            self._in_raw(roi),
            self.features.backbone,
            spec,
            self.window,
            self.features.windows_at_once,
            raw_axes=self.opened.raw_axes,
        )[plane]

    def read_raw(self, roi: Roi) -> NDArray[np.uint8]:
        """Raw of a box (D, H, W), 0 outside the ROI."""
        part, here = self._part(roi)
        values = np.zeros(tuple(roi.shape), np.uint8)
        if not part.empty:
            values[here] = to_uint8(self.opened.read_raw(self._in_raw(part)), self.window)
        return values

    def read_labels(self, roi: Roi) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
        """Consecutive labels of a box, and where they count; 0 and False outside the ROI."""
        part, here = self._part(roi)
        labels = np.zeros(tuple(roi.shape), np.uint32)
        mask = np.zeros(labels.shape, np.bool_)
        if not part.empty:
            ids, mask[here] = self.opened.read_labels(self._in_raw(part))
            labels[here] = np.searchsorted(self._label_ids, ids)
        return labels, mask

    def _part(self, roi: Roi) -> tuple[Roi, tuple[slice, ...]]:
        """The part of a box inside the ROI, and where it lies in the box."""
        part = roi.intersect(Roi((0, 0, 0), self.shape))
        return part, (part - roi.offset).to_slices()

    def _in_raw(self, roi: Roi) -> Roi:
        """A box in voxels of raw."""
        return roi + self.opened.roi.offset


def live_volumes(
    datalist: str,
    section: str,
    source: BackboneSource,
    settings: Mapping[str, Any],
    device: str | torch.device = "cpu",
    cache_dir: str | Path = "",
    windows_at_once: int | None = None,
    compile: bool = False,
    volume_indices: Sequence[int | str] | None = None,
) -> Sequence[LiveVolume]:
    """Volumes of a section of a datalist, their features extracted when they are asked for.

    Args:
        datalist: path of the datalist.
        section: "training" or "validation".
        source: as in ``load_backbone``.
        settings: the config's ``features``.
        device: where the backbone computes.
        cache_dir: holds the basis of reduced features.
        windows_at_once: as in ``LiveFeatures``.
        compile: as in ``LiveFeatures``.
        volume_indices: only these entries of the section, by id or by position from 0 on.

    Raises:
        InputError: the datalist, its volumes, the backbone, its basis or the settings are at fault,
            or the section is empty.
    """
    entries = entries_in(datalist, section)
    if volume_indices is not None:
        ids = picked([entry.id for entry in entries], volume_indices, "volume_indices")
        entries = tuple(entry for entry in entries if entry.id in ids)
    features = LiveFeatures(source, settings, device, cache_dir, windows_at_once, compile)
    volumes = []
    for opened in map(open_entry, entries):
        window = entry_window(opened, features.spec.intensity_percentiles)
        volumes.append(LiveVolume(opened, features, window))
    return volumes
