"""The tasks that take one volume from raw, or from its cached features, to segments."""

import logging
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from custom.blockwise.chain import FRAGMENTS
from custom.blockwise.equipment import write_config
from custom.blockwise.features import (
    Extractor,
    Features,
    Forget,
    feature_block,
)
from custom.blockwise.freshness import is_finished
from custom.blockwise.lattice import Shape, block_size, written_channels
from custom.blockwise.objects import object_tasks, write_object_table
from custom.blockwise.predict import Predict, Predictor
from custom.blockwise.pyramid import drop_pyramids, pyramid_tasks
from custom.blockwise.raw_source import RawSource, Region
from custom.blockwise.runs import run_tasks
from custom.blockwise.segmentation import segmentation_tasks
from custom.blockwise.settings import BlockSettings
from custom.blockwise.sources import BlockSource, CachedSource
from custom.blockwise.tracked import Tracked
from custom.disk_space import refuse_full_disk
from custom.features.cache import CachedVolume
from custom.features.intensity import entry_window
from custom.features.lattice import grid_bytes
from custom.features.spec import FeatureSpec
from custom.inferers import TokenSlidingWindowInferer
from custom.model_folder import DIGESTS, WEIGHTS, file_digest, weights_mark
from custom.output import ModelLoader, SegmentationWriter, state_of
from custom.outputs import images
from custom.outputs.images import SEGMENTATION
from custom.outputs.settings import CHUNK
from custom.volume_datasets import RawVolumeDataset, region_of
from custom.voxel_grid import Triple

logger = logging.getLogger(__name__)

CONFIG = "config.json"  # in the state's folder: for workers
SEGMENTED = 128  # voxels along an edge of a chosen block of the segmentation, about 1.3 GiB
SEGMENTED_WHOLE = 160**3  # voxels of a volume that is a single block of it
STORE = "features.zarr"  # there, too: features of raw


class Inference(Protocol):
    """What a volume's run takes from ``BlockwiseInference``, which starts it."""

    loader: ModelLoader
    writer: SegmentationWriter
    inferer: TokenSlidingWindowInferer
    settings: BlockSettings


