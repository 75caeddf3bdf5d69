"""A volume seen deformed: raw, labels, mask and features are in register by construction."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from funlib.geometry import Coordinate, Roi
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from torch import Tensor

from custom.deformation import Deformation, RandDeformation
from custom.errors import InputError
from custom.features.intensity import IntensityWindow
from custom.features.pca import PcaBasis
from custom.features.spec import FeatureSpec
from custom.features.triplane import PlaneGrid
from custom.live import FeatureVolume, LiveVolume
from custom.voxel_grid import Triple
from custom.working_grid import RawAxes

VOXELS_AT_ONCE = 2**21  # whose places, 24 bytes each, are in memory together
FINENESS = 2**16  # places are multiples of this part of a voxel, so that they subtract exactly


class WarpedVolume:
    """A feature volume under a deformation; as long as it is read box by box, whatever its size.

    Raw is interpolated linearly; where it comes from outside the ROI, the ROI is mirrored. Labels
    and mask are those of the nearest voxel, untouched by arithmetic. Features are extracted from
    the deformed raw, in the windows of the volume's own lattice; beyond the border of raw it is
    mirrored, as in these. A voxel has the same values in whatever box it is read.

    Args:
        source: the volume; for features one that extracts them from raw.
        deformation: in voxels of the source's ROI.
    """

    def __init__(self, source: FeatureVolume, deformation: Deformation) -> None:
        self.source = source
        self.deformation = deformation
        self.metadata: Mapping[str, Any] = source.metadata
        self._live = source.reading(self._read_file) if isinstance(source, LiveVolume) else None

    @property
    def spec(self) -> FeatureSpec:
        """How its features are made."""
        return self.source.spec

    @property
    def basis(self) -> PcaBasis | None:
        """The basis that its features are coordinates in; None where they are not reduced."""
        return self.source.basis

    @property
    def id(self) -> str:
        """Id of the datalist's entry."""
        return self.source.id

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W) of the ROI."""
        return self.source.shape

    @property
    def voxel_size_nm(self) -> Triple:
        """Voxel size, zyx."""
        return self.source.voxel_size_nm

    @property
    def offset_nm(self) -> Triple:
        """Position of the centre of the ROI's first voxel, zyx."""
        return self.source.offset_nm

    @property
    def raw_window(self) -> IntensityWindow:
        """Values that ``read_raw`` gives for the ends of the intensity window."""
        return self.source.raw_window

    @property
    def has_labels(self) -> bool:
        """Whether there are labels and their mask."""
        return self.source.has_labels

    def label_ids(self) -> NDArray[np.uint64]:
        """The source's id of every label."""
        return self.source.label_ids()

    def plane_grid(self, plane: str, roi: Roi | None = None) -> PlaneGrid:
        """A plane's features of the deformed raw for a box, or for the whole ROI.

        Raises:
            ValueError: the source's features are extracted already.
        """
        return self._extracting().plane_grid(plane, roi)

    def read_features(self, roi: Roi | None = None) -> Tensor:
        """Features (C, D, H, W) of the deformed raw in the dense layout; raises as above."""
        return self._extracting().read_features(roi)

    def _extracting(self) -> LiveVolume:
        if self._live is None:
            raise ValueError(f"features of volume '{self.id}' are extracted already")
        return self._live

    def read_raw(self, roi: Roi) -> NDArray[np.uint8]:
        """Deformed raw of a box (D, H, W), 0 outside the ROI."""
        values = np.zeros(tuple(roi.shape), np.uint8)
        for part in _slabs(roi.intersect(Roi((0, 0, 0), self.shape))):
            places = [
                _mirrored(along, size)
                for along, size in zip(self._sources(part), self.shape, strict=True)
            ]
            found = _interpolated(self.source.read_raw, places)
            values[(part - roi.offset).to_slices()] = np.rint(found)
        return values

    def read_labels(self, roi: Roi) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Deformed labels of a box, in their own type, and where they count.

        0 and False where they come from outside the ROI.
        """
        parts = [self._nearest(part) for part in _slabs(roi)]
        labels, mask = (np.concatenate(found) for found in zip(*parts, strict=True))
        return labels, mask

    def _nearest(self, roi: Roi) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        voxels = np.rint(self._sources(roi)).astype(np.intp)
        box = _bounds(voxels)
        labels, mask = self.source.read_labels(box)
        inside = tuple(v - b for v, b in zip(voxels, box.begin, strict=True))
        return labels[inside], mask[inside]

    def _sources(self, roi: Roi) -> NDArray[np.float64]:
        """Where the voxels of a box come from, (3, D, H, W) in voxels of the ROI."""
        voxels = _voxels(roi)
        return _moved(voxels, self.deformation.shifts(voxels))

    def _read_file(self, roi: Roi) -> NDArray[np.floating[Any]]:
        """Deformed raw of a box, in voxels of the file, which may be finer than the ROI's."""
        assert isinstance(self.source, LiveVolume)
        opened = self.source.opened
        axes, read = opened.raw_axes, opened.source.read
        parts = []
        for part in _slabs(roi):
            voxels = _voxels(part)
            places = [
                _mirrored(along, axis.size)
                for along, axis in zip(
                    self._fine_sources(voxels, axes, opened.roi.offset), axes, strict=True
                )
            ]
            parts.append(_interpolated(read, places))
        return np.concatenate(parts)

    def _fine_sources(
        self, voxels: list[NDArray[np.float64]], axes: RawAxes, corner: Coordinate
    ) -> NDArray[np.float64]:
        """Where voxels of the file come from, in voxels of the file."""
        coarse = [
            (along - axis.origin) / axis.ratio - c
            for along, axis, c in zip(voxels, axes, corner, strict=True)
        ]
        ratios = np.array([axis.ratio for axis in axes])[:, None, None, None]
        return _moved(voxels, self.deformation.shifts(coarse) * ratios)


def deformed(volume: FeatureVolume, roi: Roi, deform: RandDeformation) -> WarpedVolume:
    """A volume under a deformation that is drawn for a crop."""
    return WarpedVolume(volume, deform.draw(roi, volume.voxel_size_nm))


def refuse_undeformable(
    volumes: Sequence[FeatureVolume],
    deform: RandDeformation,
    use_tokens: bool,
    cached_targets: bool,
) -> None:
    """Deformed samples need features and targets that are made of what was deformed.

    Raises:
        InputError: features or targets come from a cache, or a single section would be bent out of
            its plane.
    """
    if cached_targets:
        raise InputError(
            "deformation needs targets of the deformed labels, and those of a cache are computed "
            "already: set cached_targets to false, or deformation to null."
        )
    if use_tokens and not all(isinstance(volume, LiveVolume) for volume in volumes):
        raise InputError(
            "deformation needs features of the deformed raw, and those of a cache are extracted "
            "already: set source to 'raw', or token_channels to 0 for a network on raw alone, or "
            "deformation to null."
        )
    sections = [volume.id for volume in volumes if volume.shape[0] == 1]
    if sections and deform.elastic_nm and not deform.in_plane:
        raise InputError(
            f"volume '{sections[0]}' is a single section, which deformation would bend out of its "
            "plane: set deformation.in_plane to true."
        )


def _slabs(roi: Roi) -> Iterator[Roi]:
    """A box in pieces along z that are small enough for their places to be in memory."""
    if roi.empty:
        return
    thickness = max(1, VOXELS_AT_ONCE // int(roi.shape[1] * roi.shape[2]))
    for first in range(0, int(roi.shape[0]), thickness):
        depth = min(thickness, int(roi.shape[0]) - first)
        yield Roi(roi.offset + Coordinate(first, 0, 0), (depth, *roi.shape[1:]))


def _voxels(roi: Roi) -> list[NDArray[np.float64]]:
    """Centres of a box's voxels along each axis."""
    return [np.arange(b, e, dtype=np.float64) for b, e in zip(roi.begin, roi.end, strict=True)]


def _moved(
    voxels: Sequence[NDArray[np.float64]], shifts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Places of a grid's voxels after their shifts, as exact as they will be subtracted."""
    z, y, x = voxels
    places = shifts * FINENESS
    for along, axis in zip((z[:, None, None], y[:, None], x), places, strict=True):
        axis += along * FINENESS
    np.rint(places, out=places)
    places /= FINENESS
    return places


def _mirrored(places: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """The place that stands in for one outside ``size`` voxels; the outermost are the mirrors."""
    if size == 1:
        return np.zeros_like(places)
    period = 2 * (size - 1)
    folded = places % period
    return np.minimum(folded, period - folded)


def _bounds(places: NDArray[Any] | list[NDArray[np.float64]]) -> Roi:
    """The voxels around all places."""
    low = [math.floor(along.min()) for along in places]
    return Roi(low, [math.ceil(along.max()) + 1 - b for along, b in zip(places, low, strict=True)])


def _interpolated(
    read: Callable[[Roi], NDArray[Any]], places: list[NDArray[np.float64]]
) -> NDArray[np.floating[Any]]:
    """Linear interpolation at places inside a volume, of which only the box around them is read."""
    box = _bounds(places)
    values = read(box)
    values = values.astype(np.result_type(values.dtype, np.float32), copy=False)
    local = [along - b for along, b in zip(places, box.begin, strict=True)]
    found: NDArray[np.floating[Any]] = map_coordinates(values, local, values.dtype, 1, "nearest")
    return found
