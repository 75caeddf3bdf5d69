"""What prediction block by block costs beside bare passes, and how much memory the whole chain.

python -m bench.prediction [--data <fib25.zarr>] [--backbone <folder or id>] [--block 64]
python -m bench.prediction memory [--edges 256,512] [--until predict]
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fire
import numpy as np
import psutil
import torch
from funlib.geometry import Coordinate, Roi
from monai.bundle import ConfigParser

from bench.features import BUNDLE, VIT_S, Setting, _datalist, _scale
from bench.figures import Figure, table
from custom.blockwise.lattice import WindowLattice, block_size
from custom.features.backbone import Backbone
from custom.features.settings import load_backbone_and_spec
from custom.model_folder import write_model
from custom.volumes import create_ome_zarr_array

CONFIG = BUNDLE / "configs" / "inference.json"
NAME = "cube"
TINY: Mapping[str, Any] = {
    "backbone": {
        "model_type": "dinov3_vit",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "patch_size": 16,
        "num_register_tokens": 1,
    },
    "features#window": 256,
    "features#pixels_per_voxel": 1.0,
    "token_channels": 16,
    "fused_channels": 2,
    "unet_channels": [4, 8],
    "unet_strides": [[2, 2, 2]],
    "window_overlap": 0.0,
}
POLL_S = 0.1


def bench(
    data: str | None = None,
    backbone: str | None = None,
    cube: int = 128,
    block: int | None = None,
) -> None:
    """Measure prediction and print.

    Args:
        data: OME-Zarr with raw and labels/neurons; without it, a synthetic volume.
        backbone: folder or Hugging Face id; without it, a random DINOv3 ViT-S.
        cube: edge of the volume, voxels.
        block: edge of a block, voxels; as the configuration chooses it if left out.
    """
    found = Path(os.path.abspath(data)) if data else None
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(backbone or VIT_S, cube=cube, data=found)
        print(table(prediction_figures(setting, Path(folder), block)))


def memory(edges: Sequence[int] = (256, 512), until: str | None = None, workers: int = 2) -> None:
    """Measure the memory of worker processes and print.

    Args:
        edges: of synthetic volumes, voxels.
        until: "predict": affinities alone; by default the whole chain.
        workers: processes at a time.
    """
    with tempfile.TemporaryDirectory() as folder:
        print(table(memory_figures(edges, Path(folder), until, workers)))


def prediction_figures(setting: Setting, folder: Path, block: int | None = None) -> list[Figure]:
    """Blocks of a cube from raw, in this project's default settings, and bare passes.

    ``predict_over_bare`` is without overlap of the network's windows; what the default overlap adds
    is a figure of its own, as it is a choice of quality. So is the share of windows that are
    computed again because they touch several blocks, which ``predict_over_bare`` contains.

    Args:
        setting: data and backbone.
        folder: gets data, model and output.
        block: edge of a block, voxels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    features = _scale(setting)
    backbone, spec = load_backbone_and_spec(setting.backbone, features)
    given = {
        "backbone": setting.backbone,
        **{f"features#{key}": value for key, value in features.items()},
        "token_channels": spec.channels,
        "datalist": str(_datalist(setting, folder)),
        "window_overlap": 0.0,
        "mirror": False,
        **({"block_size": block} if block else {}),
    }
    half = 3 * setting.cube // 2
    bare = {"backbone": _bare_backbone(backbone, features["window"], half)}
    bare["network"] = _bare_network(given, setting.cube) / 2
    _predict(given, folder)
    spent = {task: _seconds(folder, task) for task in ("features", "predict")}
    bare["network"] += _bare_network(given, setting.cube) / 2
    bare["backbone"] += _bare_backbone(backbone, features["window"], 3 * setting.cube - half)
    total = sum(bare.values())
    crop = ConfigParser.load_config_file(CONFIG)["crop_size"]
    shape = (setting.cube,) * 3
    overlapping = WindowLattice(shape, tuple(crop), 0.5)
    windows = len(overlapping.touching(Roi((0, 0, 0), shape)))
    blocks = block_size(block, once := WindowLattice(shape, tuple(crop), 0.0), channels=9)
    return [
        Figure("prediction.predict_over_bare", sum(spent.values()) / total, "1"),
        Figure("prediction.voxels_per_second", setting.cube**3 / sum(spent.values()), "1/s"),
        *(Figure(f"prediction.{task}_seconds", value, "s") for task, value in spent.items()),
        *(Figure(f"prediction.bare_{part}_seconds", value, "s") for part, value in bare.items()),
        Figure("prediction.windows_again", once.recomputed(blocks), "1"),
        Figure("prediction.overlap_factor", windows * np.prod(crop) / setting.cube**3, "1"),
    ]


def memory_figures(
    edges: Sequence[int],
    folder: Path,
    until: str | None = None,
    workers: int | None = 2,
    block: int | None = None,
    **changes: Any,
) -> list[Figure]:
    """Highest resident memory of a worker, of any task and of each, and of other processes.

    Args:
        edges: of synthetic volumes, voxels.
        folder: gets data, model and output.
        until: as of ``memory``.
        workers: processes at a time; None: the run's own alone.
        block: edge of a block, voxels; as the configuration chooses it if left out.
        changes: of the configuration.
    """
    figures = []
    how = {"workers": workers, "block_size": block}
    chosen = {key: value for key, value in how.items() if value is not None}
    for edge in edges:
        place = folder / str(edge)
        given = {**TINY, **chosen, **changes, "datalist": str(noise_volume(place, edge))}
        if until == "predict":
            given["output_type"], given["num_classes"] = "labels", 2
        begin = time.perf_counter()
        peaks = _predict(given, place)
        name = f"memory.{until or 'chain'}_{edge}"
        figures += [Figure(f"{name}_{kind}", peak, "MiB") for kind, peak in peaks.items()]
        figures.append(Figure(f"{name}_seconds", time.perf_counter() - begin, "s"))
    return figures


