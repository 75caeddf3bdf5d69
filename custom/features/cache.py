"""The feature cache as readers see it: crops of a volume's features, raw and labels."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
import torch
from funlib.geometry.roi import Roi
from numpy.typing import NDArray
from torch import Tensor

from custom.errors import InputError
from custom.features.cache_basis import basis_of
from custom.features.cache_files import (
    DENSE_ARRAY,
    FORMAT,
    Selection,
    copy_of,
    entry_name,
    entry_of,
    open_array,
    read_array,
    read_json,
    refuse_older,
    token_array,
    volumes_in,
)
from custom.features.pca import PcaBasis
from custom.features.quantisation import restore
from custom.features.settings import DEFAULTS
from custom.features.spec import FeatureSpec
from custom.features.stored_grids import read_entries, read_grid
from custom.features.triplane import PlaneGrid
from custom.planes import NORMAL_AXIS
from custom.voxel_grid import Triple

RUN_PREPROCESSING = "run preprocessing"

RAW_KEPT = "as it is"
RAW_RESCALED = "intensity_window to 0-255, clipped"


class CachedVolume:
    """A finished volume of a cache.

    It may be pickled and read from several threads; arrays are opened in the process that first
    reads them. Boxes are in voxels of the cached ROI, whose corner is (0, 0, 0).

    Args:
        path: the volume's folder, ``<cache_dir>/volume_000000.zarr``.

    Raises:
        InputError: there is no such volume, its preprocessing has not finished, or an earlier
            version wrote it. When it is read: a file is missing or damaged; the message names
            volume, array and file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        name = self.path.name.removesuffix(".zarr")
        metadata = read_json(self.path.with_name(f"{name}_metadata.json"))
        refuse_older(metadata.get("format"), self.path.parent)
        if metadata.get("format") != FORMAT or not self.path.is_dir():
            raise InputError(
                f"cached volume '{self.path}' is not there or not finished: {RUN_PREPROCESSING}"
            )
        self.metadata: Mapping[str, Any] = metadata
        self.spec = FeatureSpec.from_json(metadata["features"])
        self._arrays: dict[str, tensorstore.TensorStore] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}}

    @property
    def id(self) -> str:
        """Id of the datalist's entry."""
        return str(self.metadata["entry"]["id"])

    @property
    def copy(self) -> int:
        """Number of the copy with changed raw, from 1 on; 0 for the volume as it is."""
        return copy_of(self.metadata["entry"])

    @property
    def section(self) -> str:
        """Section of the datalist: "training", "validation" or "test"."""
        return str(self.metadata["entry"]["section"])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W) of the cached ROI."""
        depth, height, width = self.metadata["roi"]["shape"]
        return depth, height, width

    @property
    def voxel_size_nm(self) -> Triple:
        """Voxel size, zyx."""
        z, y, x = self.metadata["voxel_size_nm"]
        return z, y, x

    @property
    def offset_nm(self) -> Triple:
        """Position of the centre of the ROI's first voxel, zyx."""
        z, y, x = self.metadata["offset_nm"]
        return z, y, x

    @property
    def raw_window(self) -> tuple[float, float]:
        """Values of the cached raw that the intensity window maps to 0 and 1."""
        low, high = self.metadata["intensity_window"]
        return (low, high) if self.metadata["raw_rule"] == RAW_KEPT else (0.0, 255.0)

    @property
    def has_labels(self) -> bool:
        """Whether there are labels and their mask."""
        return "gt" in self.metadata["arrays"]

    @property
    def basis(self) -> PcaBasis | None:
        """The basis that its features are coordinates in; None where they are not reduced.

        Raises:
            InputError: the cache has lost it, or has another one.
        """
        return None if self.spec.pca is None else basis_of(self.spec, self.path.parent)

    def placement(self, plane: str) -> tuple[Triple, Triple]:
        """Start and step of a plane's whole grid, voxels, zyx."""
        placed = self.metadata["planes"][plane]
        return tuple(placed["start"]), tuple(placed["step"])

    def plane_grid(self, plane: str, roi: Roi | None = None) -> PlaneGrid:
        """A plane's features for a box, or for the whole volume.

        As ``triplane.crop``: the number of entries depends on the box's shape alone.
        """
        name, placement = token_array(plane), self.placement(plane)
        if roi is None:
            values = self._tokens(name).movedim(1, 1 + NORMAL_AXIS[plane])
            return PlaneGrid(values, *placement)
        shape = self.metadata["arrays"][name]["shape"]
        return read_grid(partial(self._tokens, name), shape, plane, placement, roi)

    def read_entries(self, plane: str, entries: Roi) -> Tensor:
        """A box (C, d, h, w) of a plane's entries; beyond the grid its border repeats."""
        name = token_array(plane)
        shape = self.metadata["arrays"][name]["shape"]
        return read_entries(partial(self._tokens, name), shape, plane, entries)

    def read_features(self, roi: Roi | None = None) -> Tensor:
        """Features of a box of a volume in the dense layout, or of the whole volume.

        Args:
            roi: inside the volume.

        Returns:
            (C, D, H, W) in the spec's ``float_dtype``.

        Raises:
            ValueError: the box is not inside the volume.
        """
        whole = Roi((0, 0, 0), self.shape)
        if not whole.contains(roi or whole):
            raise ValueError(f"{roi} is not inside {self.path} of shape {list(self.shape)}")
        return self._tokens(DENSE_ARRAY, (slice(None), *(roi or whole).to_slices()))

    def read_raw(self, roi: Roi) -> NDArray[np.uint8]:
        """Raw of a box as uint8 (D, H, W), 0 outside the cached ROI."""
        return self._read_voxels("raw", roi)

    def read_labels(self, roi: Roi) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
        """Labels and mask of a box.

        Returns:
            labels: (D, H, W) uint32, consecutive ids (``label_ids`` has the source's); 0 outside.
            mask: (D, H, W), True where labels count; False outside.

        Raises:
            ValueError: the volume was cached without labels.
        """
        if not self.has_labels:
            raise ValueError(f"{self.path} has no labels")
        return self._read_voxels("gt", roi), self._read_voxels("mask", roi)

    def read_targets(self, roi: Roi) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        """Cached targets of a box inside the volume, made with ``metadata["targets"]``.

        Returns:
            target: (C, D, H, W) uint8, affinities then LSDs; 255 stands for 1.
            weights: (D, H, W) float16.
        """
        box = roi.to_slices()
        return self._values("target", (slice(None), *box)), self._values("boundary_weights", box)

    def label_ids(self) -> NDArray[np.uint64]:
        """The source's id of every cached label: ``label_ids()[labels]``."""
        return self._values("gt_ids")

    def _read_voxels(self, name: str, roi: Roi) -> NDArray[Any]:
        """Selection of a voxel array, padded with 0."""
        part = roi.intersect(Roi((0, 0, 0), self.shape))
        values = np.zeros(tuple(roi.shape), dtype=self._array(name).dtype.numpy_dtype)
        if not part.empty:
            values[(part - roi.offset).to_slices()] = self._values(name, part.to_slices())
        return values

    def _tokens(self, name: str, box: Selection = ()) -> Tensor:
        values = torch.from_numpy(self._values(name, box))
        scales = self.metadata["arrays"][name].get("scales")
        return values if scales is None else restore(values, torch.tensor(scales))

    def _values(self, name: str, box: Selection = ()) -> NDArray[Any]:
        return read_array(self._array(name), self.path / name, box)

    def _array(self, name: str) -> tensorstore.TensorStore:
        if name not in self._arrays:  # two threads may both open it; either handle will do
            self._arrays[name] = open_array(self.path / name)
        return self._arrays[name]


