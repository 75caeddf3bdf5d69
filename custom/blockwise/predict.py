"""Prediction block by block: every voxel gets what a run on the whole volume gives it."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import daisy
import numpy as np
import torch
from funlib.geometry import Coordinate, Roi
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from custom.blockwise.arrays import open_store, write_box
from custom.blockwise.contexts import coarse_part, context_reach
from custom.blockwise.equipment import Equipment
from custom.blockwise.lattice import Shape, WindowLattice, slabs_of
from custom.blockwise.sources import BlockSource
from custom.blockwise.tracked import ProcessBlock
from custom.blockwise.volume_task import VolumeTask
from custom.context import CoarseVolume
from custom.errors import InputError
from custom.inferers import TokenSlidingWindowInferer, stacked
from custom.outputs import images
from custom.outputs.settings import OutputSettings
from custom.samples import Sample
from custom.scores import as_uint8, predicted_classes
from custom.voxel_grid import Triple

EMPTY = "empty"  # in the task's folder: a file for every block that was left out
READ_AHEAD = 2  # batches of windows

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Predictor:
    """What predicts the windows of one volume.

    Args:
        network: gives logits; in evaluation mode.
        inferer: how the network is run on a window, and how many at once.
        source: the volume.
        device: of the network.
    """

    network: Callable[..., Tensor]
    inferer: TokenSlidingWindowInferer
    source: BlockSource
    device: torch.device

    def lattice(self) -> WindowLattice:
        """The inferer's windows of the volume."""
        shape = self.source.shape
        return WindowLattice(shape, self.inferer.window_in(shape), self.inferer.overlap)

    def slabs(self, roi: Roi, channels: slice, thickness: int) -> Iterator[tuple[Roi, Tensor]]:
        """Blended probabilities of a box, the same as in those of the whole volume, slab by slab.

        All windows that share voxels with the box are computed, and blended in the order that they
        have in the whole volume; so are the sums of their weights. A slab is done when the windows
        that follow begin behind it::

            |  slab 0  |  slab 1  |  slab 2  |      sections of the box
            |wwwwwwwwww|
                 |wwwwwwwwww|                       sums of slabs 0 and 1 are held
                       |wwwwwwwwww|                 slab 0 is done

        Args:
            roi: the box.
            channels: of the network, that are wanted.
            thickness: sections of a slab.

        Yields:
            box of the slab, and its (C, D, H, W) float32, on the device.

        Raises:
            InputError: some are not finite.
        """
        lattice = self.lattice()
        importance = lattice.importance(self.device)
        waiting = slabs_of(roi, thickness)
        sums: dict[int, tuple[Tensor, Tensor]] = {}
        for corner, values in self._windows(lattice, roi):
            while waiting[0].end[0] <= corner[0]:
                yield self._finished(waiting.pop(0), sums)
            window = Roi(corner, lattice.window)
            for slab in (slab for slab in waiting if slab.intersects(window)):
                total, weight = sums.setdefault(
                    int(slab.begin[0]), self._zeros(channels.stop - channels.start, slab)
                )
                common = window.intersect(slab)
                here, there = (common - box.begin for box in (slab, window))
                share = importance[there.to_slices()]
                part = values[channels][(slice(None), *there.to_slices())]
                total[(slice(None), *here.to_slices())] += part * share
                weight[here.to_slices()] += share
        for slab in waiting:
            yield self._finished(slab, sums)

    def _zeros(self, channels: int, slab: Roi) -> tuple[Tensor, Tensor]:
        """Sums of probabilities and of weights."""
        shapes = (channels, *slab.shape), tuple(slab.shape)
        total, weight = (torch.zeros(shape, device=self.device) for shape in shapes)
        return total, weight

    @staticmethod
    def _finished(slab: Roi, sums: dict[int, tuple[Tensor, Tensor]]) -> tuple[Roi, Tensor]:
        """The blended probabilities of a slab, whose sums are let go of."""
        total, weight = sums.pop(int(slab.begin[0]))
        total /= weight
        if not bool(torch.isfinite(total).all()):
            raise InputError(
                f"the network gives NaN or infinite values at {list(slab.begin)}, shape "
                f"{list(slab.shape)} (voxels, zyx): look for NaN in raw there, set amp to false, "
                f"or train again"
            )
        return slab, total

    def _windows(self, lattice: WindowLattice, roi: Roi) -> Iterator[tuple[Shape, Tensor]]:
        """Corner and probabilities (C, D, H, W) of the windows that touch a box, in order."""
        corners, size = lattice.touching(roi), lattice.window
        coarse = self._coarse(hull_of(corners, size), size)
        predict = self.inferer.predictor(self.network)
        at_once = self.inferer.sw_batch_size
        batches = [corners[i : i + at_once] for i in range(0, len(corners), at_once)]
        image = _Images(self.source, corners, size)

        def inputs(batch: Sequence[Shape]) -> tuple[Tensor, list[Sample]]:
            around = coarse.around if coarse else _nothing
            parts = [self.source.around(c, size) | around(c, size) for c in batch]
            return torch.stack([image.at(c) for c in batch]), parts

        for batch, (windows, parts) in zip(batches, read_ahead(inputs, batches), strict=True):
            given = stacked(parts, self.device)
            yield from zip(batch, predict(windows.to(self.device), given), strict=True)

    def _coarse(self, hull: Roi, window: Shape) -> CoarseVolume | None:
        factor = self.inferer.context_factor
        return coarse_part(self.source, factor, hull, window) if factor else None


