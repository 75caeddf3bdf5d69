"""What a training step costs from the cache and on the fly, and how long it waits for its batch.

python -m bench.training [--data <fib25.zarr>] [--backbone <folder or id>]
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fire
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.utils import set_determinism

from bench.features import BUNDLE, VIT_S, Setting, cached_cube
from bench.figures import Figure, table
from custom.features.cache import CachedVolume
from custom.features.settings import load_backbone_and_spec
from custom.step_timing import StepTimes, StepTiming

CONFIGS = [BUNDLE / "configs" / "train.json", BUNDLE / "configs" / "experiments" / "fib25.json"]


def bench(
    data: str | None = None,
    backbone: str | None = None,
    steps: int = 30,
    live_steps: int = 2,
    cube: int = 128,
) -> None:
    """Measure and print.

    Args:
        data: OME-Zarr with raw and labels/neurons; without it, a synthetic volume.
        backbone: folder or Hugging Face id; without it, a random DINOv3 ViT-S.
        steps: that are measured from the cache.
        live_steps: that are measured with features on the fly.
        cube: edge of the volume, voxels.
    """
    found = Path(os.path.abspath(data)) if data else None
    setting = Setting(backbone or VIT_S, cube=cube, data=found)
    with tempfile.TemporaryDirectory() as folder:
        figures = training_figures(setting, Path(folder), steps, live_steps)
    print(table(figures))


def training_figures(
    setting: Setting,
    folder: Path,
    steps: int = 30,
    live_steps: int = 2,
    changes: Mapping[str, Any] | None = None,
) -> list[Figure]:
    """Steps as train.json and fib25.json set them, with the default loader.

    Args:
        setting: data and backbone.
        folder: gets data and cache.
        steps: that are measured from the cache, after as many as the loader makes ahead.
        live_steps: that are measured with features on the fly, after one.
        changes: of the configuration, by key.
    """
    changes = dict(changes or {})
    features = {
        key: changes.get(f"features#{key}", value) for key, value in _scale(setting).items()
    }
    volume = cached_cube(setting, folder, features)
    given = _given(setting, folder, volume) | changes
    cached = step_times({**given, "source": "cache"}, steps)
    live = step_times({**given, "source": "raw"}, live_steps, ahead=1)
    a_step, a_live_step = (times.seconds / times.steps for times in (cached, live))
    return [
        Figure("training.step_seconds", a_step, "s"),
        Figure("training.data_wait_share", cached.data_wait_share, "1"),
        Figure("training.live_step_seconds", a_live_step, "s"),
        Figure("training.live_data_wait_share", live.data_wait_share, "1"),
        Figure("training.step_speedup", a_live_step / a_step, "1"),
    ]


def step_times(changes: Mapping[str, Any], steps: int, ahead: int = 3) -> StepTimes:
    """Times of a training's steps, once its loader has had time to make batches ahead.

    Args:
        changes: of the configuration, by key.
        steps: that count.
        ahead: steps before them.
    """
    parser = ConfigParser()
    parser.read_config([str(path) for path in CONFIGS])
    parser.update({**changes, "epochs": 1, "iterations_per_epoch": ahead + steps})
    parser["train"]["trainer"]["train_handlers"] = []
    set_determinism(0)
    trainer = parser.get_parsed_content("train#trainer")
    timing = StepTiming()
    timing.attach(trainer)
    passed: list[StepTimes] = []

    def note(engine: Engine) -> None:
        passed.append(timing.total)

    trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    trainer.run()
    set_determinism(None)
    return timing.total - passed[ahead - 1]


def _scale(setting: Setting) -> dict[str, Any]:
    """Scale and window of fib25.json, the window in whole patches of the backbone."""
    overlay = json.loads(CONFIGS[-1].read_text())
    patch = load_backbone_and_spec(setting.backbone, {"window": 224})[0].patch_size
    window = overlay["features#window"] // patch * patch
    return {"pixels_per_voxel": overlay["features#pixels_per_voxel"], "window": window}


def _given(setting: Setting, folder: Path, volume: CachedVolume) -> dict[str, Any]:
    """What a user would give on the command line."""
    spec = volume.spec
    places: Sequence[str] = ("cache_dir", "model_dir", "eval_dir")
    return {
        "bundle_root": str(BUNDLE),
        "datalist": str(folder / "cube.json"),
        **{place: str(folder / place.removesuffix("_dir")) for place in places},
        "backbone": setting.backbone,
        "token_channels": spec.channels,
        "features#window": spec.window,
        "features#pixels_per_voxel": spec.pixels_per_voxel[0],
    }


if __name__ == "__main__":
    fire.Fire(bench)
