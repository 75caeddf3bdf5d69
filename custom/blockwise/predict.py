"""Prediction block by block: every voxel gets what a run on the whole volume gives it."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import daisy
import numpy as np
import torch
from funlib.geometry import Coordinate, Roi
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from custom.blockwise.arrays import open_store, write_box
from custom.blockwise.contexts import coarse_part, context_reach
from custom.blockwise.lattice import Shape, WindowLattice
from custom.blockwise.sources import BlockSource
from custom.blockwise.tracked import ProcessBlock, Tracked
from custom.context import CoarseVolume
from custom.errors import InputError
from custom.inferers import TokenSlidingWindowInferer, stacked
from custom.samples import Sample
from custom.scores import as_uint8, predicted_classes

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


class Predict(Tracked):
    """Predicts the blocks of a volume and writes them to arrays of an OME-Zarr.

    A block reads what the windows need that share voxels with it::

        |-----------------------------------|   volume
                |bbbbbbbbbbbbbb|                block: written
             |rrrrrrrrrrrrrrrrrrrr|             read: the hull of its windows
             |wwwwwwwww|  |wwwwwww|

    Args:
        shape: (D, H, W) of the volume.
        window: (D, H, W) of the network's windows.
        overlap: of neighbouring windows.
        context_factor: of the network's context; None without.
        margin: voxels beside its windows that a block's features need, zyx.
        block: (D, H, W) of a block.
        output: folder of the OME-Zarr, whose arrays exist.
        arrays: arrays (C, D, H, W) uint8, and the first and the end of their channels among those
            of the network; together these are one span.
        classes: array (D, H, W) uint64 of the most probable classes; None where there are none.
        predictor: what predicts, where a process has it; others load it from ``config``.
    """

    fit: Literal["shrink"] = "shrink"
    read_write_conflict: Literal[False] = False
    shape: Shape
    window: Shape
    overlap: float
    context_factor: Shape | None = None
    margin: Shape = (0, 0, 0)
    block: Shape
    output: Path
    arrays: dict[str, tuple[int, int]]
    classes: str | None = None
    predictor: Any = Field(default=None, exclude=True, repr=False)

    @property
    def write_roi(self) -> Roi:
        """The volume."""
        return Roi((0, 0, 0), self.shape)

    @property
    def write_size(self) -> Coordinate:
        """Of a block."""
        return Coordinate(self.block)

    @property
    def context_size(self) -> Coordinate:
        """What a block reads beyond itself on either side.

        The reach of its windows (``WindowLattice.context``, at most a window less a voxel), with a
        context that of theirs (``context_reach``), and the entries that interpolation needs.
        """
        reach = context_reach(self.window, self.context_factor or (1, 1, 1))
        windows = WindowLattice(self.shape, self.window, self.overlap).context
        return Coordinate(windows) + Coordinate(reach) + Coordinate(self.margin)

    def drop_artifacts(self) -> None:
        """Remove the arrays."""
        for name in self.names:
            shutil.rmtree(self.output / name, ignore_errors=True)

    @property
    def names(self) -> list[str]:
        """All arrays that are written."""
        return [*self.arrays, *([self.classes] if self.classes else [])]

    @contextmanager
    def process_block_func(self) -> Iterator[ProcessBlock]:
        """Predict and write a block."""
        predictor = self.predictor
        stores = {name: open_store(self.output / name / "s0") for name in self.names}

        def process(block: daisy.Block) -> None:
            roi = block.write_roi
            if predictor.source.empty(roi):
                self._note_empty(block.block_id[1])
                write_box(stores, roi, dict.fromkeys(self.names, np.zeros((), np.uint8)))
            else:
                write_box(stores, roi, self._predicted(predictor, roi))

        yield process

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
