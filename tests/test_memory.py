from pathlib import Path

import pytest
import torch

from custom import memory
from custom.memory import free_memory

CPU = torch.device("cpu")
GIB = 2**30


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GiB available, whose files lie in a folder."""
    for name, file in (("MEMINFO", "meminfo"), ("OWN_CGROUP", "cgroup"), ("CGROUPS", "groups")):
        monkeypatch.setattr(memory, name, tmp_path / file)
    available = 8 * GIB // 1024
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:   {available} kB\n")
    return tmp_path


def group(folder: Path, limit: str, used: int, cached: int, version: int = 2) -> None:
    """A control group's files."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cached}\n")


def test_without_groups_it_is_what_the_machine_has_available(machine: Path) -> None:
    assert free_memory(CPU) == 8 * GIB


@pytest.mark.parametrize("version", [1, 2])
def test_a_group_leaves_its_limit_minus_its_use_without_the_files_it_caches(
    machine: Path, version: int
) -> None:
    line = "4:memory:/job" if version == 1 else "0::/job"
    (machine / "cgroup").write_text(f"9:name=systemd:/\n{line}\n")
    root = machine / "groups" / ("memory" if version == 1 else ".")
    group(root / "job", str(5 * GIB), 3 * GIB, GIB, version)
    assert free_memory(CPU) == 3 * GIB


def test_a_group_around_the_own_one_counts_too(machine: Path) -> None:
    (machine / "cgroup").write_text("0::/user/job\n")
    group(machine / "groups" / "user" / "job", "max", GIB, 0)
    group(machine / "groups" / "user", str(4 * GIB), 3 * GIB, 0)
    assert free_memory(CPU) == GIB


def test_a_limit_that_is_none_does_not_count(machine: Path) -> None:
    (machine / "cgroup").write_text("4:cpu,memory:/job\n")
    group(machine / "groups" / "memory" / "job", str(2**63 - 4096), GIB, 0, version=1)
    assert free_memory(CPU) == 8 * GIB


def test_a_machine_that_says_nothing_is_not_guessed_at(machine: Path) -> None:
    (machine / "meminfo").unlink()
    assert free_memory(CPU) is None
