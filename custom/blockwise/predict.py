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
from custom.blockwise.lattice import Shape, WindowLattice
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

    def probabilities(self, roi: Roi, channels: slice) -> Tensor:
        """Blended probabilities of a box, the same as in those of the whole volume.

        All windows that share voxels with the box are computed, and blended in the order that they
        have in the whole volume; so are the sums of their weights.

        Args:
            roi: the box.
            channels: of the network, that are wanted.

        Returns:
            (C, D, H, W) float32, on the device.

        Raises:
            InputError: some are not finite.
        """
        lattice = self.lattice()
        count = channels.stop - channels.start
        total = torch.zeros((count, *roi.shape), device=self.device)
        weight = torch.zeros(tuple(roi.shape), device=self.device)
        importance = lattice.importance(self.device)
        for corner, values in self._windows(lattice, roi):
            window = Roi(corner, lattice.window)
            common = window.intersect(roi)
            here, there = (common - roi.begin).to_slices(), (common - window.begin).to_slices()
            share = importance[there]
            total[(slice(None), *here)] += values[channels][(slice(None), *there)] * share
            weight[here] += share
        total /= weight
        if not bool(torch.isfinite(total).all()):
            raise InputError(
                f"the network gives NaN or infinite values at {list(roi.begin)}, shape "
                f"{list(roi.shape)} (voxels, zyx): look for NaN in raw there, set amp to false, or "
                f"train again"
            )
        return total

    def _windows(self, lattice: WindowLattice, roi: Roi) -> Iterator[tuple[Shape, Tensor]]:
        """Corner and probabilities (C, D, H, W) of the windows that touch a box, in order."""
        corners, size = lattice.touching(roi), lattice.window
        hull = hull_of(corners, size)
        image = self.source.image(hull).to(self.device)
        coarse = self._coarse(hull, size)
        predict = self.inferer.predictor(self.network)
        at_once = self.inferer.sw_batch_size
        batches = [corners[i : i + at_once] for i in range(0, len(corners), at_once)]

        def inputs(batch: Sequence[Shape]) -> list[Sample]:
            around = coarse.around if coarse else _nothing
            return [self.source.around(c, size) | around(c, size) for c in batch]

        for batch, parts in zip(batches, read_ahead(inputs, batches), strict=True):
            boxes = [(Roi(c, size) - hull.begin).to_slices() for c in batch]
            windows = torch.stack([image[(slice(None), *box)] for box in boxes])
            yield from zip(batch, predict(windows, stacked(parts, self.device)), strict=True)

    def _coarse(self, hull: Roi, window: Shape) -> CoarseVolume | None:
        factor = self.inferer.context_factor
        return coarse_part(self.source, factor, hull, window) if factor else None


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
                write_box(stores, roi, self._predicted(predictor, roi))

        yield process

    def _predictor(self) -> Predictor:
        equipment = Equipment(self.config)
        source = self.source(equipment)
        return Predictor(equipment.network(), equipment.inferer(), source, equipment.device)

    def _predicted(self, predictor: Predictor, roi: Roi) -> dict[str, NDArray[Any]]:
        """Values of a box by array."""
        first = min(begin for begin, _ in self.arrays.values())
        stop = max(end for _, end in self.arrays.values())
        with torch.inference_mode():
            found = predictor.probabilities(roi, slice(first, stop))
            values: dict[str, NDArray[Any]] = {
                name: np.stack(
                    [as_uint8(channel) for channel in found[begin - first : end - first]]
                )
                for name, (begin, end) in self.arrays.items()
            }
            if self.classes:
                values[self.classes] = predicted_classes(found)
        return values

    def _note_empty(self, number: int) -> None:
        path = self.meta_dir / EMPTY / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    @property
    def num_empty(self) -> int:
        """Blocks that were left out so far."""
        folder = self.meta_dir / EMPTY
        return len(list(folder.iterdir())) if folder.exists() else 0
