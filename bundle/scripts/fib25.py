"""The real recipe: neurons of the Drosophila medulla in FIB-SEM, from raw to scores.

From inside ``bundle/``:
``python -m scripts.fib25 --data <fib25.zarr> --backbone <id or folder> --out <folder>``
"""

import json
import os
from pathlib import Path

import fire

from custom.errors import InputError
from custom.files import write_atomically
from custom.volumes import open_volume
from scripts.report import write_recipe_report
from scripts.steps import (
    BUNDLE,
    StepError,
    bundle_steps,
    run_steps,
    score_table,
    step_table,
)
from scripts.strict import strict

OVERLAY = BUNDLE / "configs" / "experiments" / "fib25.json"
LABELS = "labels/neurons"
TRAINING_Z = (0, 125)
HELD_OUT_Z = (129, 166)


@strict
def fib25(data: str, backbone: str, out: str) -> None:
    """Preprocess z 0-166, train on z 0-125, segment the whole cube, score z 129-166.

    The same command again goes on from where it was.

    Args:
        data: fib25.zarr as ``python -m scripts.samples fib25 <folder>`` makes it.
        backbone: Hugging Face id, or a folder with config.json and weights.
        out: folder for everything that is written.
    """
    try:
        _fib25(Path(os.path.abspath(data)), checked_backbone(backbone), Path(os.path.abspath(out)))
    except (InputError, StepError) as mistake:
        raise SystemExit(str(mistake)) from None


def _fib25(data: Path, backbone: str, out: Path) -> None:
    """All steps and the report."""
    content = json.dumps(fib25_datalist(data), indent=2) + "\n"
    datalist = out / "datalist.json"
    _claim(out, datalist, content)
    records = run_steps(bundle_steps(out, datalist, OVERLAY, backbone=backbone), out / "steps.json")
    report = write_recipe_report(
        out,
        title="fib25: neurons in FIB-SEM",
        notice_text="",
        overlay_config=OVERLAY,
        settings={"data": str(data), "backbone": backbone},
        records=records,
    )
    print(f"\n{step_table(records)}\n\n{score_table(out / 'eval' / 'scores.json')}")
    print(f"\nReport: {report}")


def checked_backbone(backbone: str) -> str:
    """A folder as an absolute path, an id as it is.

    Raises:
        InputError: it is meant as a folder, but there is none or it holds no configuration.
    """
    folder = Path(backbone)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(
                f"the backbone folder {folder} has no config.json; name another folder"
            )
        return os.path.abspath(folder)
    if folder.is_absolute() or backbone.startswith(".") or backbone.count("/") != 1:
        raise InputError(
            f"the backbone '{backbone}' is neither a folder nor a Hugging Face id of the form "
            "owner/name; check --backbone"
        )
    return backbone


def fib25_datalist(data: Path) -> dict[str, object]:
    """Datalist of the cube: training sections, held-out sections, and the cube to segment.

    Raises:
        InputError: the data are missing or hold too few labelled sections.
    """
    if not data.exists():
        raise InputError(
            f"there is no {data}; 'python -m scripts.samples fib25 <folder>' from inside bundle/ "
            "downloads the public cube and builds <folder>/fib25.zarr"
        )
    sources = {"raw": str(data / "raw"), "labels": str(data / LABELS)}
    for field, path in sources.items():
        depth, height, width = open_volume(path, field=field).metadata.shape
        if depth < HELD_OUT_Z[1]:
            raise InputError(
                f"{path} has {depth} sections, but the recipe scores sections {HELD_OUT_Z[0]} to "
                f"{HELD_OUT_Z[1]}; give the whole training_sample2 cube"
            )

    def entry(name: str, z: tuple[int, int]) -> dict[str, object]:
        roi = {"offset": [z[0], 0, 0], "shape": [z[1] - z[0], height, width]}
        return {"id": name, **sources, "roi": roi}

    return {
        "name": "fib25",
        "training": [entry("fib25-training", TRAINING_Z)],
        "validation": [entry("fib25-validation", HELD_OUT_Z)],
        "test": [entry("fib25", HELD_OUT_Z)],
    }


def _claim(out: Path, datalist: Path, content: str) -> None:
    """Refuse a folder that holds something else, or a run on other data."""
    if datalist.exists():
        if datalist.read_text() != content:
            raise InputError(
                f"{datalist} describes other data than --data; delete {out} or choose another --out"
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and holds something else; choose another --out")
    else:
        write_atomically(datalist, content.encode())


if __name__ == "__main__":
    fire.Fire(fib25)
