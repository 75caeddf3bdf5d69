"""A synthetic volume from raw to a scored segmentation and a report.

From inside ``bundle/``: ``python -m scripts.demo``
"""

import json
import os
from pathlib import Path

import fire

from custom.errors import InputError
from custom.files import write_atomically
from scripts.report import write_recipe_report
from scripts.steps import (
    BUNDLE,
    Step,
    StepError,
    bundle_steps,
    run_steps,
    score_table,
    step_table,
)
from scripts.strict import strict
from scripts.synthetic import triple

OVERLAY = BUNDLE / "configs" / "experiments" / "demo.json"
NOTICE = (
    "The backbone was random: its features carry no knowledge of images, so these scores say that "
    "the road works, not how good DINO features are."
)


@strict
def demo(
    out: str = "../demo",
    size: int | tuple[int, int, int] = 128,
    seed: int = 0,
    voxel_size: float | tuple[float, float, float] = 16.0,
    epochs: int | None = None,
) -> None:
    """Make synthetic data, run the four bundle runs on it, print the scores and write a report.

    The same command again reuses what is finished.

    Args:
        out: folder for everything that is written, ../demo by default.
        size: voxels along every axis, or z,y,x.
        seed: of the synthetic tissue.
        voxel_size: nm along every axis, or z,y,x, such as 40,10,10.
        epochs: of training, instead of those in configs/experiments/demo.json.
    """
    try:
        _demo(Path(os.path.abspath(out)), triple(size), seed, triple(voxel_size), epochs)
    except (InputError, StepError) as mistake:
        raise SystemExit(str(mistake)) from None


def _demo(
    out: Path,
    shape: tuple[int, ...],
    seed: int,
    voxel_size: tuple[float, ...],
    epochs: int | None,
) -> None:
    """All steps and the report."""
    settings = {"shape": list(shape), "seed": seed, "voxel_size_nm": list(voxel_size)}
    _claim(out, settings)
    data = _data_step(out / "data", shape, seed, voxel_size)
    runs = bundle_steps(out, out / "data" / "datalist.json", OVERLAY, epochs=epochs)
    records = run_steps([data, *runs], out / "steps.json")
    report = write_recipe_report(
        out,
        title="Demo: synthetic cells",
        notice_text=NOTICE,
        overlay_config=OVERLAY,
        settings={key: str(value) for key, value in settings.items()},
        records=records,
    )
    print(f"\n{NOTICE}\n\n{step_table(records)}\n\n{score_table(out / 'eval' / 'scores.json')}")
    print(f"\nReport: {report}")


def _data_step(
    folder: Path, shape: tuple[int, ...], seed: int, voxel_size: tuple[float, ...]
) -> Step:
    """The synthetic volume in a process of its own, so that its memory is not counted later."""
    arguments = ("--size", _commas(shape), "--seed", str(seed), "--voxel_size", _commas(voxel_size))
    return Step(
        "data",
        ("-m", "scripts.synthetic", "--out", str(folder), *arguments),
        (BUNDLE / "scripts" / "synthetic.py",),
        (folder / "datalist.json",),
    )


def _commas(numbers: tuple[float, ...]) -> str:
    """``(1, 2, 3)`` -> ``1,2,3``."""
    return ",".join(str(number) for number in numbers)


def _claim(out: Path, settings: dict[str, object]) -> None:
    """Refuse a folder that holds something else, or a demo of other data."""
    path = out / "demo.json"
    if path.exists():
        if json.loads(path.read_text()) != settings:
            raise InputError(
                f"{out} holds a demo with other settings ({path.read_text().strip()}); "
                "delete it or choose another --out"
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not a demo's folder; choose another --out")
    else:
        write_atomically(path, (json.dumps(settings) + "\n").encode())


if __name__ == "__main__":
    fire.Fire(demo)
