"""Fit the principal components of features to a random sample of the training volumes' windows."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from funlib.geometry.roi import Roi
from torch import Tensor
from tqdm import tqdm

from custom.errors import InputError
from custom.features.backbone import Backbone
from custom.features.extraction import PlaneExtraction, RawBox
from custom.features.pca import PcaBasis, basis_of_covariance
from custom.features.spec import FeatureSpec
from custom.planes import NORMAL_AXIS

TOKENS = 50_000  # some 50 windows of 512 pixels, whose covariance is as good as that of all
TOKENS_PER_COMPONENT = 20
SEED = 0

Span = tuple[int, int]


@dataclass(frozen=True)
class _PlaneBoxes:
    """Boxes one slice thick that tile a plane of a volume's ROI, each inside one window."""

    box: RawBox
    plane: str
    spans: tuple[list[Span], list[Span], list[Span]]

    @property
    def count(self) -> int:
        return math.prod(len(spans) for spans in self.spans)

    def __getitem__(self, index: int) -> RawBox:
        places = np.unravel_index(index, [len(spans) for spans in self.spans])
        chosen = [spans[place] for spans, place in zip(self.spans, places, strict=True)]
        begin, end = zip(*chosen, strict=True)
        return replace(self.box, roi=Roi(begin, np.subtract(end, begin)))


class _Moments:
    """Running mean and covariance of features, float64."""

    def __init__(self, channels: int, device: torch.device) -> None:
        self.count = 0
        self._sum = torch.zeros(channels, dtype=torch.float64, device=device)
        self._products = torch.zeros(channels, channels, dtype=torch.float64, device=device)

    def add(self, features: Tensor) -> int:
        """Add features (C, ...); returns how many they are."""
        values = features.flatten(1).to(self._sum.device, torch.float64)
        self._sum += values.sum(1)
        self._products += values @ values.mT
        self.count += values.shape[1]
        return values.shape[1]

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        mean = self._sum / self.count
        return mean.cpu(), (self._products / self.count - mean[:, None] * mean).cpu()


def fit_basis(
    boxes: Mapping[str, RawBox],
    backbone: Backbone,
    spec: FeatureSpec,
    n: int,
    windows_at_once: int | None = None,
    show_progress: bool = True,
) -> PcaBasis:
    """The ``n`` principal components of a backbone's features of some volumes.

    Windows are drawn at random, without repetition, evenly over the slices of all planes and
    volumes, until there are ``TOKENS`` features, or 20 per component if that is more. The draw is
    seeded: the same volumes give the same basis.

    Args:
        boxes: volumes by the ids of their entries.
        backbone: not reduced.
        spec: of the backbone's features, not reduced.
        n: number of components.
        windows_at_once: batch size of the forward pass; ``None`` for the device's default.
        show_progress: draw a progress bar.

    Raises:
        InputError: the volumes have too few features, or features are not finite.
    """
    wanted = max(TOKENS, TOKENS_PER_COMPONENT * n)
    moments = _Moments(spec.channels, next(backbone.parameters()).device)
    with tqdm(total=wanted, unit="token", desc="pca", disable=not show_progress) as bar:
        for box, plane in _drawn(boxes, spec):
            if moments.count >= wanted:
                break
            extraction = PlaneExtraction(box, backbone, spec, plane, windows_at_once)
            for _, features in extraction.slabs():
                bar.update(moments.add(features))
        bar.total = bar.n  # small volumes have fewer, the last window more
        bar.refresh()
    if moments.count < TOKENS_PER_COMPONENT * n:
        most = moments.count // TOKENS_PER_COMPONENT
        raise InputError(
            f"features.pca {n} is fitted to at least {TOKENS_PER_COMPONENT * n} tokens, but the "
            f"training volumes have only {moments.count}: choose "
            f"{f'at most {most}' if most else 'null'}, or more volumes."
        )
    fitted_on = {"features": spec.to_json(), "entries": list(boxes), "tokens": moments.count}
    return basis_of_covariance(*moments.mean_and_covariance(), n, fitted_on)


def _drawn(boxes: Mapping[str, RawBox], spec: FeatureSpec) -> Iterator[tuple[RawBox, str]]:
    """Windows in random order, each as a box of raw and its plane."""
    sources = [_plane_boxes(box, spec, plane) for box in boxes.values() for plane in spec.planes]
    ends = np.cumsum([source.count for source in sources])
    total = int(ends[-1])
    order = np.random.default_rng(SEED).choice(total, min(total, TOKENS), replace=False)
    for index in order:
        which = int(np.searchsorted(ends, index, side="right"))
        source = sources[which]
        yield source[int(index) - int(ends[which]) + source.count], source.plane


def _plane_boxes(box: RawBox, spec: FeatureSpec, plane: str) -> _PlaneBoxes:
    spans: list[list[Span]] = []
    for axis in range(3):
        roi = int(box.roi.begin[axis]), int(box.roi.end[axis])
        if axis == NORMAL_AXIS[plane]:
            spans.append([(z, z + 1) for z in range(*roi)])
        else:
            scale, margin = spec.pixels_per_voxel[axis], spec.overlap + spec.patch_size
            stride = (spec.window - spec.overlap) / scale
            spans.append(_inside_windows(roi, spec.window / scale, stride, margin / scale))
    return _PlaneBoxes(box, plane, (spans[0], spans[1], spans[2]))


def _inside_windows(roi: Span, window: float, stride: float, margin: float) -> list[Span]:
    """Parts of a span of voxels that lie so deep in a window each that no other one is computed.

    All of the span, where there are none. Only the time that it takes depends on this.
    """
    begin, end = roi
    parts = []
    for k in range(max(0, int((begin - window) // stride)), int(end // stride) + 1):
        low = max(begin, math.ceil(k * stride + margin) if k else 0)
        high = min(end, math.floor(k * stride + window - margin))
        if low < high:
            parts.append((low, high))
    return parts or [roi]
