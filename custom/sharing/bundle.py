"""From a trained model to one zip that MONAI downloads and runs."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import custom
from custom.errors import InputError
from custom.inspection.bundle import inspect_bundle
from custom.inspection.own_project import CODE, OwnProject
from custom.json_fields import read_object
from custom.sharing.archive import write_archive
from custom.sharing.card import model_card, picture_place
from custom.sharing.machine_paths import refuse_machine_paths, without_machine_paths
from custom.sharing.metadata import example_datalist, model_metadata, requirements
from custom.sharing.results import found_results
from custom.sharing.settings import changed_settings, trained_settings, with_settings
from custom.sharing.shipped_configs import SHIPPED_CONFIGS
from custom.sharing.trained_model import TrainedModel, check_fits, trained_model

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
RESERVED = {"con", "prn", "aux", "nul"}  # no file names on Windows
RUNS = ("train", "inference", "preprocess", "evaluate")
OWN = ("metadata.json", "datalist.json")  # written for each model
DOCUMENTS = ("docs/data_license.txt", "docs/experiments.md", "LICENSE")
CODE_SUFFIXES = (".py", ".sha256")


def share_bundle(
    name: str,
    model_dir: str | Path,
    eval_dir: str | Path,
    out: str | Path,
    own: OwnProject,
    overwrite: bool = False,
) -> Path:
    """Write ``<out>/<name>.zip``: a trained model with everything that others need to run it.

    Its configurations have the settings of the training as their defaults. The same model gives
    the same bytes.

    Args:
        name: of the bundle, and of the folder in the zip.
        model_dir: of the training.
        eval_dir: of the training and evaluating runs, for scores and pictures.
        out: folder for the zip.
        own: the project, whose code and configurations go along.
        overwrite: whether a zip may be replaced.

    Returns:
        Path of the zip.

    Raises:
        InputError: ``name`` is no file name, there is such a zip already, there is no model, its
            files do not belong together, a file would tell of a folder of this machine, or inspect
            would not call the zip safe. Nothing is written then.
    """
    path = Path(out) / f"{checked_name(name)}.zip"
    if path.exists() and not overwrite:
        raise InputError(f"'{path}' exists already: choose another name, or give --overwrite")
    model = trained_model(model_dir)
    files = _files(name, model, Path(eval_dir), own)
    places = (Path.home(), Path.cwd(), own.bundle, own.custom, model.folder, Path(eval_dir))
    refuse_machine_paths(files.items(), places)
    write_archive(path, name, custom.__version__, files, lambda part: _check(part, path, own))
    return path


def _check(part: Path, path: Path, own: OwnProject) -> None:
    """Be sure that those who inspect the zip will find nothing.

    Raises:
        InputError: they would, or could not read it.
    """
    try:
        dangers = inspect_bundle(part, own).findings.dangers
    except InputError as error:
        raise InputError(f"'{path}' was not written: {error}") from error
    if dangers:
        more = f"; and {len(dangers) - 1} more" if len(dangers) > 1 else ""
        raise InputError(
            f"'{path}' was not written, for inspect would call it unsafe: "
            f"'{dangers[0].path}': {dangers[0].what}{more}"
        )


def checked_name(name: str) -> str:
    """A name that is a file name everywhere.

    Raises:
        InputError: it is none.
    """
    bad = not NAME.fullmatch(name) or name.endswith(".") or name.split(".")[0].lower() in RESERVED
    if bad:
        raise InputError(
            f"{name!r} is no name for a bundle: take letters, digits, '.', '_' and '-', a letter "
            f"or digit first"
        )
    return name


def _files(name: str, model: TrainedModel, eval_dir: Path, own: OwnProject) -> dict[str, bytes]:
    """Contents by path inside the bundle."""
    configs = own.bundle / "configs"
    shipped = {run: _read(configs / f"{run}.json") for run in RUNS}
    overlay = configs / "multi_gpu_train.json"
    several_gpus = _read(overlay) if overlay.is_file() else {}
    description = dict(model.description)
    trained = trained_settings(description["config"], shipped["train"], several_gpus)
    changed = changed_settings(shipped["train"], trained)
    shared = {run: with_settings(content, trained) for run, content in shipped.items()}
    check_fits(model, shared["inference"])
    description = {
        **without_machine_paths({k: v for k, v in description.items() if k != "config"}),
        "config": {**shipped["train"], **trained},
    }
    model = replace(model, description=description)
    metadata = model_metadata(_read(configs / "metadata.json"), name, description)
    results = found_results(eval_dir, description)
    texts = {
        **{f"configs/{run}.json": _json(content) for run, content in shared.items()},
        "configs/metadata.json": _json(metadata),
        "configs/datalist.json": example_datalist(description),
        "models/model.json": _json(description),
        "requirements.txt": requirements(metadata),
        "docs/README.md": model_card(name, model, results, changed),
    }
    return {
        **_project_files(own),
        **{key: text.encode() for key, text in texts.items()},
        **{f"models/{file}": (model.folder / file).read_bytes() for file in model.files},
        **{picture_place(picture.name): picture.read_bytes() for picture in results.pictures},
    }


def _project_files(own: OwnProject) -> dict[str, bytes]:
    """Code, overlays, licences: what is the same for every model."""
    found = {}
    for name, folder in zip(CODE, (own.custom, own.bundle / "scripts"), strict=True):
        for path in sorted(folder.rglob("*")):
            if path.suffix in CODE_SUFFIXES and "__pycache__" not in path.parts:
                found[f"{name}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
    for name in (*SHIPPED_CONFIGS, *DOCUMENTS):
        path = own.bundle / name
        if path.is_file() and path.name not in OWN:
            found[name] = path.read_bytes()
    return found


def _read(path: Path) -> dict[str, Any]:
    return dict(read_object(path, f"configuration '{path}'"))


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=4) + "\n"