class _Images:
    """Raw of the windows of a block, read a row of windows' sections at a time.

    Args:
        source: the volume.
        corners: of the windows, in their order.
        size: (D, H, W) of each.
    """

    def __init__(self, source: BlockSource, corners: Sequence[Shape], size: Shape) -> None:
        self._source, self._size = source, size
        self._hull = hull_of(corners, size)
        self._box, self._image = Roi((0, 0, 0), (0, 0, 0)), torch.empty(0)

    def at(self, corner: Shape) -> Tensor:
        """Raw (1, D, H, W) of a window; those with the same first section share a reading."""
        if self._box.empty or self._box.begin[0] != corner[0]:
            (_, y, x), (_, height, width) = self._hull.begin, self._hull.shape
            self._box = Roi((corner[0], y, x), (self._size[0], height, width))
            self._image = self._source.image(self._box)
        return self._image[(slice(None), *(Roi(corner, self._size) - self._box.begin).to_slices())]


def _nothing(corner: Sequence[int], shape: Sequence[int]) -> Sample:
    return {}


def hull_of(corners: Sequence[Shape], size: Sequence[int]) -> Roi:
    """The box of windows."""
    begin, last = np.min(corners, axis=0), np.max(corners, axis=0)
    return Roi(begin.tolist(), (last - begin + size).tolist())


def read_ahead(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Results in order, a few of them computed in a thread while the caller works."""
    left = iter(items)
    with ThreadPoolExecutor(1) as thread:
        waiting: list[Future[Result]] = [
            thread.submit(function, item) for item in islice(left, READ_AHEAD)
        ]
        while waiting:
            result = waiting.pop(0).result()
            waiting += [thread.submit(function, item) for item in islice(left, 1)]
            yield result


class Predict(VolumeTask):
    """Predicts the blocks of a volume and writes them to arrays of an OME-Zarr.

    A block reads what the windows need that share voxels with it::

        |-----------------------------------|   volume
                |bbbbbbbbbbbbbb|                block: written
             |rrrrrrrrrrrrrrrrrrrr|             read: the hull of its windows
             |wwwwwwwww|  |wwwwwww|

    Args:
        window: (D, H, W) of the network's windows.
        overlap: of neighbouring windows.
        context_factor: of the network's context; None without.
        output: folder of the OME-Zarr.
        arrays: arrays (C, D, H, W) uint8, and the first and the end of their channels among those
            of the network; together these are one span.
        classes: array (D, H, W) uint64 of the most probable classes; None where there are none.
        voxel_size_nm: zyx.
        offset_nm: position of the centre of voxel (0, 0, 0), zyx.
        written: how arrays are written: the fields of ``OutputSettings``.
        attributes: of each array.
    """

    window: Shape
    overlap: float
    context_factor: Shape | None = None
    output: Path
    arrays: dict[str, tuple[int, int]]
    classes: str | None = None
    voxel_size_nm: Triple
    offset_nm: Triple
    written: dict[str, Any] = Field(default_factory=dict)
    attributes: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @property
    def context_size(self) -> Coordinate:
        """What a block reads beyond itself on either side.

        The reach of its windows (``WindowLattice.context``, at most a window less a voxel), and of
        their contexts (``context_reach``). Features are there in whole before this task begins.
        """
        reach = context_reach(self.window, self.context_factor or (1, 1, 1))
        windows = WindowLattice(self.shape, self.window, self.overlap).context
        return Coordinate(windows) + Coordinate(reach)

    def init(self) -> None:
        """Create the arrays that are not there."""
        settings = OutputSettings(**self.written)
        place = self.voxel_size_nm, self.offset_nm
        for name, (begin, end) in self.arrays.items():
            shape, attributes = (end - begin, *self.shape), self.attributes.get(name, {})
            images.create(self.output, name, shape, np.uint8, *place, settings, attributes)
        if self.classes:
            attributes = self.attributes.get(self.classes, {})
            images.create(
                self.output, self.classes, self.shape, np.uint64, *place, settings, attributes
            )

    def outputs_exist(self) -> bool:
        """Whether the arrays are there."""
        return all((self.output / name / "s0").exists() for name in self.names)

    def drop_artifacts(self) -> None:
        """Remove the arrays."""
        for name in self.names:
            images.remove(self.output, name)

    @property
    def names(self) -> list[str]:
        """All arrays that are written."""
        return [*self.arrays, *([self.classes] if self.classes else [])]

    @contextmanager
    def process_block_func(self) -> Iterator[ProcessBlock]:
        """Predict and write a block."""
        predictor = self.live or self._predictor()
        stores = {name: open_store(self.output / name / "s0") for name in self.names}

        def process(block: daisy.Block) -> None:
            roi = block.write_roi
            if predictor.source.empty(roi):
                self._note_empty(block.block_id[1])
                write_box(stores, roi, dict.fromkeys(self.names, np.zeros((), np.uint8)))
            else:
                with torch.inference_mode(), ThreadPoolExecutor(1) as writer:
                    self._predict(
                        predictor, roi, lambda *part: writer.submit(write_box, stores, *part)
                    )

        yield process

    def _predict(self, predictor: Predictor, roi: Roi, write: Callable[..., Future[None]]) -> None:
        """Predict a box; what is done of it is written meanwhile."""
        first = min(begin for begin, _ in self.arrays.values())
        stop = max(end for _, end in self.arrays.values())
        thickness, written = OutputSettings(**self.written).unit, None
        for slab, found in predictor.slabs(roi, slice(first, stop), thickness):
            values = self._values(found, first, predictor.source.inside(slab))
            if written is not None:
                written.result()
            written = write(slab, values)
        if written is not None:
            written.result()

    def _values(
        self, found: Tensor, first: int, inside: NDArray[np.bool_] | None
    ) -> dict[str, NDArray[Any]]:
        """Probabilities, whose first channel is that of the network, by array; 0 if not inside."""
        values: dict[str, NDArray[Any]] = {
            name: np.stack([as_uint8(channel) for channel in found[begin - first : end - first]])
            for name, (begin, end) in self.arrays.items()
        }
        if self.classes:
            values[self.classes] = predicted_classes(found)
        if inside is None:
            return values
        return {name: value * inside for name, value in values.items()}

    def _predictor(self) -> Predictor:
        equipment = Equipment(self.config)
        source = self.source(equipment)
        network = equipment.network(self.identity["model"])
        return Predictor(network, equipment.inferer(), source, equipment.device)

    def _note_empty(self, number: int) -> None:
        path = self.meta_dir / EMPTY / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    @property
    def num_empty(self) -> int:
        """Blocks that were left out so far."""
        folder = self.meta_dir / EMPTY
        return len(list(folder.iterdir())) if folder.exists() else 0
