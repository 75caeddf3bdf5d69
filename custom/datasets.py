"""Random crops of volumes, for training."""

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from funlib.geometry import Roi
from monai.transforms import Randomizable, Transform
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from custom.cached_targets import refuse_other_targets, stored_targets
from custom.context import CONTEXT, contexts_of, refuse_deformed_context
from custom.deformation import RandDeformation, rand_deformation
from custom.errors import InputError
from custom.json_fields import flag, whole_numbers
from custom.live import FeatureVolume
from custom.planes import PLANES
from custom.samples import Sample, add_features, image_tensor
from custom.targets.halo import target_halo
from custom.targets.masks import eroded
from custom.targets.settings import TargetSettings
from custom.truth import Truth
from custom.warp import deformed, refuse_undeformable

logger = logging.getLogger(__name__)


MAX_DRAWS = 1000  # so many that one usable crop in fifty is found in any run
MAX_HIDDEN = 200  # so many that augmentation which hides nine samples in ten ends no run
FEATURE_KEYS = {
    prefix + name
    for prefix in ("", CONTEXT)
    for name in ("features", *(f"tokens_{plane}" for plane in PLANES))
}
FEATURE_DTYPES = {None: None, "float16": torch.float16, "float32": torch.float32}


class CropDataset(Dataset[Sample]):
    """Random crops of volumes, cached or live.

    A sample follows from the seed and its number alone, whatever process or thread asks for it;
    every sample has its own copy of the transform. Volumes are drawn in proportion to the number of
    places a crop can take in them. Crops in which labels count in less than ``min_labelled`` of the
    voxels are drawn anew, and those without an object, too; background alone is a class, however.
    So are samples in which the transform has left nothing that counts.

    A sample, before the transform: ``image`` (1, D, H, W) float32 in [-1, 1]; for every plane
    ``tokens_<plane>`` (C, d, h, w) and ``placement_<plane>`` (2, 3), see ``PlaneGrid``, or in the
    dense layout ``features`` (C, D, H, W) and ``token_steps`` (3, 3), voxels between tokens of xy,
    xz and yz, zyx, 0 for a plane that is not in the mean; ``labels``
    int64 (classes, where they are predicted) and ``mask`` bool (1, D + 2 hz, H + 2 hy, W + 2 hx)
    with the halo that targets need;
    ``voxel_size_nm`` (3,) float64. With a context, what ``CoarseVolume.around`` gives. And what
    messages name it by: ``sample_number``, ``sample_volume`` (its id), ``sample_offset`` (3,).

    Args:
        volumes: with labels, from ``training_volumes``.
        crop_size: (D, H, W) of a crop.
        targets: settings of the targets, for the halo, and that ``cached_targets`` must have.
        num_samples: samples per epoch.
        seed: of all draws.
        min_labelled: smallest fraction of voxels where labels count.
        use_tokens: read the tokens; False for raw-only networks.
        transform: applied to every sample; its random state is seeded per sample.
        cached_targets: read targets from the cache: a sample has ``target`` and
            ``boundary_weights`` too (``stored_targets``), its halo is as wide as the offsets.
        use_raw: read raw; False for networks on features alone: ``image`` is 0 then.
        feature_dtype: of tokens or dense features, "float16" or "float32"; None: as they are.
        deformation: arguments of ``RandDeformation``, whose draws deform crops; None for none.
        context_factor: how much coarser and larger a crop's context is, one whole number or three;
            None: samples have no context.

    Raises:
        InputError: a volume has no labels or an id that is no class, the crop is larger than every
            volume or smaller than an offset, or no crop has enough labels or any left by the
            transform; cached targets are wanted that are not there or are others; features that are
            not read are to have a dtype; crops are to be deformed, but tokens or targets come from
            a cache, or there is a context; a context_factor below 1, or as large as a volume.
    """

    def __init__(
        self,
        volumes: Sequence[FeatureVolume],
        crop_size: Sequence[int],
        targets: TargetSettings,
        num_samples: int,
        seed: int = 0,
        min_labelled: float = 0.1,
        use_tokens: bool = True,
        transform: Transform | None = None,
        cached_targets: bool = False,
        use_raw: bool = True,
        feature_dtype: str | None = None,
        deformation: Mapping[str, Any] | None = None,
        context_factor: int | Sequence[int] | None = None,
    ) -> None:
        self.cached_targets = flag(cached_targets, "cached_targets")
        if cached_targets:
            refuse_other_targets(volumes, targets)
        self.targets = targets
        if feature_dtype not in FEATURE_DTYPES:
            raise InputError(
                f"feature_dtype must be null, 'float16' or 'float32', got {feature_dtype!r}."
            )
        if feature_dtype and not use_tokens:
            raise InputError(
                f"feature_dtype is {feature_dtype!r}, but the network takes no features "
                f"(token_channels is 0): set it to null."
            )
        self.crop_size = tuple(whole_numbers(list(crop_size), 3, 1, "crop_size"))
        targets.refuse_crop(self.crop_size)
        self.volumes = fitting(volumes, self.crop_size)
        for volume in volumes:
            if volume not in self.volumes:
                logger.warning(
                    "training volume '%s' %s is smaller than crop_size %s and is left out",
                    *(volume.id, list(volume.shape), list(self.crop_size)),
                )
        places = [self._places(volume) for volume in self.volumes]
        self.shares = np.array(places) / sum(places)
        self.truths = [Truth(volume, targets.classes) for volume in self.volumes]
        self.halos = [
            target_halo(targets, v.voxel_size_nm, cached_targets, v.shape) for v in self.volumes
        ]
        self.num_samples = num_samples
        self.seed = seed
        self.min_labelled = min_labelled
        self.use_tokens = use_tokens
        self.transform = transform
        self.use_raw = use_raw
        self.feature_dtype = feature_dtype
        self.deformation = rand_deformation(deformation)
        if self.deformation:
            refuse_undeformable(self.volumes, self.deformation, use_tokens, cached_targets)
            refuse_deformed_context(context_factor)
        self.contexts = contexts_of(
            self.volumes, context_factor, self.crop_size, use_tokens, use_raw
        )
        self._try()

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, number: int) -> Sample:
        """Sample of that number; numbers go on from one epoch to the next."""
        random = np.random.default_rng((self.seed, number))
        for _ in range(MAX_HIDDEN):
            index, offset, truth = self._draw(random)
            named = {"sample_number": number, **self._read(index, offset, truth)}
            sample = self._transformed(named, random)
            if self._counts(sample):
                return sample
        raise InputError(
            f"augmentation left nothing that counts in {MAX_HIDDEN} of {MAX_HIDDEN} random crops, "
            f"though labels counted in at least {self.min_labelled:.0%} of their voxels; let it "
            "hide less, or raise train#dataset#min_labelled"
        )

    def _try(self) -> None:
        """So that a mistake speaks here, in one sentence, and not out of a worker."""
        kinds = {volume.voxel_size_nm: index for index, volume in enumerate(self.volumes)}
        for index in kinds.values() if len(kinds) > 1 else ():
            sample = self._read(index, (0, 0, 0), self.truths[index])
            self._transformed(sample, np.random.default_rng(self.seed))
        self[0]

    def _transformed(self, sample: Sample, random: np.random.Generator) -> Sample:
        if self.transform is None:
            return sample
        transform = deepcopy(self.transform)  # of this sample alone: threads share the dataset
        if isinstance(transform, Randomizable):
            transform.set_random_state(seed=int(random.integers(2**32)))
        transformed: Sample = transform(sample)
        return transformed

    def _counts(self, sample: Sample) -> bool:
        """Whether a loss would see anything of a sample; without targets there is none."""
        if "label" not in sample:
            return True
        layout = self.targets.layout
        parts = [layout.valid, *([layout.lsd_mask] if layout.num_lsds else [])]
        return any(bool(sample["label"][part].any()) for part in parts)

    def _places(self, volume: FeatureVolume) -> int:
        return int(np.prod([s - c + 1 for c, s in zip(self.crop_size, volume.shape, strict=True)]))

    def _draw(self, random: np.random.Generator) -> tuple[int, tuple[int, ...], Truth]:
        """A volume, a place in it with enough labels, and the volume as it is deformed there."""
        deform = self._drawn_deformation(random)
        unlabelled = 0
        for _ in range(MAX_DRAWS):
            index = int(random.choice(len(self.volumes), p=self.shares))
            volume = self.volumes[index]
            offset = tuple(
                int(random.integers(s - c + 1))
                for c, s in zip(self.crop_size, volume.shape, strict=True)
            )
            roi, truth = Roi(offset, self.crop_size), self.truths[index]
            if deform:
                truth = truth.seen_in(deformed(volume, roi, deform))
            enough, has_object = self._labelled(truth, roi)
            if enough and has_object:
                return index, offset, truth
            unlabelled += not enough
        raise InputError(
            f"none of {MAX_DRAWS} random crops of {list(self.crop_size)} can be learned from: "
            f"{unlabelled} have too few labels, as they count in less than {self.min_labelled:.0%} "
            f"of their voxels, and {MAX_DRAWS - unlabelled} have no object; check labels, mask and "
            "mask_erosion, or lower train#dataset#min_labelled"
        )

    def _drawn_deformation(self, random: np.random.Generator) -> RandDeformation | None:
        """What deforms this sample, its random state seeded; None if it stays as it is."""
        if self.deformation is None:
            return None
        deform = deepcopy(self.deformation)
        deform.set_random_state(seed=int(random.integers(2**32)))
        deform.randomize()
        return deform if deform.deforms else None

    def _labelled(self, truth: Truth, roi: Roi) -> tuple[bool, bool]:
        """Whether labels count in enough of a crop, and whether there is something to learn."""
        erosion = self.targets.mask_erosion
        labels, mask = truth.read(roi.grow(erosion, erosion))
        counts = np.zeros_like(mask)
        inner = tuple(slice(e, e + n) for e, n in zip(erosion, roi.shape, strict=True))
        counts[inner] = eroded(mask, erosion)[inner]
        enough = counts[inner].mean() >= self.min_labelled
        return bool(enough), bool(self.targets.classes or (counts & (labels != 0)).any())

    def _read(self, index: int, offset: tuple[int, ...], truth: Truth) -> Sample:
        volume, roi, halo = truth.volume, Roi(offset, self.crop_size), self.halos[index]
        labels, mask = truth.read(roi.grow(halo, halo))
        sample: Sample = {
            "image": self._image(volume, roi),
            "labels": torch.from_numpy(labels)[None],
            "mask": torch.from_numpy(mask)[None],
            "voxel_size_nm": torch.tensor(volume.voxel_size_nm, dtype=torch.float64),
            "sample_volume": volume.id,
            "sample_offset": torch.tensor(offset),
        }
        if self.cached_targets:
            sample |= stored_targets(volume, roi)
        if self.use_tokens:
            add_features(sample, volume, roi)
        if self.contexts:
            sample |= self.contexts[index].around(offset, self.crop_size)
        self._convert_(sample)
        return sample

    def _image(self, volume: FeatureVolume, roi: Roi) -> Tensor:
        if not self.use_raw:
            return torch.zeros(1, *self.crop_size)
        return image_tensor(volume.read_raw(roi), volume.raw_window)

    def _convert_(self, sample: Sample) -> None:
        """Give the sample's tokens, or dense features, the dtype that was asked for."""
        dtype = FEATURE_DTYPES[self.feature_dtype]
        for name in sample.keys() & FEATURE_KEYS if dtype else ():
            sample[name] = sample[name].to(dtype)


