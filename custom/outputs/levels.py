"""Coarser levels of an image from finer ones, block by block."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from custom.outputs.images import declare_level, levels
from custom.outputs.pyramids import Level, Shape, shrunk
from custom.outputs.settings import CHUNK, OutputSettings
from custom.volumes import open_array

MAX_BLOCK = 256  # edge in voxels of what is read for one block, where units are no larger
READ = 256  # what is read at a time of a larger block, which large files ask for
Begin = tuple[int, int, int]


@dataclass(frozen=True)
class Pass:
    """Levels that are made together, from the one before them.

    Args:
        first: number of the level that is read.
        count: how many are made from it, each from the one before.
        block: edges of a block in voxels of the finest level, zyx: whole files of all levels made.
    """

    first: int
    count: int
    block: Shape


def passes(found: Sequence[Level], unit: int) -> list[Pass]:
    """How to make all levels: as many in one pass as blocks of a moderate size allow.

    Args:
        found: all levels, finest first.
        unit: edge in voxels of what one file holds.
    """
    made: list[Pass] = []
    first = 0
    while first < len(found) - 1:
        last = first + 1
        while last < len(found) - 1 and max(_block(found, first, last + 1, unit)) <= MAX_BLOCK:
            last += 1
        z, y, x = (unit * factor for factor in found[last].factor)
        made.append(Pass(first, last - first, (z, y, x)))
        first = last
    return made


def _block(found: Sequence[Level], first: int, last: int, unit: int) -> list[int]:
    """Edges of a block in voxels of the level that is read."""
    factors = zip(found[last].factor, found[first].factor, strict=True)
    return [unit * (coarse // fine) for coarse, fine in factors]


class LevelMaker:
    """Makes levels of an image in one block after the other; may be called by several threads.

    Args:
        store: the OME-Zarr.
        name: of the image.
        first: number of the level that is read.
        count: how many are made from it; their arrays are created.
    """

    def __init__(self, store: Path, name: str, first: int, count: int) -> None:
        self._levels = levels(store, name)[first : first + count + 1]
        self._source = open_array(store.absolute() / name / f"s{first}")
        numbers = range(first + 1, first + count + 1)
        self._made = [open_array(declare_level(store.absolute(), name, n)) for n in numbers]

    def __call__(self, begin: Sequence[int], shape: Sequence[int]) -> None:
        """Make the levels of a block.

        Args:
            begin: in voxels of the finest level, zyx; the begin of a file in all that are made.
            shape: in voxels of the finest level, zyx.
        """
        for channel in np.ndindex(*self._source.shape[:-3]):
            values = self._first_made(channel, begin, shape)
            for number, target in enumerate(self._made):
                if number:
                    values = shrunk(values, self._steps(number))
                box = _box(self._levels[number + 1], begin, shape)
                target[(*channel, *box)].write(values).result()

    def _first_made(
        self, channel: tuple[int, ...], begin: Sequence[int], shape: Sequence[int]
    ) -> NDArray[Any]:
        """The first level that is made, from parts of the one that is read."""
        boxes = [_box(level, begin, shape) for level in self._levels[:2]]
        (d, h, w), made = ([axis.stop - axis.start for axis in box] for box in boxes)
        target = np.empty(made, dtype=self._source.dtype.numpy_dtype)
        steps, corner = self._steps(0), [axis.start for axis in boxes[0]]
        for low, size in blocks((d, h, w), (CHUNK, READ, READ)):
            place = zip(corner, low, size, strict=True)
            read: tuple[int | slice, ...] = (
                *channel,
                *(slice(c + n, c + n + length) for c, n, length in place),
            )
            part = shrunk(self._source[read].read().result(), steps)
            into = zip(low, steps, part.shape, strict=True)
            target[tuple(slice(n // s, n // s + length) for n, s, length in into)] = part
        return target

    def _steps(self, number: int) -> list[int]:
        """How many voxels of one level make one of the next."""
        factors = zip(self._levels[number].factor, self._levels[number + 1].factor, strict=True)
        return [coarse // fine for fine, coarse in factors]


def write_levels(store: Path, name: str, settings: OutputSettings) -> None:
    """Write the whole pyramid of an image, here and now.

    Args:
        store: the OME-Zarr.
        name: of the image.
        settings: how it was created.
    """
    found = levels(store, name)
    for step in passes(found, settings.unit):
        make = LevelMaker(store, name, step.first, step.count)
        for begin, shape in blocks(found[0].shape, step.block):
            make(begin, shape)


def blocks(shape: Shape, edges: Shape) -> Iterator[tuple[Begin, Shape]]:
    """Begin and shape of the blocks that tile a volume; those at its end may be smaller."""
    for z, y, x in product(*(range(0, n, e) for n, e in zip(shape, edges, strict=True))):
        d, h, w = (
            min(edge, length - low)
            for edge, length, low in zip(edges, shape, (z, y, x), strict=True)
        )
        yield (z, y, x), (d, h, w)


def _box(level: Level, begin: Sequence[int], shape: Sequence[int]) -> tuple[slice, slice, slice]:
    """A box in voxels of the finest level as one of another level."""
    z, y, x = (
        slice(low // factor, -(-(low + length) // factor))
        for low, length, factor in zip(begin, shape, level.factor, strict=True)
    )
    return z, y, x
