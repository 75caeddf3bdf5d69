"""Whole volumes, from raw or from a cache, for validation and inference."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from funlib.geometry import Roi
from torch import Tensor
from torch.utils.data import Dataset

from custom.datalist import OpenEntry, entries_in, open_entry
from custom.errors import InputError
from custom.features.backbone import Backbone, BackboneSource
from custom.features.batching import checked_windows_at_once
from custom.features.cache import open_cache
from custom.features.extraction import extract_planes
from custom.features.intensity import IntensityWindow, entry_window
from custom.features.reduced import load_reduced
from custom.features.settings import complete_settings
from custom.features.spec import FeatureSpec
from custom.live import FeatureVolume
from custom.metrics import UNKNOWN
from custom.samples import Sample, add_extracted, add_features, image_of, image_tensor
from custom.targets.classes import ClassSettings
from custom.truth import Truth

logger = logging.getLogger(__name__)

REGIONS = ("roi", "volume")


class CachedVolumeDataset(Dataset[Sample]):
    """Whole volumes, cached or live.

    An item: ``image`` and tokens as in ``CropDataset``; ``id``, ``voxel_size_nm``, ``offset_nm``
    (of its first voxel's centre); with labels also ``label`` (1, D, H, W) int64, 0 where labels do
    not count, or class ids, ``UNKNOWN`` there, and ``mask`` (1, D, H, W), True where they do.

    Args:
        volumes: from ``training_volumes`` or ``open_cache``.
        use_tokens: read the tokens; False for raw-only networks.
        classes: what the ids of labels mean; None for objects.

    Raises:
        InputError: an id is no class, or no class but background counts in any of the labels.
    """

    def __init__(
        self,
        volumes: Sequence[FeatureVolume],
        use_tokens: bool = True,
        classes: ClassSettings | None = None,
    ) -> None:
        self.volumes = list(volumes)
        self.use_tokens = use_tokens
        self.truths = [Truth(v, classes) if v.has_labels else None for v in self.volumes]
        self.unknown = 0 if classes is None else UNKNOWN
        truths = [truth for truth in self.truths if truth]
        if classes and truths and not any(truth.has_objects() for truth in truths):
            names = ", ".join(f"'{volume.id}'" for volume in self.volumes)
            raise InputError(
                f"the labels of {names} hold no class but background where they count: check "
                "labels and masks of these validation entries, ignore_label and class_of_labels"
            )

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: int) -> Sample:
        volume, truth = self.volumes[index], self.truths[index]
        whole = Roi((0, 0, 0), volume.shape)
        image = image_tensor(volume.read_raw(whole), volume.raw_window)
        sample = _described(image, volume.id, volume.voxel_size_nm, volume.offset_nm)
        if truth is not None:
            labels, mask = truth.read(whole)
            sample["label"] = torch.from_numpy(np.where(mask, labels, self.unknown))[None]
            sample["mask"] = torch.from_numpy(mask)[None]
        if self.use_tokens:
            add_features(sample, volume)
        return sample


def validation_dataset(
    volumes: Sequence[FeatureVolume],
    use_tokens: bool = True,
    classes: ClassSettings | None = None,
) -> CachedVolumeDataset:
    """Those volumes that a prediction can be scored on; the others are named in the log.

    That needs labels, and an object, or in one volume at least a class, where they count.

    Args:
        volumes: as of ``CachedVolumeDataset``.
        use_tokens: as there.
        classes: as there.

    Raises:
        InputError: as there; there is no such volume.
    """
    scored = [
        volume
        for volume in volumes
        if volume.has_labels and (classes or Truth(volume, None).has_objects())
    ]
    if not scored:
        names = ", ".join(f"'{volume.id}'" for volume in volumes)
        raise InputError(
            f"none of the validation volumes {names} has labels that count, so no prediction can "
            "be scored: name labels in the datalist, and check mask and roi"
        )
    if left_out := [volume.id for volume in volumes if volume not in scored]:
        logger.warning("without labels that count, so not scored: %s", ", ".join(left_out))
    return CachedVolumeDataset(scored, use_tokens, classes)


class RawVolumeDataset(Dataset[Sample]):
    """Whole volumes from raw, features extracted when an item is asked for.

    Items as in ``CachedVolumeDataset``, without ``label``.

    Args:
        datalist: path of the datalist.
        section: "training", "validation" or "test".
        backbone: as in ``load_backbone``.
        features: the config's ``features``.
        region: "roi": an entry's ROI where it has one; "volume": all of raw.
        use_tokens: extract tokens; False for raw-only networks, the backbone is not loaded then.
        device: where the backbone computes.
        model_dir: folder of a model, with the basis of its features if they are reduced.
        windows_at_once: batch size of the forward pass; ``None`` for as many as fit into memory.
        compile: run the backbone through torch.compile.

    Raises:
        InputError: the datalist, the backbone, its basis or the features are at fault, the
            section is empty, the region is unknown, or windows_at_once is no such number.
    """

    def __init__(
        self,
        datalist: str,
        section: str,
        backbone: BackboneSource,
        features: Mapping[str, Any],
        region: str = "roi",
        use_tokens: bool = True,
        device: str | torch.device = "cpu",
        model_dir: str = "",
        windows_at_once: int | None = None,
        compile: bool = False,
    ) -> None:
        self.windows_at_once = checked_windows_at_once(windows_at_once)
        if region not in REGIONS:
            raise InputError(f"region must be one of {', '.join(REGIONS)}, got {region!r}.")
        self.entries = [open_entry(entry) for entry in entries_in(datalist, section)]
        self.region = region
        self.use_tokens = use_tokens
        self.percentiles = complete_settings(features)["intensity_percentiles"]
        self.backbone: Backbone | None = None
        self.spec: FeatureSpec | None = None
        if use_tokens:
            advice = "put back the one that training wrote there"
            self.backbone, self.spec = load_reduced(
                backbone, features, device, model_dir, advice, compile
            )

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        opened = self.entries[index]
        roi = region_of(opened, self.region)
        window = entry_window(opened, self.percentiles)
        image = image_of(opened.read_raw(roi), window)
        place = opened.voxel_size_nm, opened.offset_nm(roi)
        sample = _described(image, opened.entry.id, *place)
        if self.use_tokens:
            self._add_extracted(sample, opened, roi, window)
        return sample

    def _add_extracted(
        self, sample: Sample, opened: OpenEntry, roi: Roi, window: IntensityWindow
    ) -> None:
        """Features of a box, in the layout of the spec."""
        assert self.backbone is not None and self.spec is not None
        grids = extract_planes(
            opened.source.read,
            opened.raw.metadata.shape,
            roi,
            self.backbone,
            self.spec,
            window,
            windows_at_once=self.windows_at_once,
            progress=True,
            raw_axes=opened.raw_axes,
        )
        add_extracted(sample, self.spec, grids)


def region_of(opened: OpenEntry, region: str) -> Roi:
    """What is segmented of an entry, in voxels of raw: one of ``REGIONS``."""
    return opened.roi if region == "roi" else opened.raw.metadata.roi


def inference_dataset(
    source: str,
    datalist: str,
    section: str,
    cache_dir: str,
    backbone: BackboneSource,
    features: Mapping[str, Any],
    region: str = "roi",
    use_tokens: bool = True,
    device: str | torch.device = "cpu",
    model_dir: str = "",
    windows_at_once: int | None = None,
    compile: bool = False,
) -> RawVolumeDataset | CachedVolumeDataset:
    """Volumes to segment, from raw or from a cache.

    Args:
        source: "raw": extract features from the datalist's raw volumes; "cache": read them.
        cache_dir: folder of the cache, for "cache".

    The other arguments are those of ``RawVolumeDataset``.

    Raises:
        InputError: unknown source; the sources are at fault.
    """
    if source == "raw":
        return RawVolumeDataset(
            datalist,
            section,
            backbone,
            features,
            region,
            use_tokens,
            device,
            model_dir,
            windows_at_once,
            compile,
        )
    if source == "cache":
        return CachedVolumeDataset(open_cache(cache_dir, section), use_tokens)
    raise InputError(f"source must be 'raw' or 'cache', got {source!r}.")


def dataset_spec(dataset: RawVolumeDataset | CachedVolumeDataset) -> FeatureSpec | None:
    """The features that a dataset's samples have; None where raw alone is read."""
    return dataset.spec if isinstance(dataset, RawVolumeDataset) else dataset.volumes[0].spec


def _described(
    image: Tensor, name: str, voxel_size_nm: Sequence[float], offset_nm: Sequence[float]
) -> Sample:
    return {
        "image": image,
        "id": name,
        "voxel_size_nm": torch.tensor(voxel_size_nm, dtype=torch.float64),
        "offset_nm": torch.tensor(offset_nm, dtype=torch.float64),
    }