@dataclass(frozen=True)
class VolumeRun:
    """One volume of an inference.

    Args:
        inference: what runs on it.
        description: of the model.
        id: of the volume.
        source: its raw and features.
        state_dir: folder of the state.
        voxel_size_nm: zyx.
        offset_nm: position of the centre of its first voxel, zyx.
        origin: where it comes from, for its identity: plain JSON.
    """

    inference: Inference
    description: Mapping[str, Any]
    id: str
    source: BlockSource
    state_dir: Path
    voxel_size_nm: Triple
    offset_nm: Triple
    origin: Mapping[str, Any]

    def run(self, config: Mapping[str, Any]) -> None:
        """All tasks; what is done is not done again.

        Args:
            config: merged, for worker processes.

        Raises:
            InputError: the disk is too small, or blocks failed.
        """
        how, settings = self.inference.writer.output_format, self.inference.settings
        predict = self.predict()

        def tasks() -> list[Tracked]:
            made = [*self.before(predict), predict, *self.after(predict)]
            if not predict.meta_dir.exists():
                self._remove_unknown()
            write_config(self.state_dir / CONFIG, config)
            images.begin(self.store, how.version)
            if not how.pyramid:
                drop_pyramids(self.store, images.image_names(self.store))
            return made

        def finish() -> None:
            write_object_table(self.store, self.state_dir, how)
            images.finish(self.store)

        run_tasks(tasks, self.state_dir, settings.workforce.workers, finish=finish)
        if predict.num_empty:
            logger.info("%s: %d empty blocks were left out", self.id, predict.num_empty)
        logger.info("%s: all is done", self.store)

    def _remove_unknown(self) -> None:
        """Make room where a result lies of which no blocks are known."""
        if self.store.exists():
            logger.warning(
                "'%s' is removed, and all of it made anew: which of its blocks are done, and of "
                "what, is not known, for '%s' has no record of them",
                *(self.store, self.state_dir),
            )
            shutil.rmtree(self.store)

    @property
    def store(self) -> Path:
        """The OME-Zarr of the result."""
        return self.state_dir.with_suffix(".zarr")

    def predict(self) -> Predict:
        """The task from raw and features to affinities, or classes."""
        inferer, writer = self.inference.inferer, self.inference.writer
        network, layout = self.inference.loader.network.eval(), writer.layout
        live = Predictor(network, inferer, self.source, next(network.parameters()).device)
        lattice = live.lattice()
        arrays = {"probabilities": (0, layout.num_classes)}
        if not layout.num_classes:
            arrays = {"affinities": (0, layout.num_affinities)}
            if writer.write_lsds:
                arrays["lsds"] = (layout.lsds.start, layout.lsds.stop)
        channels = written_channels(layout, writer.write_lsds)
        block = block_size(
            self.inference.settings.block_size,
            lattice,
            channels,
            self.inference.writer.output_format.unit,
        )
        logger.info(
            "%s: blocks of %s voxels; %.0f %% of the network's windows are computed again, because "
            "they touch several blocks",
            *(self.id, list(block), 100 * lattice.recomputed(block)),
        )
        if any(
            size < min(CHUNK, length) for size, length in zip(block, lattice.shape, strict=True)
        ):
            logger.warning(
                "%s: blocks of %s voxels are slow, and their segments lie in as many small files; "
                "take multiples of %d",
                *(self.id, list(block), CHUNK),
            )
        return Predict(
            **self._common("predict", block, live),
            identity={**self._made_from(), **self._predicted_with()},
            window=lattice.window,
            overlap=lattice.overlap,
            context_factor=inferer.context_factor,
            output=self.store,
            arrays=arrays,
            classes=SEGMENTATION if layout.num_classes else None,
            voxel_size_nm=self.voxel_size_nm,
            offset_nm=self.offset_nm,
            written=asdict(self.inference.writer.output_format),
            attributes=self._attributes(),
        )

    def before(self, predict: Predict) -> list[Tracked]:
        """What makes the features of raw; nothing else needs any.

        Raises:
            InputError: the disk is too small for them.
        """
        source, dataset = self.source, self.inference.writer.dataset
        if not isinstance(source, RawSource) or source.spec is None:
            return []
        assert isinstance(dataset, RawVolumeDataset) and dataset.backbone is not None
        live = Extractor(source.region, dataset.backbone, source.spec, dataset.windows_at_once)
        task = Features(
            **self._common("features", feature_block(source.spec, source.shape), live),
            identity=self._made_from(),
        )
        spent = task.model_copy(update={"spent": True})
        task = spent if is_finished([spent, predict]) else task
        if not task.outputs_exist():
            task.drop()
            self._refuse_full_disk(source.region, source.spec)
        return [task]

    def _refuse_full_disk(self, region: Region, spec: FeatureSpec) -> None:
        """Features must fit beside what other volumes have left."""
        opened = region.opened
        needed = grid_bytes(spec, opened.raw.metadata.shape, region.roi, opened.raw_axes)
        way_out = "segment a smaller ROI (region 'roi'), or choose another output_dir"
        refuse_full_disk("output_dir", self.state_dir, needed, way_out)

    def after(self, predict: Predict) -> list[Tracked]:
        """What drops the features, and makes segments of affinities."""
        tasks: list[Tracked] = []
        if isinstance(self.source, RawSource) and not self.inference.settings.keep_features:
            tasks.append(Forget(**self._common("forget", self.source.shape, None)))
        store, how = self.store, self.inference.writer.output_format
        if self.inference.writer.layout.num_affinities:
            chosen = self.inference.settings.block_size is None
            block = segmented_block(predict.shape, how.unit) if chosen else predict.block
            tasks += self._segmentation(block)
        names = [*predict.names, *([] if predict.classes else [FRAGMENTS, SEGMENTATION])]
        size, run = self.voxel_size_nm, self.inference.settings.of_tasks()
        tasks += pyramid_tasks(store, self.state_dir, names, predict.shape, size, how, **run)
        tasks += object_tasks(store, self.state_dir, predict.shape, how, **run)
        return tasks

    def _segmentation(self, block: Shape) -> list[Tracked]:
        """From affinities to segments."""
        writer, source = self.inference.writer, self.source
        method = writer.chosen_method(self.description)
        mask, mask_offset = source.mask if isinstance(source, RawSource) else (None, (0, 0, 0))
        return segmentation_tasks(
            method,
            self.store,
            self.state_dir,
            source.shape,
            block,
            self.voxel_size_nm,
            self.offset_nm,
            written=writer.output_format,
            database=self.inference.settings.database,
            mask=mask,
            mask_offset=mask_offset,
            attributes={"segmentation": method.describe(), "dimensions": writer.dimensions},
            settings=self.inference.settings.of_tasks(),
        )

    def _common(self, name: str, block: Shape, live: Any) -> dict[str, Any]:
        """Arguments of any task."""
        source = self.source
        return {
            "state_dir": self.state_dir,
            "name": name,
            **self.inference.settings.of_tasks(),
            "volume": self.id,
            "shape": source.shape,
            "block": block,
            "spec": source.spec and source.spec.to_json(),
            "intensity_window": source.region.window if isinstance(source, RawSource) else None,
            "store": self.state_dir / STORE,
            "config": self.state_dir / CONFIG,
            "live": live,
        }

    def _made_from(self) -> dict[str, Any]:
        """What features depend on."""
        return {**self.origin, "features": self.source.spec and self.source.spec.to_json()}

    def _predicted_with(self) -> dict[str, Any]:
        """What else a prediction depends on."""
        inferer, written = self.inference.inferer, self.inference.writer.output_format
        weights = self.description.get(DIGESTS, {}).get(WEIGHTS)
        return {
            "model": weights or file_digest(self.inference.loader.model_dir / WEIGHTS),
            "crop_size": list(inferer.window_in(self.source.shape)),
            "window_overlap": inferer.overlap,
            "mirror": inferer.mirroring is not None,
            "amp": str(inferer.precision.dtype) if inferer.precision.amp else None,
            "output": {"version": written.version, "shards": written.shards},
            "write_lsds": self.inference.writer.write_lsds,
            "voxel_size_nm": list(self.voxel_size_nm),
            "offset_nm": list(self.offset_nm),
        }

    def _attributes(self) -> dict[str, dict[str, Any]]:
        """Of the arrays."""
        writer, made_by = self.inference.writer, weights_mark(self.description)
        if not writer.layout.num_classes:
            offsets = [list(offset) for offset in writer.segmenter.offsets]
            return {"affinities": {"offsets": offsets, **made_by}}
        classes = writer.named_classes(self.description)
        return {"probabilities": {**classes, **made_by}, SEGMENTATION: classes}


