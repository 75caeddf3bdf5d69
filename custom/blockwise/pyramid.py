"""Pyramids of a result's images, block by block."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import daisy

from custom.blockwise.tracked import ProcessBlock, Tracked
from custom.blockwise.volume_blocks import VolumeBlocks
from custom.outputs.images import remove_levels
from custom.outputs.levels import LevelMaker, passes
from custom.outputs.pyramids import Shape, levels_of
from custom.outputs.settings import CHUNK, OutputSettings
from custom.voxel_grid import Triple


class Pyramid(VolumeBlocks):
    """Makes some levels of all images from the one before them.

    A block is whole files in all levels that are made, and no window reaches over its border.
    The levels are listed in the images' metadata by ``custom.outputs.images.finish``.

    Args:
        store: the OME-Zarr.
        images: their names in it.
        first: number of the level that is read.
        count: how many are made from it.
    """

    aside: ClassVar[bool] = True
    store: Path
    images: list[str]
    first: int
    count: int

    @property
    def _made(self) -> range:
        """Numbers of the levels that are made."""
        return range(self.first + 1, self.first + self.count + 1)

    def outputs_exist(self) -> bool:
        """Whether the levels of all images are there."""
        return all(
            (self.store / name / f"s{n}").is_dir() for name in self.images for n in self._made
        )

    def drop_artifacts(self) -> None:
        """Remove the levels."""
        for name in self.images:
            remove_levels(self.store, name, self._made)

    @contextmanager
    def process_block_func(self) -> Iterator[ProcessBlock]:
        """Make the levels in a block, one image after the other."""

        @cache  # when the first block comes: the images may not be there before
        def makers() -> list[LevelMaker]:
            return [LevelMaker(self.store, name, self.first, self.count) for name in self.images]

        def process(block: daisy.Block) -> None:
            for make in makers():
                make(block.write_roi.offset, block.write_roi.shape)

        yield process


def drop_pyramids(store: Path, images: Sequence[str]) -> None:
    """Remove all levels but the finest, also those that a stopped run has made in part.

    Args:
        store: the OME-Zarr; some of its images may not be there yet.
        images: their names.
    """
    for name in images:
        numbers = [int(path.name[1:]) for path in (store / name).glob("s[1-9]*")]
        remove_levels(store, name, numbers)


def pyramid_tasks(
    store: Path,
    state_dir: Path,
    images: Sequence[str],
    shape: Shape,
    voxel_size_nm: Triple,
    settings: OutputSettings,
    **common: Any,
) -> list[Tracked]:
    """Tasks that make the pyramids of all images of a result, one after the other.

    There are none where a volume is a single chunk, or ``settings`` want no pyramid.

    Args:
        store: the OME-Zarr; its images need not be there yet.
        state_dir: folder of the run's state.
        images: names, "affinities", "labels/segmentation" and so on, all of the same shape.
        shape: (D, H, W).
        voxel_size_nm: zyx.
        settings: how the images are written.
        common: further arguments of ``Tracked``: threads, retries, worker_config.
    """
    if not settings.pyramid:
        return []
    levels = levels_of(shape, voxel_size_nm, CHUNK)
    steps = passes(levels, settings.unit)
    identity = {
        "images": list(images),
        "factors": [list(level.factor) for level in levels],
        "block": [list(step.block) for step in steps],
    }
    return [
        Pyramid(
            state_dir=state_dir,
            name="pyramid" if number == 1 else f"pyramid-{number}",
            identity=identity,
            store=store,
            images=list(images),
            shape=shape,
            block=step.block,
            first=step.first,
            count=step.count,
            **common,
        )
        for number, step in enumerate(steps, start=1)
    ]
