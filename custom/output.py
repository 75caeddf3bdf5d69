"""From predictions to an OME-Zarr with what was predicted and the segments, or classes, of it."""

import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from torch import nn

from custom.channels import ChannelLayout
from custom.errors import InputError
from custom.label_classes import class_names
from custom.model_files import (
    PREDICTS,
    load_weights,
    read_description,
    refuse_other_features,
)
from custom.model_folder import weights_mark
from custom.network_settings import network_difference, network_settings
from custom.outputs.images import SEGMENTATION, begin, create, finish, is_result
from custom.outputs.levels import write_levels
from custom.outputs.objects import object_sums, object_table, remove_tables, write_table
from custom.outputs.settings import OutputSettings
from custom.running import running_config
from custom.scores import as_uint8, predicted_classes
from custom.segmentation.method import SegmentationMethod
from custom.segmentation_settings import chosen_method
from custom.volume_datasets import CachedVolumeDataset, RawVolumeDataset, dataset_spec
from custom.volumes import open_array
from custom.voxel_grid import Triple

logger = logging.getLogger(__name__)

SAME_SCALE = 0.05  # relative: voxel sizes that a model need not be told apart


class ModelLoader:
    """Load ``model.pt`` into the network when inference starts, if it was trained for these inputs.

    Args:
        model_dir: folder with ``model.pt`` and ``model.json``.
        network: gets the weights.
        dataset: its features must be those of the training.
        affinity_offsets: must be those of the training.
        layout: of the network's channels; as in the training.
        dimensions: as in the training.

    Raises:
        InputError: when inference starts: no model; one that was made with other features or
            offsets, to predict something else, or for another network.
    """

    def __init__(
        self,
        model_dir: str,
        network: nn.Module,
        dataset: RawVolumeDataset | CachedVolumeDataset,
        affinity_offsets: Sequence[Sequence[int]],
        layout: ChannelLayout,
        dimensions: int = 3,
    ) -> None:
        self.model_dir = Path(model_dir)
        self.network = network
        self.dataset = dataset
        self.affinity_offsets = affinity_offsets
        self.layout = layout
        self.dimensions = dimensions

    def attach(self, engine: Engine) -> None:
        """Run when inference starts."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Check and load; the engine's state gets the description."""
        state: Any = engine.state
        state.model_description = self.load()

    def load(self) -> dict[str, Any]:
        """Check and load; returns the model's description."""
        description = read_description(self.model_dir)
        self._check(description)
        load_weights(self.model_dir, self.network)
        return description

    def _check(self, description: Mapping[str, Any]) -> None:
        wanted = dataset_spec(self.dataset)
        if wanted:
            refuse_other_features(self.model_dir, description, wanted)
        check_prediction(description, self.layout, self.dimensions, self.model_dir)
        if self.layout.num_affinities:
            refuse_other_offsets(description, self.affinity_offsets, self.model_dir)
        refuse_other_network(description, running_config(), self.model_dir)
        for name, size in _voxel_sizes(self.dataset).items():
            others = description.get("other_voxel_sizes_nm", [])
            warn_of_scale(name, size, description["voxel_size_nm"], *others)


@dataclass(frozen=True)
class Result:
    """One array of a result.

    Args:
        name: of the array, its path inside the OME-Zarr.
        values: (D, H, W), or (C, D, H, W).
        attributes: beside those of OME-Zarr.
    """

    name: str
    values: NDArray[Any]
    attributes: Mapping[str, Any]


