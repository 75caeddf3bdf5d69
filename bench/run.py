"""Measure this project on this machine: one command, one file of named figures.

python -m bench.run [--reuse <earlier demo>] [--data <fib25.zarr>] [--backbone <folder or id>]
"""

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import fire

from bench.features import VIT_S, Setting, feature_figures
from bench.figures import Figure, publish
from bench.targets import target_figures
from bench.training import training_figures

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results.json"
PACKAGES = ("emseg", "monai", "torch", "numpy", "tensorstore", "mwatershed")


def bench(reuse: str | None = None, data: str | None = None, backbone: str | None = None) -> None:
    """Run every bench, write bench/results.json, print a table.

    Args:
        reuse: folder of a demo: its finished steps count with the time they took then. Without it
            the demo runs in a new temporary folder.
        data: OME-Zarr with raw and labels/neurons for the figures of features and targets; without
            it, a synthetic volume.
        backbone: folder or Hugging Face id for them; without it, a random DINOv3 ViT-S.
    """
    setting = Setting(backbone or VIT_S, data=Path(os.path.abspath(data)) if data else None)
    with tempfile.TemporaryDirectory() as fresh:
        folder = Path(os.path.abspath(reuse)) if reuse else Path(fresh) / "demo"
        figures = demo_figures(folder) + feature_figures(setting, Path(fresh) / "features")
        figures += target_figures(setting.data, Path(fresh))
        figures += training_figures(setting, Path(fresh) / "training")
    measured_on = {
        "machine": machine(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "features_of": {
            "data": Path(data).name if data else "synthetic",
            "backbone": Path(backbone).name if backbone else "random DINOv3 ViT-S",
        },
    }
    publish(RESULTS, measured_on, figures)


def demo_figures(folder: Path) -> list[Figure]:
    """Seconds and peak memory of each step of the demo, and the scores it reached."""
    command = [sys.executable, "-m", "scripts.demo", "--out", str(folder)]
    status = subprocess.run(command, cwd=ROOT / "bundle", check=False).returncode
    if status:
        raise SystemExit(f"the demo failed with status {status}; the lines above say why")
    figures = []
    for record in json.loads((folder / "steps.json").read_text()):
        figures.append(Figure(f"demo.{record['step']}.seconds", record["seconds"], "s"))
        figures.append(Figure(f"demo.{record['step']}.peak_memory", record["peak_mib"], "MiB"))
    (entry,) = json.loads((folder / "eval" / "scores.json").read_text())["entries"]
    figures.append(Figure("demo.voi", entry["voi"], "bits"))
    figures.append(Figure("demo.adapted_rand", entry["adapted_rand"], "1"))
    return figures


def machine() -> dict[str, str | int]:
    """Processor, cores this process may use, and memory in MiB."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    system = f"{platform.system()} {platform.machine()}"
    return {"cpu": _cpu(), "cores": cores or 1, "memory_mib": memory, "system": system}


def _cpu() -> str:
    """Model name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"model name\s*:\s*(.+)", text)
    return model[1] if model else platform.processor()


if __name__ == "__main__":
    fire.Fire(bench)
