"""What training's loader costs when it goes on for long: memory, epoch after epoch."""

import ctypes
import os
import shutil
from pathlib import Path

from custom.datasets import CropDataset, CropSampler
from custom.features.cache import CachedVolume
from custom.features.pool import GIB, bytes_in_memory, pooled
from custom.loaders import training_loader

EPOCHS = 10
THREADS = 2
M_MMAP_THRESHOLD = -3  # in glibc's malloc.h


def memory_growth(volume: CachedVolume, crop: int, samples: int, folder: Path) -> float:
    """Resident memory after ten epochs over that after one, loaded by threads.

    The cache is larger than the pool: the volume and a copy of it, with room for one of them.

    Args:
        volume: of a cache.
        crop: edge of a sample, voxels.
        samples: per epoch.
        folder: new, for the copy.
    """
    _give_back()
    room = 1.5 * bytes_in_memory(volume) / GIB
    volumes = pooled([volume, _copied(volume, folder)], room)
    dataset = CropDataset(volumes, (crop,) * 3, [(9, 9, 9)], 80.0, num_samples=samples)
    sampler = CropSampler(dataset)
    loader = training_loader(dataset, 1, sampler, THREADS, "threads")
    resident = []
    for epoch in range(1, EPOCHS + 1):
        sampler.set_epoch(epoch)
        for _ in loader:
            pass
        resident.append(_resident_mib())
    return resident[-1] / resident[0]


def _copied(volume: CachedVolume, folder: Path) -> CachedVolume:
    metadata = f"{volume.path.stem}_metadata.json"
    shutil.copytree(volume.path, folder / volume.path.name)
    shutil.copyfile(volume.path.with_name(metadata), folder / metadata)
    return CachedVolume(folder / volume.path.name)


def _give_back() -> None:
    """Have glibc give back blocks of 1 MiB and more as they are freed, from now on.

    By default it keeps blocks of up to 32 MiB for later use, and resident memory goes up and down
    by a tenth with what is kept; so a tenth could be lost unseen.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 2**20)


def _resident_mib() -> float:
    """Resident memory of this process, on Linux."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
