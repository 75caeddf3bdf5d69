"""What training's loader costs when it goes on for long: memory, epoch after epoch."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import fire

from custom.datasets import CropDataset, CropSampler
from custom.features.cache import CachedVolume
from custom.features.pool import GIB, bytes_in_memory, pooled
from custom.loaders import training_loader
from custom.preflight import begin
from custom.targets.settings import target_settings

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = 10
THREADS = 2


def memory_growth(volume: CachedVolume, crop: int, samples: int, folder: Path) -> float:
    """Highest resident memory in the tenth epoch over that in the first, loaded by threads.

    A process of its own is measured, since what it did before decides what memory it holds.

    The cache is larger than the pool: the volume and a copy of it, with room for one of them.

    Args:
        volume: of a cache.
        crop: edge of a sample, voxels.
        samples: per epoch.
        folder: new, for the copy.
    """
    copy = _copied(volume, folder)
    arguments = [str(volume.path), str(copy.path), str(crop), str(samples)]
    command = [sys.executable, "-m", "bench.loading", *arguments]
    found = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    resident = [float(word) for word in found.stdout.split()]
    return resident[-1] / resident[0]


def load_epochs(volume: str, copy: str, crop: int, samples: int) -> None:
    """Print the highest resident memory of every epoch in MiB; begins as every run does."""
    begin()
    paths = [CachedVolume(path) for path in (volume, copy)]
    volumes = pooled(paths, 1.5 * bytes_in_memory(paths[0]) / GIB)
    dataset = CropDataset(
        volumes, (crop,) * 3, target_settings([(9, 9, 9)], 80.0), num_samples=samples
    )
    sampler = CropSampler(dataset)
    loader = training_loader(dataset, 1, sampler, THREADS, "threads")
    for epoch in range(1, EPOCHS + 1):
        sampler.set_epoch(epoch)
        print(max(_resident_mib() for _ in loader), flush=True)


def _copied(volume: CachedVolume, folder: Path) -> CachedVolume:
    metadata = f"{volume.path.stem}_metadata.json"
    shutil.copytree(volume.path, folder / volume.path.name)
    shutil.copyfile(volume.path.with_name(metadata), folder / metadata)
    return CachedVolume(folder / volume.path.name)


def _resident_mib() -> float:
    """Resident memory of this process, on Linux."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    fire.Fire(load_epochs)