class SegmentationWriter:
    """Segment every predicted volume and write ``<output_dir>/<id>.zarr``.

    The OME-Zarr holds ``affinities`` (K, D, H, W) uint8, ``labels/segmentation`` (D, H, W) uint64
    and on request ``lsds`` (L, D, H, W) uint8; or, of classes, ``probabilities`` (N, D, H, W) uint8
    and the ids of the most probable ones as ``labels/segmentation``; the attribute ``classes`` has
    their ``names`` in the order of their ids. It appears whole or not at all; the result of an
    earlier inference at its place is replaced.

    Attach to the evaluator, after ``ModelLoader``, which it gets the segmentation settings that
    validation found best, and the classes' names, from.

    Args:
        output_dir: folder of the results.
        dataset: what will be segmented, for a look at the places of the results before any work.
        segmenter: from affinities to segments.
        layout: of the predicted channels.
        settings: of the segmenter, win over those that were stored with the model.
        write_lsds: also write the predicted LSDs.
        dimensions: written beside the segments: 2 where every section has its own.
        output_format: how it is written, and what beside it.

    Raises:
        InputError: ``settings`` or ``write_lsds`` are for what is not predicted; when inference
            starts: something else is at the place of a result.
    """

    def __init__(
        self,
        output_dir: str,
        dataset: RawVolumeDataset | CachedVolumeDataset,
        segmenter: SegmentationMethod,
        layout: ChannelLayout,
        settings: Mapping[str, Any] | None = None,
        write_lsds: bool = False,
        dimensions: int = 3,
        output_format: OutputSettings | None = None,
    ) -> None:
        idle = {
            "write_lsds": write_lsds and not layout.num_lsds,
            "segmentation_settings": bool(settings) and layout.num_classes > 0,
        }
        for name in (name for name, given in idle.items() if given):
            raise InputError(
                f"{name} has no meaning for output_type {layout.output_type!r}; leave it out."
            )
        self.output_dir = Path(output_dir)
        self.dataset = dataset
        self.segmenter = segmenter
        self.layout = layout
        self.settings = dict(settings or {})
        self.write_lsds = write_lsds
        self.dimensions = dimensions
        self.output_format = output_format or OutputSettings()

    def attach(self, engine: Engine) -> None:
        """Check at the start, write after every volume."""
        engine.add_event_handler(Events.STARTED, self._check_places)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def _check_places(self, engine: Engine) -> None:
        refuse_places(self.output_dir, dataset_ids(self.dataset))

    def __call__(self, engine: Engine) -> None:
        """Segment and write one volume."""
        state: Any = engine.state
        description: Mapping[str, Any] = getattr(state, "model_description", {})
        for item, batch in zip(state.output, state.batch, strict=True):
            if self.layout.num_classes:
                results = self._classes(item["pred"], description)
            else:
                results = self._segments(item["pred"], description)
            self._write(results, batch)

    def _segments(
        self, prediction: torch.Tensor, description: Mapping[str, Any]
    ) -> Iterator[Result]:
        """Affinities, LSDs and segments."""
        segmenter = self.chosen_method(description)
        values = as_uint8(prediction)
        offsets = {"offsets": [list(offset) for offset in segmenter.offsets]}
        made_by = weights_mark(description)
        yield Result("affinities", values[self.layout.affinities], {**offsets, **made_by})
        if self.write_lsds:
            yield Result("lsds", values[self.layout.lsds], {})
        made = {"segmentation": segmenter.describe(), "dimensions": self.dimensions}
        yield Result(SEGMENTATION, segmenter(values), made)

    def chosen_method(self, description: Mapping[str, Any]) -> SegmentationMethod:
        """The segmenter with the settings that are stored with a model, and those that win."""
        return chosen_method(description, self.segmenter, self.settings)

    def named_classes(self, description: Mapping[str, Any]) -> dict[str, Any]:
        """The attribute of what is predicted of classes."""
        unnamed = {"names": class_names(None, self.layout.num_classes)}
        return {"classes": description.get("predicted_classes") or unnamed}

    def _classes(
        self, prediction: torch.Tensor, description: Mapping[str, Any]
    ) -> Iterator[Result]:
        """Probabilities and class ids."""
        classes = self.named_classes(description)
        made_by = weights_mark(description)
        yield Result("probabilities", as_uint8(prediction), {**classes, **made_by})
        yield Result(SEGMENTATION, predicted_classes(prediction), classes)

    def _write(self, results: Iterable[Result], item: Mapping[str, Any]) -> None:
        size, offset = (item[key].tolist() for key in ("voxel_size_nm", "offset_nm"))
        path, how = self.output_dir / f"{item['id']}.zarr", self.output_format
        with _folder_in_place(path) as part:
            begin(part, how.version)
            for result in results:
                _write_image(part, result, size, offset, how)
            finish(part)
            remove_tables(path)
            shutil.rmtree(state_of(path), ignore_errors=True)  # of blocks of an earlier inference
        if how.object_table is not None:
            objects = object_sums(result.values, (0, 0, 0))
            write_table(path, how.object_table, object_table(objects, size, offset))
        found = np.count_nonzero(np.unique(result.values))
        kind = "classes beside the background" if self.layout.num_classes else "segments"
        logger.info("%s: %s found: %d", path, kind, found)


def state_of(path: Path) -> Path:
    """Folder beside a result that says which of its blocks are done."""
    return path.with_suffix(".blocks")


def refuse_places(output_dir: str | Path, ids: Iterable[str]) -> None:
    """Refuse to write where something is that inference did not write.

    Args:
        output_dir: folder of the results.
        ids: of the volumes.

    Raises:
        InputError: names it.
    """
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output_dir '{folder}' is a file; name a folder.")
    for name in ids:
        path = folder / f"{name}.zarr"
        if path.exists() and not is_result(path):
            raise InputError(
                f"output '{path}' exists and is not a result of inference; move it away or "
                f"choose another output_dir."
            )