def volume_runs(inference: Inference, description: Mapping[str, Any]) -> Iterator[VolumeRun]:
    """A run for every volume of the inference's dataset.

    Args:
        inference: of all.
        description: of the model.
    """
    dataset, output_dir = inference.writer.dataset, inference.writer.output_dir.absolute()
    if not isinstance(dataset, RawVolumeDataset):
        for volume in dataset.volumes:
            assert isinstance(volume, CachedVolume)
            warn_of_mask(volume)
            state_dir = state_of(output_dir / f"{volume.id}.zarr")
            source = CachedSource(volume, dataset.use_tokens)
            yield VolumeRun(
                inference, description, volume.id, source, state_dir,
                volume.voxel_size_nm, volume.offset_nm, source.describe(),
            )  # fmt: skip
        return
    for opened in dataset.entries:
        roi = region_of(opened, dataset.region)
        region = Region(opened, roi, entry_window(opened, dataset.percentiles))
        state_dir = state_of(output_dir / f"{opened.entry.id}.zarr")
        yield VolumeRun(
            inference, description, opened.entry.id,
            RawSource(region, dataset.spec, state_dir / STORE), state_dir,
            opened.voxel_size_nm, opened.offset_nm(roi), region.describe(),
        )  # fmt: skip


def warn_of_mask(volume: CachedVolume) -> None:
    """A cache has no mask but that of labels."""
    entry = volume.metadata["entry"]
    if entry.get("mask") and not (entry.get("labels") or entry.get("classes")):
        logger.warning(
            "%s: its mask is not heeded, for the cache has none; --source raw heeds it", volume.id
        )


def segmented_block(shape: Shape, unit: int) -> Shape:
    """Blocks of the segmentation, which holds all channels of one, and edges between voxels.

    Args:
        shape: (D, H, W) of the volume.
        unit: edge of what one file of the output holds.
    """
    if math.prod(shape) <= SEGMENTED_WHOLE:
        return shape
    z, y, x = (min(n, max(unit, SEGMENTED // unit * unit)) for n in shape)
    return z, y, x
