"""Inferences of a noisy cube from raw, with two workers, whose processes are killed."""

import json
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.prediction import NAME, TINY, inference_command, noise_volume
from custom.metrics import variation_of_information
from custom.volumes import open_volume
from tests.blockwise.killed import killed_runs
from tests.bundle import tiny


def killed_inferences(folder: Path, kills: int, seed: int, edge: int = 256) -> int:
    """Kill workers, servers and runs of inferences; each ends as one that was left alone.

    Args:
        folder: gets data, models and outputs.
        kills: how many.
        seed: of the moments.
        edge: of the cube, voxels; blocks have 128.

    Returns:
        Number of inferences that came to their end.
    """
    datalist = noise_volume(folder / "data", edge)

    def command(place: Path) -> Sequence[str]:
        return inference_command(
            {**TINY, "datalist": str(datalist), "workers": 2, "block_size": 128}, place
        )

    whole = folder / "whole"
    subprocess.run(command(whole), cwd=tiny.BUNDLE, check=True)

    def check(place: Path) -> None:
        assert variation_of_information(segments(whole), segments(place)) == (0, 0)
        assert done_twice(place) == {}

    state = f"output/{NAME}.blocks"
    return killed_runs(folder, kills, seed, command, check, state, longest_s=20.0)


def segments(place: Path) -> NDArray[np.uint64]:
    """Of an inference (D, H, W)."""
    labels = open_volume(str(place / "output" / f"{NAME}.zarr" / "labels/segmentation"))
    return labels.read(labels.metadata.roi)


def done_twice(place: Path) -> dict[str, int]:
    """Blocks that were done more than once, by task."""
    found: dict[str, int] = {}
    for task in (place / "output" / f"{NAME}.blocks").iterdir():
        lines = [line for path in task.glob("times/*.jsonl") for line in path.open()]
        boxes = Counter(str(json.loads(line)["offset"]) for line in lines)
        if twice := sum(count > 1 for count in boxes.values()):
            found[task.name] = twice
    return found