def check_prediction(
    description: Mapping[str, Any], layout: ChannelLayout, dimensions: int, model_dir: str | Path
) -> None:
    """Refuse a model that predicts something else than the configuration says.

    Args:
        description: of the model; one of a version that knew affinities in 3D alone lacks
            ``PREDICTS``.
        layout: of the configuration.
        dimensions: of the configuration.
        model_dir: for the message.

    Raises:
        InputError: names the first of the configuration's keys that differs.
    """
    usual = "affinities_lsds" if description.get("lsd_sigma_nm") else "affinities"
    trained = {"output_type": usual, "dimensions": 3, "num_classes": None, **description}
    wanted = (layout.output_type, dimensions, layout.num_classes or None)
    for name, value in zip(PREDICTS, wanted, strict=True):
        if trained[name] != value:
            raise InputError(
                f"model '{model_dir}' was trained with {name} {trained[name]!r}, the config has "
                f"{value!r}: lay the same overlay over training and inference."
            )


def refuse_other_offsets(
    description: Mapping[str, Any], offsets: Sequence[Sequence[int]], model_dir: str | Path
) -> None:
    """Refuse a model of affinities to other neighbours.

    Args:
        description: of the model.
        offsets: of the configuration.
        model_dir: for the message.

    Raises:
        InputError: names both lists.
    """
    wanted = [list(offset) for offset in offsets]
    if description["affinity_offsets"] != wanted:
        raise InputError(
            f"model '{model_dir}' was trained with affinity_offsets "
            f"{description['affinity_offsets']}, the config has {wanted}: "
            "lay the same overlay over training and inference."
        )


def refuse_other_network(
    description: Mapping[str, Any], config: Mapping[str, Any], model_dir: str | Path
) -> None:
    """Refuse a model of another network than a configuration has, even if its weights fit.

    Args:
        description: of the model.
        config: of a run, as written.
        model_dir: for the message.

    Raises:
        InputError: names what differs.
    """
    trained_as = network_settings(description.get("config", {}))
    if different := network_difference(trained_as, network_settings(config)):
        raise InputError(
            f"model '{model_dir}' is of another network, it differs in: "
            f"{', '.join(different[:3])}; give the settings that it was trained with, or train "
            f"again."
        )


def warn_of_scale(name: str, size: Sequence[float], *trained: Sequence[float]) -> None:
    """Say that a model will see voxels of another size than in training, and the way out.

    Args:
        name: id of the volume.
        size: its voxel size, zyx, in nm.
        trained: those of the training, zyx, in nm.
    """
    if any(np.allclose(size, one, rtol=SAME_SCALE, atol=0) for one in trained):
        return
    coarser = [t for t in trained if all(np.less_equal(size, np.multiply(t, 1 + SAME_SCALE)))]
    logger.warning(
        "%s has voxels of %s nm, the model was trained on %s nm: %s",
        name,
        list(size),
        " and ".join(str(list(one)) for one in trained),
        f'add "voxel_size_nm": {{"labels": {list(coarser[0])}}} to its entry in the datalist, then '
        "it is segmented at that size"
        if coarser
        else "expect a worse segmentation, or train on this voxel size",
    )


def _voxel_sizes(dataset: RawVolumeDataset | CachedVolumeDataset) -> dict[str, Sequence[float]]:
    """Voxel size of every volume, by its id."""
    if isinstance(dataset, RawVolumeDataset):
        return {opened.entry.id: opened.voxel_size_nm for opened in dataset.entries}
    return {volume.id: volume.voxel_size_nm for volume in dataset.volumes}


def dataset_ids(dataset: RawVolumeDataset | CachedVolumeDataset) -> list[str]:
    """Ids of a dataset's volumes."""
    if isinstance(dataset, RawVolumeDataset):
        return [opened.entry.id for opened in dataset.entries]
    return [volume.id for volume in dataset.volumes]


def _write_image(
    path: Path,
    result: Result,
    voxel_size_nm: Triple,
    offset_nm: Triple,
    output_format: OutputSettings,
) -> None:
    """One image of the OME-Zarr, with its pyramid."""
    values = result.values
    array = create(
        path, result.name, values.shape, values.dtype, voxel_size_nm, offset_nm, output_format,
        result.attributes,
    )  # fmt: skip
    open_array(array).write(values).result()
    if output_format.pyramid:
        write_levels(path, result.name, output_format)


@contextmanager
def _folder_in_place(path: Path) -> Iterator[Path]:
    """A folder to write to; renamed to ``path`` if all went well, and an older one goes away."""
    part, old = (path.with_name(f".{path.name}.{kind}") for kind in ("part", "old"))
    shutil.rmtree(part, ignore_errors=True)  # left by a run that was killed
    try:
        yield part
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            os.replace(path, old)
        os.replace(part, path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)
