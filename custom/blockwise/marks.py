"""Which blocks of a task are done: a file for each, as volara's array of done blocks has them."""

import os
from pathlib import Path

MARKS = "blocks_done.zarr/c"  # in the folder of a task's state


def count_done(meta_dir: Path) -> int:
    """Number of a task's blocks that are done.

    Args:
        meta_dir: folder of the task's state.
    """
    walk = os.walk(meta_dir / MARKS)
    return sum(name.isdecimal() for _, _, names in walk for name in names)
