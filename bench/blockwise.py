"""What segmentation in blocks costs, beside volara's plain chain, and beside the whole volume.

python -m bench.blockwise [--affinities <result.zarr>] [--truth <array> --z 129,147]
python -m bench.blockwise seams [the same] [--method seeded_watershed] [--sections 129,166]
"""

import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fire
import numpy as np
import volara.logging
from funlib.geometry import Roi
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from volara.blockwise import AffAgglom, ExtractFrags, GraphMWS, Relabel
from volara.datasets import Affs, Labels
from volara.dbs import SQLite
from volara.lut import LUT

from bench.figures import Figure, table
from bench.targets import Timed, packed, timed
from custom.blockwise.arrays import open_store
from custom.blockwise.runs import run_tasks
from custom.blockwise.segmentation import segmentation_tasks
from custom.metrics import variation_of_information
from custom.segmentation.component_segmenter import ComponentSegmenter
from custom.segmentation.method import SegmentationMethod, Triple
from custom.segmentation.segmenter import MutexWatershedSegmenter
from custom.segmentation.watershed_segmenter import SeededWatershedSegmenter
from custom.targets.affinities import affinities
from custom.volumes import create_ome_zarr_array, open_volume

OFFSETS = [[d * (a == axis) for a in range(3)] for d in (1, 3, 9) for axis in range(3)]
SHAPE = (64, 160, 160)
VOXEL_NM = (8.0, 8.0, 8.0)
METHODS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "mutex_watershed": (
        MutexWatershedSegmenter,
        {"bias": -0.7, "threshold": 0.9, "max_link": 1, "min_size": 200},
    ),
    "seeded_watershed": (
        SeededWatershedSegmenter,
        {"boundary": 0.95, "scoring": "hist_quant_90", "threshold": 0.97, "min_size": 200},
    ),
    "components": (ComponentSegmenter, {"threshold": 0.9965, "min_size": 200}),
}


def bench(
    affinities: str | None = None,
    truth: str | None = None,
    z: tuple[int, int] | None = None,
    block: Triple = (128, 128, 128),
) -> None:
    """Measure and print.

    Args:
        affinities: OME-Zarr of an inference, of the offsets 1, 3 and 9 voxels along each axis;
            without it, synthetic ones.
        truth: labels of the same voxels, for VOI; the result's own segmentation when left out.
        z: first section that VOI is of, and the one after the last; all when left out.
        block: (D, H, W) of a block, for both chains.
    """
    values, labels, settings = _opened(affinities, truth)
    scored = slice(*z) if z else slice(None)
    with tempfile.TemporaryDirectory() as folder:
        print(table(segment_figures(values, labels, Path(folder), block, settings, scored)))


def seams(
    affinities: str | None = None,
    truth: str | None = None,
    z: tuple[int, int] | None = None,
    method: str = "mutex_watershed",
    sections: tuple[int, int] | None = None,
    edges: Sequence[int] = (32, 48, 64, 96, 128),
    crops: Sequence[int] = (1, 2, 3, 5, 8),
) -> None:
    """Measure what borders of blocks cost a method, and print.

    Args:
        affinities: as of ``bench``, here and below.
        truth: as there.
        z: as there.
        method: one of ``METHODS``.
        sections: the first that is segmented, and the one after the last; all when left out.
        edges: of blocks, voxels.
        crops: so many voxels are left out at the beginning of every axis, and the rest is segmented
            in memory: what a change as harmless as this costs is no fault of the blocks.
    """
    values, labels, settings = _opened(affinities, truth)
    first, end = sections or (0, len(labels))
    z = (max(z[0], first) - first, z[1] - first) if z else (0, end - first)
    values, labels = values[:, first:end] if sections else values, labels[first:end]
    chosen = ours_with(method, settings)
    with tempfile.TemporaryDirectory() as folder:
        figures = seam_figures(values, labels, Path(folder), edges, crops, chosen, slice(*z))
        print(table(figures))


def _opened(
    affinities: str | None, truth: str | None
) -> tuple[NDArray[np.uint8], NDArray[np.integer], dict[str, Any]]:
    """Affinities, labels and the settings of the mutex watershed."""
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore")
    if affinities is None:
        return *synthetic(SHAPE), {}
    path = Path(affinities)
    attributes = json.loads((path / "labels/segmentation/.zattrs").read_text())
    volume = open_volume(truth or str(path / "labels" / "segmentation"))
    labels = volume.read(Roi((0, 0, 0), volume.metadata.shape))
    values = open_store(path / "affinities" / "s0").read().result()
    return values, labels, attributes["segmentation"]


def segment_figures(
    values: NDArray[np.uint8],
    truth: NDArray[np.integer],
    folder: Path,
    block: Triple,
    settings: dict[str, Any] | None = None,
    scored: slice = slice(None),
) -> list[Figure]:
    """Million voxels per second and VOI of every method's chain and of volara's, in this process.

    Ratios are of seconds and, for a busy machine, of CPU-seconds.

    Args:
        values: (9, D, H, W) uint8 affinities.
        truth: labels of the same voxels; there may be fewer sections.
        folder: gets what has to be written.
        block: of both.
        settings: of the mutex watershed.
        scored: sections that VOI is of.
    """
    compile_(folder)
    found: list[Figure] = []
    calls: dict[str, Timed] = {}
    chains = {name: ours_with(name, settings or {}) for name in METHODS}
    for name, method in chains.items():
        calls[name] = timed(
            lambda method=method, name=name: ours(method, values, folder / name, block)
        )
        whole = timed(lambda method=method: method(values))
        share = whole.cpu_seconds / calls[name].cpu_seconds
        found.append(Figure(f"{name}.whole_over_blocks", share, "1"))
        between = variation_of_information(whole.result[scored], calls[name].result[scored])
        found.append(Figure(f"{name}.voi_to_whole", sum(between), "bits"))
    bias = chains["mutex_watershed"].describe()["bias"]
    calls["volara"] = timed(lambda: volaras(values, folder / "volara", block, bias))
    for name, call in calls.items():
        split, merge = variation_of_information(truth[scored], call.result[scored])
        found += [
            Figure(f"{name}.mvox_per_s", values[0].size / 1e6 / call.seconds, "Mvox/s"),
            Figure(f"{name}.cpu_over_volara", calls["volara"].cpu_seconds / call.cpu_seconds, "1"),
            Figure(f"{name}.over_volara", calls["volara"].seconds / call.seconds, "1"),
            Figure(f"{name}.voi_split", split, "bits"),
            Figure(f"{name}.voi_merge", merge, "bits"),
        ]
    return [Figure(f"segment.{f.name}", f.value, f.unit) for f in found]


def seam_figures(
    values: NDArray[np.uint8],
    truth: NDArray[np.integer],
    folder: Path,
    edges: Sequence[int],
    crops: Sequence[int],
    method: SegmentationMethod,
    scored: slice,
) -> list[Figure]:
    """VOI of the whole, of the whole without its beginning, and in blocks; and to the whole.

    Args:
        values: as of ``segment_figures``, here and below.
        truth: as there.
        folder: as there.
        edges: of blocks, voxels.
        crops: voxels left out at the beginning of every axis.
        method: any.
        scored: as there.
    """
    whole = method(values)[scored]
    found = [Figure("seams.whole_voi", sum(variation_of_information(truth[scored], whole)), "bits")]
    results: dict[str, tuple[int, NDArray[np.uint64]]] = {}
    for crop in crops:
        rest = np.ascontiguousarray(values[:, crop:, crop:, crop:])
        kept = slice(max(scored.start - crop, 0), scored.stop - crop)
        results[f"without_{crop}"] = crop, method(rest)[kept]
    for edge in edges:
        blocks = ours(method, values, folder / str(edge), (edge, edge, edge))
        results[f"blocks_{edge}"] = 0, blocks[scored]
    for name, (crop, segments) in results.items():
        part = (slice(max(crop - scored.start, 0), None), slice(crop, None), slice(crop, None))
        for against, other in (("voi", truth[scored]), ("voi_to_whole", whole)):
            voi = sum(variation_of_information(other[part], segments))
            found.append(Figure(f"seams.{name}_{against}", voi, "bits"))
    return found


def ours_with(name: str, settings: dict[str, Any]) -> SegmentationMethod:
    """One of the methods."""
    kind, usual = METHODS[name]
    chosen = {**usual, **(settings if name == "mutex_watershed" else {})}
    method: SegmentationMethod = kind(**{"offsets": OFFSETS, **chosen})
    return method


def compile_(folder: Path) -> None:
    """Let everything be compiled and loaded."""
    values, _ = synthetic((8, 20, 20))
    for name in METHODS:
        ours(ours_with(name, {}), values, folder / "compiled" / name, (8, 10, 20))
    volaras(values, folder / "compiled" / "volara", (8, 10, 20), -0.7)


def ours(
    method: SegmentationMethod, values: NDArray[np.uint8], folder: Path, block: Triple
) -> NDArray[np.uint64]:
    """Segments by our chain."""
    output = folder / "volume.zarr"
    create_ome_zarr_array(
        output, "affinities", values.shape, np.uint8, "czyx", VOXEL_NM, (0.0, 0.0, 0.0),
        (1, 64, 64, 64), {},
    ).write(values).result()  # fmt: skip
    shape: Any = values.shape[1:]
    run_tasks(
        segmentation_tasks(method, output, folder / "state", shape, block, VOXEL_NM),
        folder / "state",
    )
    found: NDArray[np.uint64] = open_store(output / "labels/segmentation/s0").read().result()
    return found


def volaras(
    values: NDArray[np.uint8], folder: Path, block: Triple, bias: float | Sequence[float]
) -> NDArray[np.uint64]:
    """Segments by volara's own tasks with their default settings.

    Biases and scores are those that its documentation proposes: one for short and one for long
    offsets, here equal; context is the largest offset.
    """
    volara.logging.set_log_basedir(folder / "logs")
    short = float(np.atleast_1d(bias)[0])
    long = float(np.atleast_1d(bias)[-1])
    affs = Affs(store=folder / "affinities.zarr", neighborhood=OFFSETS)
    affs.prepare(
        values.shape, (1, 64, 64, 64), (0, 0, 0), (1, 1, 1), ["", "", ""], ["c^", "z", "y", "x"],
        ["channel", "space", "space", "space"], np.uint8,
    )  # fmt: skip
    affs.array("r+")[:] = values
    fragments = Labels(store=folder / "fragments.zarr")
    segments = Labels(store=folder / "segments.zarr")
    scores = {"short": OFFSETS[:3], "long": OFFSETS[3:]}
    graph = SQLite(path=folder / "graph.db", edge_attrs=dict.fromkeys(scores, "float"))
    lut = LUT(path=folder / "lut.npz")
    roi = ((0, 0, 0), values.shape[1:])
    shared = {"block_size": block, "context": (9, 9, 9), "affs_data": affs}
    tasks = [
        ExtractFrags(db=graph, frags_data=fragments, bias=[short] * 3 + [long] * 6, **shared),
        AffAgglom(db=graph, frags_data=fragments, scores=scores, **shared),
        GraphMWS(db=graph, lut=lut, weights={"short": (1, short), "long": (1, long)}, roi=roi),
        Relabel(frags_data=fragments, seg_data=segments, lut=lut, block_size=block),
    ]
    for task in tasks:
        task.run_blockwise(multiprocessing=False)
    found: NDArray[np.uint64] = segments.array("r")[:]
    return found


def synthetic(shape: Triple, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Affinities of winding objects, with smooth noise and vague boundaries; and the objects."""
    random = np.random.default_rng(seed)
    labels = packed(shape, max(2, int(np.prod(shape)) // 20_000), seed)
    clean = affinities(labels, OFFSETS)[0]
    noise = np.stack([gaussian_filter(random.normal(size=shape), 1.5) for _ in OFFSETS])
    vague = np.stack([gaussian_filter(channel, 0.7) for channel in clean])
    return (255 * np.clip(vague + 0.8 * noise, 0, 1)).astype(np.uint8), labels


if __name__ == "__main__":
    if sys.argv[1:2] == ["seams"]:
        fire.Fire(seams, command=sys.argv[2:])
    else:
        fire.Fire(bench)
