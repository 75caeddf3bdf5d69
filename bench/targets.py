"""What training targets cost: LSDs beside lsd-lite's, and a ready sample, part by part.

python -m bench.targets [--only lsds|volumes|objects|sample] [--data <fib25.zarr>]
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fire
import lsd_lite
import numpy as np
import torch
from funlib.geometry import Roi
from monai.transforms import Compose
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from bench.features import VIT_S, Setting, cached_cube
from bench.figures import Figure, table
from bench.float64 import largest_differences
from custom.augmentation import RandOrientationd
from custom.datasets import CropDataset
from custom.features.cache import CachedVolume
from custom.samples import add_features
from custom.targets.affinities import affinities
from custom.targets.lsds import local_shape_descriptors
from custom.targets.parts import lsd_part, weight_part
from custom.targets.settings import TargetSettings, target_settings
from custom.transforms import LabelsToTargetsd
from custom.volumes import open_volume

VOXEL_NM = 8.0
SIGMA_NM = 80.0
WIDE_SIGMA_NM = 200.0
SOLID = 1e-2  # of sigma squared; where all variances are larger, lsd-lite's float32 is precise
OFFSETS = [[d * (a == axis) for a in range(3)] for d in (1, 3, 9) for axis in range(3)]
ONE_LAYER = {**VIT_S, "num_hidden_layers": 1}  # tokens of the usual size, quickly made
REPEATS = 5


@dataclass(frozen=True)
class Timed:
    """A result, and the seconds and CPU-seconds (of all threads) that it took."""

    result: Any
    seconds: float
    cpu_seconds: float


def bench(only: str | None = None, data: str | None = None) -> None:
    """Measure and print.

    Args:
        only: "lsds", "volumes", "objects" or "sample"; everything when left out.
        data: OME-Zarr with raw and labels/neurons; without it, synthetic ones.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(os.path.abspath(data)) if data else None
        print(table(target_figures(path, Path(folder), [only] if only else list(PARTS))))


def target_figures(
    data: Path | None, folder: Path, parts: Sequence[str] | None = None
) -> list[Figure]:
    """All figures, or those of some parts; ``folder`` gets what has to be written."""
    local_shape_descriptors(np.ones((4, 5, 6), np.uint8), 2.0)  # compiled, and loaded
    found: list[Figure] = []
    for part in parts or PARTS:
        if part not in PARTS:
            raise SystemExit(f"--only must be one of {', '.join(PARTS)}, got {part}")
        found += PARTS[part](data, folder)
    return [Figure(f"targets.{f.name}", f.value, f.unit) for f in found]


def lsd_figures(data: Path | None, folder: Path, sizes: Sequence[int] = (128, 64)) -> list[Figure]:
    """Cubes at sigma 80 nm, ours and lsd-lite's, and both beside the definition in float64."""
    whole = labels_of(data)
    figures = []
    for size in sizes:
        labels = np.ascontiguousarray(whole[:size, :size, :size])
        end = "" if size == sizes[0] else f"_{size}"
        lite = timed(lambda labels=labels: lsd_lite.get_lsds(labels, SIGMA_NM, (8, 8, 8)))
        ours = median_of(lambda labels=labels: lsds(labels))
        differences = np.abs(ours.result - lite.result).max(axis=0)
        solid = (labels != 0) & (ours.result[3:6] > SOLID).all(axis=0)
        off, lite_off = to_float64([ours.result, lite.result], labels)
        figures += [
            Figure(f"lsd_speedup{end}", lite.seconds / ours.seconds, "1"),
            Figure(f"lsd_cpu_speedup{end}", lite.cpu_seconds / ours.cpu_seconds, "1"),
            *costs(f"lsd{end}", ours),
            Figure(f"lsd_lite{end}_seconds", lite.seconds, "s"),
            Figure(f"lsd_largest_difference{end}", off, "1"),
            Figure(f"lsd_largest_difference_to_lsd_lite{end}", differences[solid].max(), "1"),
            Figure(f"lsd_largest_difference_to_lsd_lite_raw{end}", differences.max(), "1"),
            Figure(f"lsd_solid_share{end}", solid.sum() / max(1, (labels != 0).sum()), "1"),
            Figure(f"lsd_lite_largest_difference{end}", lite_off, "1"),
        ]
    return figures


