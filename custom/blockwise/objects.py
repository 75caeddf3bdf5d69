"""The table of a result's objects, block by block."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import daisy

from custom.blockwise.tracked import ProcessBlock, Tracked
from custom.blockwise.volume_blocks import VolumeBlocks
from custom.files import write_atomically
from custom.outputs.images import SEGMENTATION
from custom.outputs.objects import (
    ObjectSums,
    joined,
    object_sums,
    object_table,
    remove_tables,
    write_table,
)
from custom.outputs.pyramids import Shape
from custom.outputs.settings import CHUNK, OutputSettings
from custom.volumes import Volume, open_volume

NAME = "objects"
PARTS = "parts"  # folder of the task: what each block holds of the objects


class Objects(VolumeBlocks):
    """Notes what a block holds of every object; ``write_object_table`` adds that up.

    Args:
        store: the OME-Zarr.
        image: name of the segmentation in it.
    """

    aside: ClassVar[bool] = True
    store: Path
    image: str

    def outputs_exist(self) -> bool:
        """Whether what the done blocks hold is there."""
        return len(list((self.meta_dir / PARTS).glob("*.npz"))) >= self.count_done()

    def drop_artifacts(self) -> None:
        """Forget what the blocks hold, and the table of it."""
        remove_tables(self.store)
        shutil.rmtree(self.meta_dir / PARTS, ignore_errors=True)

    @contextmanager
    def process_block_func(self) -> Iterator[ProcessBlock]:
        """Write what a block holds."""

        @cache  # when the first block comes: the segmentation may not be there before
        def volume() -> Volume:
            return open_volume(self.store / self.image, field="segmentation")

        def process(block: daisy.Block) -> None:
            z, y, x = block.write_roi.offset
            found = object_sums(volume().read(block.write_roi), (z, y, x))
            path = self.meta_dir / PARTS / f"{block.block_id[1]}.npz"
            write_atomically(path, found.to_bytes())

        yield process


def object_tasks(
    store: Path,
    state_dir: Path,
    shape: Shape,
    settings: OutputSettings,
    image: str = SEGMENTATION,
    **common: Any,
) -> list[Tracked]:
    """The task that measures the objects of a result; none where no table is wanted.

    Args:
        store: the OME-Zarr; its segmentation need not be there yet.
        state_dir: folder of the run's state.
        shape: (D, H, W).
        settings: how results are written.
        image: name of the segmentation.
        common: further arguments of ``Tracked``: threads, retries, worker_config.
    """
    if settings.object_table is None:
        return []
    edge = 4 * CHUNK
    task = Objects(
        state_dir=state_dir,
        name=NAME,
        identity={"image": image, "block": edge},
        store=store,
        image=image,
        shape=shape,
        block=(edge, edge, edge),
        **common,
    )
    return [task]


def write_object_table(
    store: Path, state_dir: Path, settings: OutputSettings, image: str = SEGMENTATION
) -> Path | None:
    """Write the table of what all blocks hold, when the task is done.

    Args:
        store: the OME-Zarr.
        state_dir: folder of the run's state.
        settings: as of ``object_tasks``.
        image: name of the segmentation.

    Returns:
        Path of the table; None where none is wanted.
    """
    if settings.object_table is None:
        remove_tables(store)
        return None
    parts = sorted((state_dir / NAME / PARTS).glob("*.npz"))
    metadata = open_volume(store / image, field="segmentation").metadata
    sums = joined(ObjectSums.read(path) for path in parts)
    table = object_table(sums, metadata.voxel_size_nm, metadata.offset_nm)
    return write_table(store, settings.object_table, table)
