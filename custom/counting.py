"""How the voxels of truth and segmentation are counted: in blocks, by whom, and when anew."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from custom.comparison import Comparison
from custom.contingency import Table
from custom.file_stamps import file_stamp
from custom.json_fields import per_axis
from custom.workforce import Workforce

BLOCK = 128
TASK = "contingency"


class Counting:
    """Counts which objects and segments share voxels, block by block.

    State lies in ``<eval_dir>/<id>.blocks``. Blocks that were counted are not counted again as long
    as the entry, its labels and mask, the segmentation and the block size are what they were.

    Args:
        block_size: voxels along an edge, or z, y, x; None: 128.
        workers: processes that count; None: this process alone.
        retries: how often a block that failed is tried again.
        cluster: "lsf" or "slurm", where the workers run; None: on this machine.
        cluster_settings: of the cluster's jobs.

    Raises:
        InputError: a setting is wrong, or the cluster cannot be used from here.
    """

    def __init__(
        self,
        block_size: int | Sequence[int] | None = None,
        workers: int | None = None,
        retries: int = 2,
        cluster: str | None = None,
        cluster_settings: Mapping[str, Any] | None = None,
    ) -> None:
        z, y, x = per_axis(BLOCK if block_size is None else block_size, "block_size")
        self.block_size = (z, y, x)
        self.force = Workforce(workers, retries, cluster, cluster_settings)

    def table(self, comparison: Comparison, datalist: Path, section: str, eval_dir: Path) -> Table:
        """The table of all voxels of a comparison.

        Args:
            comparison: of an entry.
            datalist: that the entry is of, here and below.
            section: of the datalist.
            eval_dir: folder of the state.

        Raises:
            InputError: blocks failed.
        """
        from custom.blockwise.contingency import CountOverlaps  # imports volara, which is slow
        from custom.blockwise.runs import run_tasks

        entry, written = comparison.opened.entry, comparison.written
        task = CountOverlaps(
            state_dir=(eval_dir / f"{entry.id}.blocks").absolute(),
            name=TASK,
            identity=self._identity(comparison),
            retries=self.force.retries,
            worker_config=self.force.worker(),
            datalist=datalist.absolute(),
            section=section,
            entry_id=entry.id,
            output_dir=comparison.output_dir,
            offset=tuple(written.offset),
            shape=tuple(written.shape),
            block_size=self.block_size,
            per_section=comparison.per_section,
            faces=not comparison.classes,
        )
        run_tasks([task], task.state_dir, self.force.workers, key="eval_dir")
        return task.merged()

    def _identity(self, comparison: Comparison) -> dict[str, Any]:
        """What the counts depend on."""
        return {
            **comparison.identity(),
            "segmentation": file_stamp(comparison.segmentation.path),
            "block_size": list(self.block_size),
            "per_section": comparison.per_section,
            "classes": list(comparison.classes),
        }
