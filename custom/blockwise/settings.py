"""How blocks of an inference are run, as the configuration says it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from custom.json_fields import flag, whole_number
from custom.workforce import Workforce


@dataclass(frozen=True)
class BlockSettings:
    """How blocks of an inference are run.

    Args:
        workforce: who works on them.
        block_size: voxels of a block, one number or three (z, y, x); None for a chosen one.
        threads: blocks that a process works on at a time.
        database: of the graph of fragments, as of ``graph_of``; None for a file in the run's state.
        keep_features: keep features that were extracted from raw after prediction.

    Raises:
        InputError: a value that is not among these.
    """

    workforce: Workforce
    block_size: Any = None
    threads: int = 1
    database: Mapping[str, Any] | None = None
    keep_features: bool = False

    def __post_init__(self) -> None:
        whole_number(self.threads, 1, "threads")
        flag(self.keep_features, "keep_features")

    def of_tasks(self) -> dict[str, Any]:
        """Arguments of any task."""
        force = self.workforce
        return {
            "threads": self.threads,
            "retries": force.retries,
            "worker_config": force.worker(),
        }