def noise_volume(folder: Path, edge: int) -> Path:
    """Datalist of a cube of smooth noise, written slab by slab."""
    array = create_ome_zarr_array(
        folder / "cube.zarr", "raw", (edge,) * 3, "uint8", "zyx", (8.0, 8.0, 8.0),
        (0.0, 0.0, 0.0), (64, 64, 64), {},
    )  # fmt: skip
    for z in range(0, edge, 64):
        coarse = np.random.default_rng(z).integers(0, 255, (64 // 8, edge // 8, edge // 8))
        slab = coarse.repeat(8, 0).repeat(8, 1).repeat(8, 2)
        array[z : z + 64].write(slab.astype(np.uint8)).result()
    path = folder / "cube.json"
    entry = {"id": NAME, "raw": str(folder / "cube.zarr" / "raw")}
    path.write_text(json.dumps({"name": "bench", "training": [entry]}))
    return path


def inference_command(given: Mapping[str, Any], folder: Path) -> list[str]:
    """The inference run as a user starts it, in ``bundle/``, of a model of random weights.

    Args:
        given: of the command line, with ``datalist``, whose section "training" is segmented.
        folder: gets ``model`` and ``output``.
    """
    places = {"model_dir": folder / "model", "output_dir": folder / "output"}
    given = {**given, **{key: str(path) for key, path in places.items()}, "section": "training"}
    write_random_model(given)
    arguments = [part for key, value in given.items() for part in (f"--{key}", str(value))]
    command = ["-m", "monai.bundle", "run", "inference", "--config_file", str(CONFIG)]
    return [sys.executable, *command, "--bundle_root", str(BUNDLE), *arguments]


def _predict(given: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """The inference run as a user starts it; highest resident memory in MiB, of workers and all."""
    process = psutil.Popen(inference_command(given, folder), cwd=BUNDLE)
    peaks: dict[str, float] = {}
    while process.poll() is None:
        for one in [process, *process.children(recursive=True)]:
            _note(one, peaks)
        time.sleep(POLL_S)
    if process.returncode:
        raise SystemExit(f"inference failed with status {process.returncode}")
    return peaks


def _note(process: psutil.Process, peaks: dict[str, float]) -> None:
    """Raise the peaks of a process's kinds."""
    try:
        command = process.cmdline()
        peak = _peak_mib(process.pid)
    except (psutil.Error, OSError, StopIteration):  # it has ended meanwhile
        return
    kinds = ["other_peak"]
    if "custom.blockwise.worker" in command:
        kinds = ["worker_peak", f"{Path(command[-1]).parent.name}_peak"]
    for kind in kinds:
        peaks[kind] = max(peaks.get(kind, 0.0), peak)


def _peak_mib(pid: int) -> float:
    """Highest resident memory of a process so far, as Linux keeps it: no short peak is missed."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def write_random_model(given: Mapping[str, Any]) -> None:
    """A model of random weights for a configuration of inference."""
    parser = _parser(given)
    settings = {key[len("features#") :]: v for key, v in given.items() if "features#" in key}
    _, spec = load_backbone_and_spec(given["backbone"], settings)
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def")
    description = {
        "features": spec.to_json(),
        "output_type": parser["output_type"],
        "dimensions": 3,
        "num_classes": parser["num_classes"] if parser["output_type"] == "labels" else None,
        "affinity_offsets": parser["affinity_offsets"],
        "voxel_size_nm": [8.0, 8.0, 8.0],
        "config": {},
    }
    write_model(Path(given["model_dir"]), network.state_dict(), description, {})


def _parser(given: Mapping[str, Any]) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(str(CONFIG))
    parser.update({**given, "bundle_root": str(BUNDLE)})
    return parser


def _seconds(folder: Path, task: str) -> float:
    """Time that a task's blocks took."""
    lines = [
        json.loads(line)
        for path in (folder / "output" / f"{NAME}.blocks" / task / "times").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    return float(sum(line["end"] - line["begin"] for line in lines))


def _bare_backbone(backbone: Backbone, window: int, count: int, batch: int = 8) -> float:
    """Seconds of passes over so many windows, in batches as extraction makes them."""
    images = torch.randn(batch, 3, window, window)
    backbone(images)
    begin = time.perf_counter()
    for at in range(0, count, batch):
        backbone(images[: min(batch, count - at)])
    return time.perf_counter() - begin


def _bare_network(given: Mapping[str, Any], cube: int) -> float:
    """Seconds of the network on windows that cover the cube once, with the same precision."""
    parser = _parser(given)
    network = parser.get_parsed_content("network_def").eval()
    crop = Coordinate(parser["crop_size"])
    patches = {"xy": (0, 1, 2), "xz": (1, 0, 2), "yz": (2, 0, 1)}
    tokens: dict[str, torch.Tensor] = {}
    for plane, axes in patches.items():
        size = [int(crop[axes[0]]), *(int(crop[axis]) // 8 + 1 for axis in axes[1:])]
        spacing = [1.0 if axis == axes[0] else 8.0 for axis in range(3)]
        tokens[f"tokens_{plane}"] = torch.randn(1, given["token_channels"], *size)
        tokens[f"placement_{plane}"] = torch.tensor([[[0.0] * 3, spacing]])
    image = torch.randn(1, 1, *crop)
    count = int(np.prod([-(-cube // c) for c in crop]))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        network(image, **tokens)
        begin = time.perf_counter()
        for _ in range(count):
            network(image, **tokens)
    return time.perf_counter() - begin


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        fire.Fire(memory, command=sys.argv[2:])
    else:
        fire.Fire(bench)
