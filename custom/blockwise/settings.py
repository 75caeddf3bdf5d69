"""How blocks are run, as the configuration says it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from custom.errors import InputError
from custom.json_fields import flag


@dataclass(frozen=True)
class BlockSettings:
    """How blocks are run.

    Args:
        block_size: voxels of a block, one number or three (z, y, x); None for a chosen one.
        workers: processes for each task; None: all in this process.
        threads: blocks that a process works on at a time.
        retries: how often a block that failed is tried again.
        cluster: "lsf" or "slurm": where workers run; None: on this machine.
        cluster_settings: of the cluster's jobs.
        database: of the graph of fragments; None for a file in the run's state.
        keep_features: keep features that were extracted from raw after prediction.

    Raises:
        InputError: a value that is not among these; a cluster without workers.
    """

    block_size: Any = None
    workers: int | None = None
    threads: int = 1
    retries: int = 2
    cluster: str | None = None
    cluster_settings: Mapping[str, Any] = field(default_factory=dict)
    database: Mapping[str, Any] | None = None
    keep_features: bool = False

    def __post_init__(self) -> None:
        for name, lowest in (("workers", 1), ("threads", 1), ("retries", 0)):
            value = getattr(self, name)
            if name == "workers" and value is None:
                continue
            if type(value) is not int or value < lowest:
                raise InputError(f"{name} must be a whole number from {lowest} on, got {value!r}.")
        if self.cluster is not None and self.workers is None:
            raise InputError(
                f"cluster is {self.cluster!r}, but workers is null: say how many jobs there shall "
                f"be at a time."
            )
        flag(self.keep_features, "keep_features")