class LabelledVolume(Protocol):
    """What ``fitting`` needs of a training volume."""

    @property
    def id(self) -> str:
        """Id of the datalist's entry."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W) of the ROI."""

    @property
    def has_labels(self) -> bool:
        """Whether there are labels."""


Labelled = TypeVar("Labelled", bound=LabelledVolume)


def fitting(volumes: Sequence[Labelled], crop_size: Sequence[int]) -> list[Labelled]:
    """Those of the training volumes that a crop fits into.

    Raises:
        InputError: one of all has no labels, or no volume is left.
    """
    for volume in volumes:
        if not volume.has_labels:
            raise InputError(
                f"training volume '{volume.id}' has no labels: name them in the datalist, "
                "or leave the volume out with volume_indices."
            )
    large = [v for v in volumes if all(c <= s for c, s in zip(crop_size, v.shape, strict=True))]
    if not large:
        raise InputError(
            f"crop_size {list(crop_size)} is larger than every training volume (their "
            f"shapes are {', '.join(str(list(v.shape)) for v in volumes)}); make it smaller."
        )
    return large


class CropSampler(DistributedSampler[int]):
    """Numbers of an epoch's samples: epoch 1 has 0 to n - 1, epoch 2 goes on from n.

    MONAI's engines tell it the epoch, so a resumed run goes on where it stood. Under torchrun each
    process gets its own share.

    Args:
        dataset: gives the number of samples per epoch.
    """

    def __init__(self, dataset: CropDataset) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        super().__init__(
            dataset,
            num_replicas=None if distributed else 1,
            rank=None if distributed else 0,
            shuffle=False,
        )
        self.epoch = 1
        self._begin = (1, 0)

    def begin_at(self, epoch: int, samples: int) -> None:
        """Leave out the first samples of an epoch, which a run that was stopped has taken.

        Args:
            epoch: from 1 on; all others are whole.
            samples: of this process.
        """
        self._begin = (epoch, samples)

    def __iter__(self) -> Any:
        base = (self.epoch - 1) * len(self.dataset)  # type: ignore[arg-type]  # torch types Dataset without a length
        epoch, samples = self._begin
        numbers = islice(super().__iter__(), samples if epoch == self.epoch else 0, None)
        return (base + index for index in numbers)
