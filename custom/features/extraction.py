"""Raw voxels to patch features: slices, windows, forward passes, plane by plane."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from funlib.geometry.roi import Roi
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from custom.errors import InputError
from custom.features.backbone import Backbone
from custom.features.batching import InBatches, windows_that_fit
from custom.features.intensity import IntensityWindow, to_unit_range
from custom.features.lattice import PlaneLattice, plane_lattice
from custom.features.reduced import unreduced
from custom.features.spec import FeatureSpec
from custom.features.triplane import PlaneGrid
from custom.features.upsampling import GuidedUpsampler
from custom.planes import NORMAL_AXIS
from custom.working_grid import RawAxes, filtered, same_axes

SLAB = 16  # slices; caches are chunked alike, so that a slab is whole chunks
SLAB_BYTES = (
    2**29
)  # of raw and features in memory at once; thick slabs become thinner to keep to it

ReadRaw = Callable[[Roi], NDArray[Any]]


@dataclass(frozen=True)
class RawBox:
    """A box of a raw volume, with what extraction has to know about the volume around it.

    Args:
        read: returns the raw voxels (D, H, W) of any box inside the volume.
        volume_shape: of the whole volume, zyx.
        roi: the box whose features are wanted, voxels of the volume.
        intensity_window: grey values that are mapped to 0 and 1.
        raw_axes: where raw is finer than the volume's grid; ``read`` then takes boxes of finer
            voxels.

    Raises:
        ValueError: the box is empty or not inside the volume, or the window is empty.
    """

    read: ReadRaw
    volume_shape: tuple[int, int, int]
    roi: Roi
    intensity_window: IntensityWindow
    raw_axes: RawAxes | None = None

    def __post_init__(self) -> None:
        total = Roi((0, 0, 0), self.volume_shape)
        if self.roi.empty or not total.contains(self.roi):
            raise ValueError(
                f"roi {self.roi} must lie inside the volume of shape {self.volume_shape}"
            )
        if not self.intensity_window[0] < self.intensity_window[1]:
            raise ValueError(f"intensity_window must be (low, high), got {self.intensity_window}")


class PlaneExtraction:
    """Features of one plane of a box, slab by slab along the plane's normal.

    Every slice is cut into windows of the volume's own lattice (``AxisLattice``); only windows that
    hold a wanted patch are computed. Raw beyond the box is read from the volume, so that the
    features of a box are those of the whole volume, cropped.

    Args:
        box: the raw.
        backbone: the one that ``spec`` was made with.
        spec: scale, window, steps, dtype.
        plane: "xy", "xz" or "yz".
        windows_at_once: batch size of the forward pass; ``None`` for as many as fit into
            memory. Halved when it runs out.
        lattice: a part of the plane's lattice over the box; None for all of it.

    Raises:
        ValueError: the backbone, or its upsampler, is not the spec's.
    """

    def __init__(
        self,
        box: RawBox,
        backbone: Backbone,
        spec: FeatureSpec,
        plane: str,
        windows_at_once: int | None = None,
        lattice: PlaneLattice | None = None,
    ) -> None:
        if not spec.made_with(backbone):
            raise ValueError(
                f"the spec was made with another backbone or basis than {backbone.name}"
            )
        self._upsampler = _upsampler_of(backbone, spec)
        self.box = box
        self.backbone = backbone
        self.spec = spec
        raw_axes = box.raw_axes or same_axes(box.volume_shape)
        whole = plane_lattice(spec, box.volume_shape, box.roi, plane, raw_axes)
        self.lattice = lattice or whole
        self._along_normal = raw_axes[NORMAL_AXIS[plane]]
        self.shape = (spec.channels, *self.lattice.shape)
        self.windows_per_slice = len(self.lattice.windows[0]) * len(self.lattice.windows[1])
        self._device = next(backbone.parameters()).device
        computed = unreduced(spec, backbone)  # a basis comes after the backbone's own channels
        self._at_once = windows_at_once or windows_that_fit(computed, self._device)
        self._forward = InBatches(backbone, self._at_once)
        self._rows, self._columns = (
            {k: self._on_device(axis.resampling(k)) for k in windows}
            for axis, windows in zip(self.lattice.axes, self.lattice.windows, strict=True)
        )
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (spec.image_mean, spec.image_std))
        self._mean, self._std = mean.to(self._device), std.to(self._device)

    def _on_device(self, resampling: tuple[range, Tensor]) -> tuple[range, Tensor]:
        """Voxels and weights of one window along one axis, the weights moved once and for all."""
        return resampling[0], resampling[1].to(self._device)

    @property
    def num_windows(self) -> int:
        """Forward passes of all slices together, counted as single windows."""
        return len(self.lattice.normal) * self.windows_per_slice

    def slabs(
        self, first: int = 0, on_windows: Callable[[int], object] | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """Features, slab by slab.

        Args:
            first: slices to leave out at the beginning.
            on_windows: called with the number of windows after every forward pass.

        Yields:
            index of the slab's first slice among those of the lattice, and (C, slices, h, w) in
            the spec's ``float_dtype``, on the CPU; h and w along the in-plane axes in zyx order.

        Raises:
            InputError: features are not finite.
        """
        thickness = self._thickness()
        for begin in range(first, self.shape[1], thickness):
            end = min(begin + thickness, self.shape[1])
            features = self._slab(begin, end, on_windows or (lambda windows: None))
            features = features.to(getattr(torch, self.spec.float_dtype))
            if not bool(torch.isfinite(features).all()):
                slices = self.lattice.normal[begin:end]
                raise InputError(
                    f"features of plane {self.lattice.plane}, slices {slices[0]} to {slices[-1]} "
                    f"of the volume, are not finite in {self.spec.float_dtype}: raw holds NaN, or "
                    "features.final_norm should be true, or features.dtype float32."
                )
            yield begin, features.cpu()

    def _thickness(self) -> int:
        """Slices per slab: SLAB, more to fill one forward pass, less (16, 8, 4 ...) for memory."""
        rows, columns = (self._span(tables) for tables in (self._rows, self._columns))
        raw = self._along_normal
        slices = self.lattice.normal.step * raw.ratio  # those between are read, too
        voxels, around = len(rows) * len(columns) * slices, 0.0
        if not raw.is_raw:  # finer ones are there beside what they become, and a margin is read
            voxels, around = voxels + len(rows) * len(columns), 2 * voxels
        per_slice = 4 * (voxels + self.shape[0] * self.shape[2] * self.shape[3])
        thickness = SLAB * -(-self._at_once // SLAB)
        while thickness > 1 and thickness * per_slice + 4 * around > SLAB_BYTES:
            thickness = thickness // 2 if thickness <= SLAB else SLAB
        return thickness

    @staticmethod
    def _span(tables: dict[int, tuple[range, Tensor]]) -> range:
        """Voxels that any of the windows along one axis needs."""
        return range(
            min(voxels.start for voxels, _ in tables.values()),
            max(voxels.stop for voxels, _ in tables.values()),
        )

    def _slab(self, begin: int, end: int, on_windows: Callable[[int], object]) -> Tensor:
        """Blended features (C, end - begin, h, w) float32, on the backbone's device."""
        values, rows, columns = self._read(begin, end)
        raw = torch.from_numpy(np.ascontiguousarray(values)).to(self._device)
        shape = (self.shape[0], end - begin, *self.shape[2:])
        features = torch.zeros(shape, device=self._device)
        for row, column in ((a, b) for a in self._rows for b in self._columns):
            across, down = self._columns[column], self._rows[row]
            part = raw[:, _shifted(down[0], rows.start), _shifted(across[0], columns.start)]
            into, taken, share = self._placement(row, column)
            for at in range(0, end - begin, self._at_once):
                images = self._images(part[at : at + self._at_once], down[1], across[1])
                for first, given in self._features(images):
                    tokens = (given * share)[:, :, taken[0], taken[1]]
                    slices = slice(at + first, at + first + len(given))
                    features[:, slices, into[0], into[1]] += tokens.transpose(0, 1)
                on_windows(len(images))
        return features

    def _features(self, images: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Index of the first image, and (B, C, h, w); upsampled ones a few images at a time."""
        tokens = self._forward(images)
        if self._upsampler is None:
            yield 0, tokens
        else:
            down, across = (axis.finer for axis in self.lattice.axes)
            yield from self._upsampler.pieces(images, tokens, (down, across))

    def _read(self, begin: int, end: int) -> tuple[NDArray[np.float32], range, range]:
        """Slab of raw in [0, 1], its normal first, and the voxels that it spans in its plane."""
        spans = [self._span(self._rows), self._span(self._columns)]
        slices, weights = self._along_normal.taps(self.lattice.normal[begin:end])
        first, last = int(slices.min()), int(slices.max())
        normal = NORMAL_AXIS[self.lattice.plane]
        extents = [*spans]
        extents.insert(normal, range(first, last + 1))
        roi = Roi([e.start for e in extents], [len(e) for e in extents])
        raw = np.moveaxis(self.box.read(roi), normal, 0)
        window = self.box.intensity_window
        if self._along_normal.is_raw:
            return to_unit_range(raw[:: self.lattice.normal.step], window), spans[0], spans[1]
        unit = to_unit_range(raw, window)
        return filtered(unit, 0, slices - first, weights), spans[0], spans[1]

    def _placement(
        self, row: int, column: int
    ) -> tuple[tuple[slice, slice], tuple[slice, slice], Tensor]:
        """Where a window's tokens go in the grid, which of them are wanted, and their share."""
        into, taken, shares = [], [], []
        for k, axis, wanted in zip(
            (row, column), self.lattice.axes, self.lattice.patches, strict=True
        ):
            held = axis.patches_of(k)
            common = [i for i, patch in enumerate(held) if patch in wanted]
            taken.append(slice(common[0], common[-1] + 1))
            into.append(_shifted(held[taken[-1]], wanted.start))
            shares.append(axis.blending(k))
        share = (shares[0][:, None] * shares[1]).to(self._device)
        return (into[0], into[1]), (taken[0], taken[1]), share

    def _images(self, raw: Tensor, down: Tensor, across: Tensor) -> Tensor:
        """Normalised images (B, 3, window, window) of one window in some slices."""
        pixels = down @ raw @ across.mT
        return (pixels[:, None] - self._mean) / self._std


def extract_planes(
    read: ReadRaw,
    volume_shape: Sequence[int],
    roi: Roi,
    backbone: Backbone,
    spec: FeatureSpec,
    intensity_window: IntensityWindow,
    windows_at_once: int | None = None,
    progress: bool = False,
    raw_axes: RawAxes | None = None,
) -> dict[str, PlaneGrid]:
    """Plane grids of a box of a volume, in memory.

    Args:
        read: returns the raw voxels (D, H, W) of any box inside the volume.
        volume_shape: of the whole volume, zyx.
        roi: the box whose features are wanted, voxels of the volume.
        backbone: the one that ``spec`` was made with.
        spec: see ``make_spec``.
        intensity_window: grey values that are mapped to 0 and 1.
        windows_at_once: batch size of the forward pass; ``None`` for as many as fit into
            memory. Halved when it runs out.
        progress: show a progress bar.
        raw_axes: where raw is finer than the volume's grid, see ``RawBox``.

    Returns:
        Per plane of ``spec``, in its ``float_dtype``, on the CPU; (C, d, h, w) in zyx order.

    Raises:
        ValueError: the box is not inside the volume, or the backbone is not the spec's.
        InputError: features are not finite.
    """
    depth, height, width = volume_shape
    box = RawBox(read, (depth, height, width), roi, intensity_window, raw_axes)
    planes = {
        plane: PlaneExtraction(box, backbone, spec, plane, windows_at_once) for plane in spec.planes
    }
    total = sum(extraction.num_windows for extraction in planes.values())
    with tqdm(total=total, unit="window", desc="features", disable=not progress) as bar:
        return {plane: _plane_grid(extraction, bar.update) for plane, extraction in planes.items()}


def _upsampler_of(backbone: Backbone, spec: FeatureSpec) -> GuidedUpsampler | None:
    """The backbone's upsampler, if the spec has one; it must be the same."""
    if spec.upsampler is None:
        return None
    upsampler = backbone.upsampler
    if not isinstance(upsampler, GuidedUpsampler) or upsampler.digest != spec.upsampler_digest:
        raise ValueError(f"the spec was made with another upsampler than {backbone.name} has")
    return upsampler


def _plane_grid(extraction: PlaneExtraction, on_windows: Callable[[int], object]) -> PlaneGrid:
    """All slabs of one plane, normal axis moved to its place in zyx."""
    lattice = extraction.lattice
    values = torch.empty(extraction.shape, dtype=getattr(torch, extraction.spec.float_dtype))
    for begin, slab in extraction.slabs(on_windows=on_windows):
        values[:, begin : begin + slab.shape[1]] = slab
    values = values.movedim(1, 1 + NORMAL_AXIS[lattice.plane])
    return PlaneGrid(values, lattice.start, lattice.step)


def _shifted(indices: range, origin: int) -> slice:
    return slice(indices.start - origin, indices.stop - origin, indices.step)
