"""Who does the work of a run: this process, processes of this machine, or jobs of a cluster."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from custom.errors import InputError
from custom.json_fields import whole_number

if TYPE_CHECKING:  # volara takes two seconds, and is needed where there are workers alone
    from custom.blockwise.workers import BlockWorker

logger = logging.getLogger(__name__)

WORKERS_STATE = "preprocessing.blocks"  # folder in a cache that workers fill


@dataclass(frozen=True)
class Workforce:
    """The configuration's ``workers``, ``retries``, ``cluster`` and ``cluster_settings``.

    Args:
        workers: processes, or jobs of a cluster; None for this process alone.
        retries: how often a worker tries again what failed.
        cluster: "lsf" or "slurm"; None for this machine.
        cluster_settings: as in ``custom.blockwise.cluster.cluster_worker``.

    Raises:
        InputError: a value is of the wrong kind, or the cluster cannot be used from here.
    """

    workers: int | None = None
    retries: int = 2
    cluster: str | None = None
    cluster_settings: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.workers is not None:
            whole_number(self.workers, 1, "workers")
        whole_number(self.retries, 0, "retries")
        if self.cluster is not None:
            self._refuse_none()
            self.worker()
        elif queue := (self.cluster_settings or {}).get("queue"):
            logger.warning(
                "cluster is null, so this machine does the work: cluster_settings, with queue %r, "
                "are for cluster 'lsf' or 'slurm'",
                queue,
            )

    def _refuse_none(self) -> None:
        if self.workers is None:
            raise InputError(
                f"cluster is {self.cluster!r}, but workers is null; set it to the number of jobs "
                f"that work at a time"
            )

    def worker(self) -> "BlockWorker | None":
        """What starts workers on the cluster; None for this machine."""
        if self.cluster is None:
            return None
        from custom.blockwise.cluster import cluster_worker

        return cluster_worker(self.cluster, self.cluster_settings)

    def device(self, given: str) -> str:
        """Where a worker computes: the run's machine may have a GPU where the cluster's have none.

        Args:
            given: of the run.
        """
        worker = self.worker()
        if worker is None:
            return given
        return "cuda" if worker.num_gpus else "cpu"