def volume_figures(data: Path | None, folder: Path) -> list[Figure]:
    """Ours alone, where lsd-lite takes many minutes; differences of twenty objects."""
    whole = labels_of(data)
    cube = np.ascontiguousarray(whole[:128, :128, :128])
    figures = []
    for name, labels, sigma in (
        ("lsd_whole", whole, SIGMA_NM),
        ("lsd_sigma_200", cube, WIDE_SIGMA_NM),
    ):
        ours = median_of(lambda labels=labels, sigma=sigma: lsds(labels, sigma))
        some = np.unique(labels)[1 :: max(1, len(np.unique(labels)) // 20)].tolist()
        (off,) = to_float64([ours.result], labels, sigma, some)
        figures += [*costs(name, ours), Figure(f"{name}_largest_difference", off, "1")]
    return figures


def object_figures(
    data: Path | None, folder: Path, numbers: Sequence[int] = (250, 500, 1000, 2000)
) -> list[Figure]:
    """A cube of 128^3 with more and more small objects, ours alone."""
    figures = []
    for number in numbers:
        labels = scattered(number)
        ours = median_of(lambda labels=labels: lsds(labels))
        figures += costs(f"lsd_{number}_objects", ours)
    (off,) = to_float64([ours.result], labels)
    return [*figures, Figure("lsd_objects_largest_difference", off, "1")]


def sample_figures(data: Path | None, folder: Path, samples: int = 10) -> list[Figure]:
    """CPU-seconds of a ready training sample, and of its parts, by one thread."""
    setting = Setting(ONE_LAYER, data=data)
    return sample_costs(cached_cube(setting, folder / "sample"), setting.crop, samples)


def sample_costs(volume: CachedVolume, crop: int, samples: int) -> list[Figure]:
    """As ``sample_figures``, of crops of a cached volume; medians."""
    targets = target_settings(OFFSETS, SIGMA_NM, boundary_power=1.0)
    turn = RandOrientationd(["image", "labels", "mask"], "auto")
    transform = Compose([turn, LabelsToTargetsd(targets)])
    size = (crop,) * 3
    ready = CropDataset([volume], size, targets, samples, transform=transform)
    bare = CropDataset([volume], size, targets, samples, use_tokens=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [_parts(volume, bare, turn, targets, number) for number in range(samples + 2)]
        total = [timed(lambda n=n: ready[n]).cpu_seconds for n in range(samples)]
    finally:
        torch.set_num_threads(threads)
    parts = {name: statistics.median(row[name] for row in rows[2:]) for name in rows[0]}
    return [
        Figure("sample_cpu_seconds", statistics.median(total), "s"),
        *(Figure(f"sample_{name}_cpu_seconds", value, "s") for name, value in parts.items()),
    ]


def _parts(
    volume: CachedVolume,
    bare: CropDataset,
    turn: RandOrientationd,
    targets: TargetSettings,
    number: int,
) -> dict[str, float]:
    """CPU-seconds of every part of one sample."""
    drawn = timed(lambda: bare[number])
    sample, roi = dict(drawn.result), Roi((0, 0, 0), drawn.result["image"].shape[1:])
    tokens = timed(lambda: add_features(sample, volume, roi))
    turned = timed(lambda: turn.set_random_state(number)(sample))
    labels, mask = (turned.result[key][0].numpy() for key in ("labels", "mask"))
    halo = [(n - c) // 2 for n, c in zip(labels.shape, roi.shape, strict=True)]
    inner = tuple(slice(h, h + c) for h, c in zip(halo, roi.shape, strict=True))
    near = tuple(slice(s.start - 9, s.stop + 9) for s in inner)
    voxel = (VOXEL_NM,) * 3
    steps = {
        "affinities": lambda: affinities(labels[near], OFFSETS, mask[near]),
        "lsds": lambda: lsd_part(labels, voxel, targets, inner),
        "weights": lambda: weight_part(labels, mask, voxel, targets)[inner],
    }
    return {
        "crop": drawn.cpu_seconds,
        "tokens": tokens.cpu_seconds,
        "orientation": turned.cpu_seconds,
        **{name: timed(step).cpu_seconds for name, step in steps.items()},
    }


def labels_of(data: Path | None) -> NDArray[np.integer]:
    """Labels of a volume, or synthetic ones of as many voxels."""
    if data is None:
        return packed((166, 250, 250), 393)
    volume = open_volume(str(data / "labels" / "neurons"))
    return volume.read(Roi((0, 0, 0), volume.metadata.shape))


def packed(shape: Sequence[int], number: int, seed: int = 0) -> NDArray[np.int64]:
    """Every voxel belongs to the nearest of so many random points; winding, like neurites."""
    random = np.random.default_rng(seed)
    at = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    winding = [gaussian_filter(random.normal(size=shape), 6) for _ in range(3)]
    bent = at + 400 * np.stack(winding, axis=-1)
    points = random.uniform(0, shape, (number, 3))
    return (cKDTree(points).query(bent.reshape(-1, 3))[1] + 1).reshape(shape)


def scattered(number: int, edge: int = 128, seed: int = 0) -> NDArray[np.int64]:
    """So many ellipsoids of 3 to 7 voxels on a lattice of random places; they do not touch."""
    cells = edge // 9
    random = np.random.default_rng(seed)
    labels = np.zeros((edge,) * 3, np.int64)
    around = np.stack(np.meshgrid(*[np.arange(-4, 5)] * 3, indexing="ij"))
    places = random.choice(cells**3, number, replace=False)
    for label, place in enumerate(places, 1):
        corner = 9 * np.array(np.unravel_index(place, (cells,) * 3))
        radii = random.uniform(1.5, 4, 3).reshape(3, 1, 1, 1)
        cell = labels[tuple(slice(c, c + 9) for c in corner)]
        cell[((around / radii) ** 2).sum(axis=0) <= 1] = label
    return labels


def lsds(labels: NDArray[np.integer], sigma_nm: float = SIGMA_NM) -> NDArray[np.float32]:
    """Ours, as training calls it."""
    return local_shape_descriptors(labels, sigma_nm, (VOXEL_NM,) * 3)


def to_float64(
    candidates: Sequence[NDArray[np.float32]],
    labels: NDArray[np.integer],
    sigma_nm: float = SIGMA_NM,
    ids: Sequence[int] | None = None,
) -> list[float]:
    """Largest difference of each to the definition in float64."""
    return largest_differences(candidates, labels, [sigma_nm] * 3, [VOXEL_NM] * 3, ids)


def timed(work: Callable[[], Any]) -> Timed:
    """A call and what it took."""
    start, cpu = time.perf_counter(), time.process_time()
    result = work()
    return Timed(result, time.perf_counter() - start, time.process_time() - cpu)


def median_of(work: Callable[[], Any]) -> Timed:
    """The last result of some calls, and their median time."""
    seconds, cpu_seconds = [], []
    for _ in range(REPEATS):
        call = timed(work)  # one result at a time is held
        seconds.append(call.seconds)
        cpu_seconds.append(call.cpu_seconds)
    return Timed(call.result, statistics.median(seconds), statistics.median(cpu_seconds))


def costs(name: str, call: Timed) -> list[Figure]:
    """Seconds and CPU-seconds of a call."""
    return [
        Figure(f"{name}_seconds", call.seconds, "s"),
        Figure(f"{name}_cpu_seconds", call.cpu_seconds, "s"),
    ]


PARTS: Mapping[str, Callable[[Path | None, Path], list[Figure]]] = {
    "lsds": lsd_figures,
    "volumes": volume_figures,
    "objects": object_figures,
    "sample": sample_figures,
}


if __name__ == "__main__":
    fire.Fire(bench)
