"""The model card of a shared bundle, filled with what its training knew."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from custom.sharing.metadata import channel_names
from custom.sharing.results import Results
from custom.sharing.trained_model import TrainedModel

LONGEST = 120  # characters of a setting
HIGHER_IS_BETTER = ("dice", "iou", "f1")


def model_card(name: str, model: TrainedModel, results: Results, changed: Mapping[str, Any]) -> str:
    """``docs/README.md`` of a shared bundle.

    Args:
        name: of the bundle.
        model: that is shared.
        results: scores and pictures of it.
        changed: settings of its training that differ from the defaults, by nested key.
    """
    return (
        "\n\n".join(
            part.strip()
            for part in (
                f"# {name}",
                _introduction(model),
                _data(model.description),
                _scores(results),
                _pictures(results),
                _settings(model, changed),
                _use(name, model),
                TRUST.format(name=name),
                LIMITS,
                LICENCE,
            )
            if part
        )
        + "\n"
    )


def _introduction(model: TrainedModel) -> str:
    found = model.description
    kind = "classes" if found.get("num_classes") else "instances"
    names = list(channel_names(found))
    size = " x ".join(f"{edge:g}" for edge in found["voxel_size_nm"])
    lines = [
        f"A MONAI bundle that segments volume electron microscopy into {kind}. A frozen backbone "
        f"({found['features']['backbone']}) gives features of slices, a small network predicts "
        f"{len(names)} channels from them and from raw.",
        _state(model),
        f"Voxels: {size} nm (z, y, x). Channels of the prediction: {', '.join(names)}.",
    ]
    return "\n\n".join(lines)


def _state(model: TrainedModel) -> str:
    """Which epoch this is, and whether the training ended."""
    epoch = f"These are the weights of epoch {model.description.get('epoch', '?')}, the best"
    if model.interrupted:
        return (
            f"{epoch} until **the training was interrupted** after {model.epochs_done} of "
            f"{model.epochs} epochs."
        )
    if model.epochs_done is None:
        return f"{epoch} so far; how many of {model.epochs} epochs the training came is not known."
    return f"{epoch} of {model.epochs_done} epochs at validation."


def _data(found: Mapping[str, Any]) -> str:
    rows = [
        (section, item["id"], _triple(item.get("offset")), _triple(item.get("shape")))
        for section in ("training", "validation")
        for item in found["split"][section]
    ]
    text = "Boxes in voxels of the labels, z y x. The data are not part of this bundle."
    table = _table(("section", "id", "offset", "shape"), rows)
    classes = found.get("classes")
    named = f"\n\nClasses of the labels: {json.dumps(classes)}." if classes else ""
    return f"## Data\n\n{text}\n\n{table}{named}"


def _scores(results: Results) -> str:
    parts = [
        "## Scores",
        "VOI in bits (split: objects cut; merge: objects joined) and adapted Rand error: 0 is "
        "perfect. Dice, IoU and F1: 1 is perfect. Voxels without a true label do not count for "
        "objects.",
        "On the validation volumes, which model and settings were chosen on, so that these are "
        "optimistic:",
        _score_table([{"id": key, **row} for key, row in results.validation.items()]),
    ]
    if results.test:
        parts += [
            f'Of the evaluating run beside this model, section "{results.section}":',
            _score_table(results.test),
        ]
    return "\n\n".join(parts)


def _score_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A column for every number that any row has."""
    names = list(
        dict.fromkeys(
            key for row in rows for key, value in row.items() if isinstance(value, (int, float))
        )
    )
    body = [(row["id"], *(_number(row.get(name)) for name in names)) for row in rows]
    return _table(("volume", *(name.replace("_", " ") for name in names)), body)


def _pictures(results: Results) -> str:
    images = [f"![{path.stem}](images/{path.name})" for path in results.pictures]
    return "\n\n".join(["## Pictures", *images]) if images else ""


def _settings(model: TrainedModel, changed: Mapping[str, Any]) -> str:
    found = model.description
    rows = [(f"`{key}`", f"`{_short(value)}`") for key, value in sorted(changed.items())]
    text = (
        "The files in `configs/` have the settings of this training as their defaults: no overlay "
        "is needed. These differ from the project's own defaults:"
    )
    best = f"Settings of the segmentation, found at validation: `{_short(found['segmentation'])}`."
    versions = ", ".join(f"{key} {value}" for key, value in found["versions"].items())
    return "\n\n".join(
        ["## Settings", text, _table(("key", "value"), rows), best, f"Trained with {versions}."]
    )


def _use(name: str, model: TrainedModel) -> str:
    features = model.description["features"]
    backbone = features["backbone"]
    needed = (
        "The backbone has random weights, which its seed makes again."
        if backbone.startswith("random ")
        else f"Its weights are not in this bundle: `{backbone}` is a Hugging Face id, or a folder "
        f"of that name; `--backbone <folder or id>` names another copy."
    )
    return USE.format(name=name, backbone=needed)


USE = """
## Use

```
python -m monai.bundle download --name {name} --url <address of {name}.zip> --bundle_dir .
cd {name}
pip install -r requirements.txt
python -m monai.bundle run inference --config_file configs/inference.json --datalist <file>
```

`configs/datalist.json` is an example of a datalist, with one volume to be segmented; paths in
it start at its folder. Results go to `output/<id>.zarr`. From another folder, name the
configuration's whole path and `--bundle_root <path of {name}>`. {backbone}
"""

TRUST = """
## Is it safe?

A bundle is code: its JSON may call anything in Python, and `custom/` and `scripts/` are Python.
Before the first run, from a checkout of the project that you got from somewhere else:

```
python -m scripts.bundle inspect <path of {name}.zip or of the unpacked folder>
```

It imports and runs nothing of what it looks at. A copy of it inside this bundle proves nothing.
`manifest.json` has size and sha256 of every file.
"""

LIMITS = """
## Intended use and limits

For research on electron microscopy; not for clinical use. Segmentations need proofreading
before anything is counted on them. A model fits data like those it was trained on: another
voxel size, staining or tissue needs training anew.
"""

LICENCE = """
## Licence

Apache-2.0 for the code, see `LICENSE`. Data and backbones:
[data_license.txt](data_license.txt). A model is subject to the conditions of the data and of
the backbone that it was trained with.
"""


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(item) for item in line) + " |" for line in lines)


def _cell(item: object) -> str:
    return " ".join(str(item).replace("|", "\\|").split())


def _triple(values: object) -> str:
    return " ".join(str(value) for value in values) if isinstance(values, (list, tuple)) else ""


def _number(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def picture_place(name: str) -> str:
    """Where a picture lies in the bundle."""
    return str(PurePosixPath("docs") / "images" / name)