def open_cache(
    cache_dir: str | Path,
    section: str | None = None,
    ids: Sequence[str] | None = None,
    spec: FeatureSpec | None = None,
    copies: bool = False,
) -> list[CachedVolume]:
    """Finished volumes of a cache, in the datalist's order.

    Args:
        cache_dir: folder of the cache.
        section: only those of "training", "validation" or "test".
        ids: only these entries.
        spec: the features that are wanted.
        copies: of training volumes with changed raw, too.

    Raises:
        InputError: no such cache; one of the wanted volumes is missing or unfinished; no volume is
            left; the features are not the wanted ones, or not the same in all volumes; their basis
            is not there.
    """
    cache_dir = Path(cache_dir).absolute()
    where = f"cache_dir '{cache_dir}'"
    entries = {files: entry_of(files) for files in volumes_in(cache_dir)}
    wanted = {
        files: entry
        for files, entry in entries.items()
        if section in (None, entry["section"])
        and (ids is None or entry["id"] in ids)
        and (copies or not copy_of(entry))
    }
    missing = sorted(set(ids or ()) - {entry["id"] for entry in wanted.values()})
    unfinished = [entry_name(entry) for files, entry in wanted.items() if not files.finished]
    what = f" {section}" if section else ""
    if missing:
        raise InputError(f"{where} has no{what} volume '{missing[0]}': {RUN_PREPROCESSING}")
    if unfinished:
        raise InputError(f"{where}: volume '{unfinished[0]}' is unfinished: {RUN_PREPROCESSING}")
    if not wanted:
        raise InputError(
            f"{where} has no{what} volumes: {RUN_PREPROCESSING}, or check the datalist"
        )
    volumes = [CachedVolume(files.arrays) for files in wanted]
    for volume in volumes:
        refuse_difference(volume.spec, spec or volumes[0].spec, volume.path)
    if volumes[0].spec.pca is not None:
        basis_of(volumes[0].spec, cache_dir)
    return volumes


def ids_in(cache_dir: str | Path, section: str) -> list[str]:
    """Ids of a section's volumes, finished or not, in the datalist's order; copies share theirs."""
    entries = map(entry_of, volumes_in(Path(cache_dir).absolute()))
    return [e["id"] for e in entries if e.get("section") == section and not copy_of(e)]


def refuse_difference(cached: FeatureSpec, wanted: FeatureSpec, path: Path) -> None:
    """Refuse a cache whose features are not the wanted ones.

    Raises:
        InputError: lists what differs.
    """
    difference = cached.difference(wanted)
    if difference:
        names = " and ".join(dict.fromkeys(_config_key(item.split()[0]) for item in difference))
        raise InputError(
            f"feature cache '{path}' differs from the request in: {', '.join(difference)}. Extract "
            f"again into another cache_dir or change {names}."
        )


def _config_key(field: str) -> str:
    """The config's key that a field of a FeatureSpec follows from."""
    field = field.removesuffix("_digest")
    return f"features.{field}" if field in DEFAULTS else "backbone"
