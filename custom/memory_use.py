"""Memory that a training uses: of its process, its workers and its GPU."""

import multiprocessing
import os
import sys
from pathlib import Path

import torch

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None  # type: ignore[assignment]

MIB = 2**20


def memory_mib(device: torch.device | str = "cpu") -> dict[str, float]:
    """MiB by name; what this system does not tell is left out.

    ``process``: resident memory of this process, its peak where the system tells no more;
    ``workers``: the sum over the processes that it has started, such as a loader's;
    ``gpu_peak``: the most that torch has had of a CUDA device.

    Args:
        device: that trains.
    """
    found = {"process": _own_mib()}
    workers = [_resident_mib(child.pid) for child in multiprocessing.active_children()]
    if workers:
        found["workers"] = sum(mib for mib in workers if mib is not None)
    if torch.device(device).type == "cuda":
        found["gpu_peak"] = torch.cuda.max_memory_allocated(device) / MIB
    return {name: mib for name, mib in found.items() if mib is not None}


def _own_mib() -> float | None:
    now = _resident_mib("self")
    if now is not None or resource is None:
        return now
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


def _resident_mib(process: int | str | None) -> float | None:
    """As Linux tells it; None elsewhere, and for a process that has ended."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB
