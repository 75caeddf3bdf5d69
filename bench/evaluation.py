"""What evaluating a volume takes in memory and time, by its size.

python -m bench.evaluation [--edges "[256, 512]"]
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import fire
import numpy as np
from numpy.typing import NDArray

from bench.features import BUNDLE
from bench.figures import Figure, table
from custom.volumes import create_ome_zarr_array

SIZE_NM = (8.0, 8.0, 8.0)
SLAB = 64  # sections written at a time


def bench(edges: Sequence[int] = (256, 512)) -> None:
    """Measure and print.

    Args:
        edges: of the volumes, voxels.
    """
    with tempfile.TemporaryDirectory() as folder:
        print(table(evaluation_figures(Path(folder), edges)))


def evaluation_figures(folder: Path, edges: Sequence[int] = (256, 512)) -> list[Figure]:
    """Peak memory and speed of the evaluating run on volumes of these edges.

    Args:
        folder: gets the volumes.
        edges: voxels; the last over the first is the ratio.
    """
    figures, peaks = [], []
    for edge in edges:
        seconds, peak = _evaluate(folder / str(edge), edge)
        peaks.append(peak)
        figures.append(Figure(f"evaluation.peak_memory_{edge}", peak, "MiB"))
        figures.append(Figure(f"evaluation.mvox_per_s_{edge}", edge**3 / seconds / 1e6, "1/s"))
    return [*figures, Figure("evaluation.peak_memory_ratio", peaks[-1] / peaks[0], "1")]


def _evaluate(folder: Path, edge: int) -> tuple[float, float]:
    """Seconds and peak memory, MiB, of the run as a user starts it."""
    write_volumes(folder, edge)
    timing = folder / "timing.json"
    options = {"datalist": "datalist.json", "output_dir": "output", "eval_dir": "eval"}
    command = [
        *(sys.executable, "-m", "scripts.timed", str(timing), sys.executable, "-m", "monai.bundle"),
        *("run", "evaluating", "--config_file", "configs/evaluate.json"),
        *(part for key, name in options.items() for part in (f"--{key}", str(folder / name))),
    ]
    status = subprocess.run(command, cwd=BUNDLE, check=False).returncode
    if status:
        raise SystemExit(f"evaluating {edge}^3 voxels failed with status {status}")
    measured = json.loads(timing.read_text())
    return measured["seconds"], measured["peak_mib"]


def write_volumes(folder: Path, edge: int) -> None:
    """Raw, labels and a segmentation of them with splits and merges, slab by slab."""
    shape, chunks = (edge,) * 3, (64, 64, 64)
    raw, labels, segmentation = (
        create_ome_zarr_array(group, name, shape, dtype, "zyx", SIZE_NM, (0, 0, 0), chunks, {})
        for group, name, dtype in (
            (folder / "data.zarr", "raw", np.uint8),
            (folder / "data.zarr", "labels/cells", np.uint64),
            (folder / "output" / "cube.zarr", "labels/segmentation", np.uint64),
        )
    )
    for first in range(0, edge, SLAB):
        here = slice(first, first + SLAB)
        truth, found = _objects(first, min(SLAB, edge - first), edge)
        raw[here] = (truth % 251).astype(np.uint8)
        labels[here], segmentation[here] = truth, found
    source = {"raw": "data.zarr/raw", "labels": "data.zarr/labels/cells"}
    datalist = {"name": "bench", "test": [{"id": "cube", **source}]}
    (folder / "datalist.json").write_text(json.dumps(datalist))


def _objects(first: int, sections: int, edge: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Slanted bricks, and the same bricks moved, some cut and some joined."""
    z, y, x = np.ogrid[first : first + sections, 0:edge, 0:edge]
    columns = edge // 10 + 12

    def bricks(shift: int, width: int) -> NDArray[np.int64]:
        rows, cells = (z + y // 3 + shift) // 41, (y + x // 4 + shift) // 33
        numbers: NDArray[np.int64] = (rows * columns + cells) * columns
        numbers = numbers + (x + z // 5 + shift) // width
        return numbers + 1

    truth, found = bricks(0, 37), bricks(3, 37)
    found = np.where(bricks(0, 61) % 9 == 0, found // 2 + 2**40, found)
    return truth.astype(np.uint64), found.astype(np.uint64)


if __name__ == "__main__":
    fire.Fire(bench)
