"""How much memory is free on a device."""

from collections.abc import Iterator
from pathlib import Path

import torch

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
MEMINFO = Path("/proc/meminfo")
UNLIMITED = 2**60  # a limit above is none: version 1 writes a number near 2 ** 63


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device; ``None`` where that is not known.

    On the CPU what the machine has available, or what the process's control group, as of a
    container or a batch job, leaves of its limit, whichever is less.
    """
    if device.type == "cuda":  # torch keeps what it has freed, and will use it again
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    if device.type != "cpu":
        return None
    return min([*_available(), *_left_by_groups()], default=None)


def _available() -> Iterator[int]:
    """What the machine has available."""
    lines = MEMINFO.read_text().splitlines() if MEMINFO.exists() else []
    for words in map(str.split, lines):
        if words[0] == "MemAvailable:":
            yield int(words[1]) * 1024


def _left_by_groups() -> Iterator[int]:
    """What the process's control group, and those around it, leave of their limits."""
    for line in OWN_CGROUP.read_text().splitlines() if OWN_CGROUP.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            yield from _left(CGROUPS, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _left(CGROUPS / "memory", path, *names)


def _left(root: Path, path: str, limit: str, used: str, cached: str) -> Iterator[int]:
    """Limit minus use of a group and of all around it; what only caches files counts as free."""
    own = root / path.strip("/")
    for folder in (own, *own.parents):
        if not folder.is_relative_to(root):
            return
        most = _number(folder / limit)
        if most is None or most >= UNLIMITED:
            continue
        statistics = folder / "memory.stat"
        pairs = (
            dict(line.split() for line in statistics.read_text().splitlines())
            if statistics.exists()
            else {}
        )
        yield max(0, most - (_number(folder / used) or 0) + int(pairs.get(cached, 0)))


def _number(path: Path) -> int | None:
    """The number in a file; None where there is no such file, or a word in it."""
    text = path.read_text().strip() if path.is_file() else ""
    return int(text) if text.isdigit() else None
