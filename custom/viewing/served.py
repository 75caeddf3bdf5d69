"""A pyramid as a volume that Neuroglancer's own server hands out, chunk by chunk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import neuroglancer
import numpy as np
from neuroglancer.chunks import encode_npz
from neuroglancer.local_volume import InvalidObjectIdForMesh, MeshesNotSupportedForVolume
from numpy.typing import NDArray

from custom.viewing.pyramid import FIRST, MEAN, Pyramid
from custom.viewing.stored_meshes import stored_mesh
from custom.voxel_grid import Triple

IMAGE, SEGMENTATION = "image", "segmentation"
MESH_VOXELS = 2**24  # of the level that meshes are made from: all of it is read
HALF = np.full(3, 0.5)  # voxels: meshes count from the centre of the first, the viewer from corners
SHOWN_TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32")


class ServedVolume(neuroglancer.LocalVolume):  # type: ignore[misc]  # ships no types
    """A pyramid for Neuroglancer: only what is looked at is read, at the resolution of the view.

    Neuroglancer's ``LocalVolume`` reads the finest level whatever is asked for, and gives up beyond
    64 of its voxels per voxel shown; this takes the level that fits.

    Args:
        pyramid: what is shown.
        kind: ``IMAGE`` or ``SEGMENTATION``.
        corner_nm: position of the corner of voxel (0, 0, 0), zyx.
        meshes: folder of meshes that are there already, as of ``stored_mesh``.
        reduction: as of ``Pyramid.read``; None for that of the kind.
    """

    def __init__(
        self,
        pyramid: Pyramid,
        kind: str,
        corner_nm: Sequence[float],
        meshes: Path | None = None,
        reduction: str | None = None,
    ) -> None:
        self.pyramid = pyramid
        self.reduction = reduction or (MEAN if kind == IMAGE else FIRST)
        self.meshes = meshes
        self._meshes: Any = None
        size = pyramid.metadata.voxel_size_nm
        channels = pyramid.channels
        names, scales, units = ["z", "y", "x"], list(size), ["nm"] * 3
        if channels is not None:
            names, scales, units = ["c^", *names], [1, *scales], ["", *units]
        super().__init__(
            _Placeholder(pyramid, kind),
            dimensions=neuroglancer.CoordinateSpace(names=names, scales=scales, units=units),
            volume_type=kind,
            max_downsampling=float("inf"),
        )
        place = np.divide(corner_nm, size)
        self.voxel_offset = np.array([0.0] * (self.rank - 3) + place.tolist())

    def get_encoded_subvolume(
        self, data_format: str, start: NDArray[np.int64], end: NDArray[np.int64], scale_key: str
    ) -> tuple[bytes, str]:
        """A chunk, as the viewer asks for it.

        Args:
            data_format: "npz".
            start: first voxel along every axis, in voxels of the scale.
            end: the one after the last.
            scale_key: voxels of the finest level per voxel, with commas.

        Raises:
            ValueError: a box that is not there, answered as a bad request.
        """
        if data_format != self.encoding:
            raise ValueError("Invalid data format requested.")
        factors = [int(part) for part in scale_key.split(",")]
        if not len(start) == len(end) == len(factors) == self.rank or min(factors) < 1:
            raise ValueError("Invalid request")
        shape = [-(-n // f) for n, f in zip(self.shape, factors, strict=True)]
        if (end < start).any() or (start < 0).any() or (end > shape).any():
            raise ValueError("Out of bounds data request.")
        values = self.pyramid.read(
            start[-3:].tolist(), end[-3:].tolist(), factors[-3:], self.reduction
        )
        if self.rank == 4:
            values = values[int(start[0]) : int(end[0])]
        values = values.astype(self.data_type, copy=False)
        return encode_npz(values), "application/octet-stream"

    def get_object_mesh(self, object_id: int) -> bytes:
        """Mesh of a segment: a stored one, else from the finest level of few enough voxels.

        Raises:
            MeshesNotSupportedForVolume: no level is small enough.
            InvalidObjectIdForMesh: there is no such segment.
        """
        if self.volume_type != SEGMENTATION:
            raise MeshesNotSupportedForVolume
        metadata = self.pyramid.metadata
        z, y, x = np.subtract(metadata.offset_nm, np.divide(metadata.voxel_size_nm, 2)).tolist()
        stored = stored_mesh(self.meshes, object_id, (z, y, x)) if self.meshes else None
        if stored is not None:
            return stored
        with self._mesh_generator_lock:
            if self._meshes is None:
                self._meshes = self._generator()
        found = self._meshes.get_mesh(object_id)
        if found is None:
            raise InvalidObjectIdForMesh
        mesh: bytes = found
        return mesh

    def _generator(self) -> Any:
        """Makes meshes of all segments."""
        from neuroglancer import _neuroglancer

        levels = [v for v in self.pyramid.levels if np.prod(v.shape) <= MESH_VOXELS]
        if not levels:
            raise MeshesNotSupportedForVolume
        level = levels[0]
        labels = self.pyramid.read((0, 0, 0), level.shape, level.factors, FIRST)
        scales = np.multiply(self.dimensions.scales, level.factors)
        labels = labels.astype(self.data_type)
        return _neuroglancer.OnDemandObjectMeshGenerator(labels.transpose(), scales, HALF)


class _Placeholder:
    """Shape and type of a pyramid, for ``LocalVolume``, which never reads from it."""

    def __init__(self, pyramid: Pyramid, kind: str) -> None:
        channels = () if pyramid.channels is None else (pyramid.channels,)
        self.shape = (*channels, *pyramid.metadata.shape)
        self.dtype = np.dtype(shown_type(pyramid.metadata.dtype, kind))


def shown_type(dtype: str, kind: str) -> str:
    """The type in which the viewer gets values: it knows no int64, float64 or bool."""
    if kind == SEGMENTATION:
        return dtype if dtype in ("uint8", "uint16", "uint32") else "uint64"
    if dtype == "bool":
        return "uint8"
    return dtype if dtype in SHOWN_TYPES else "float32"


def corner_in_view(centre_nm: Sequence[float], size_nm: Triple, reference_nm: Triple) -> Triple:
    """Corner of a volume whose first voxel's centre is here, for the viewer, which counts corners.

    Positions are moved by half a voxel of a reference volume, so that its voxel i, at ``i`` voxel
    sizes from 0, is where the viewer shows ``i``.
    """
    moved = np.add(centre_nm, np.divide(reference_nm, 2)) - np.divide(size_nm, 2)
    z, y, x = (float(v) for v in moved)
    return z, y, x
