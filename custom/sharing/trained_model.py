"""The model that is shared: its files, which must belong together."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from safetensors import SafetensorError
from safetensors.torch import load_file

from custom.checkpoints import load_checkpoint
from custom.errors import InputError
from custom.features.pca import BASIS_FILE, read_basis
from custom.model_files import load_weights, read_description

SAFE = "model.safetensors"


@dataclass(frozen=True)
class TrainedModel:
    """A model whose files have been checked.

    Args:
        folder: that they lie in.
        description: content of ``model.json``.
        files: names of the others.
        epochs_done: that its training has come to; None where nothing says so.
        stopped_early: whether early stopping has ended it.
    """

    folder: Path
    description: Mapping[str, Any]
    files: tuple[str, ...]
    epochs_done: int | None
    stopped_early: bool = False

    @property
    def epochs(self) -> int | None:
        """That its training was to last."""
        found = self.description["config"].get("epochs")
        return found if isinstance(found, int) else None

    @property
    def interrupted(self) -> bool:
        """Whether its training has not come to its end."""
        done, wanted = self.epochs_done, self.epochs
        before = done is not None and wanted is not None and done < wanted
        return before and not self.stopped_early


def trained_model(model_dir: str | Path) -> TrainedModel:
    """The model in a folder.

    Raises:
        InputError: there is none, it was trained without a configuration, or its files are not of
            one model.
    """
    folder = Path(model_dir)
    description = read_description(folder)
    if "network_def" not in description.get("config", {}):
        raise InputError(
            f"model '{folder}' was trained without a configuration, so nobody could run it: only "
            f"what the bundle's training run made can be shared"
        )
    weights = load_checkpoint(folder / "model.pt")
    _check_same(folder, weights)
    files = ["model.pt", SAFE]
    wanted = description["features"].get("pca_digest")
    if wanted is not None:
        basis = read_basis(folder, "put back the one that training wrote there")
        if basis.digest != wanted:
            raise _not_of_one_model(folder, BASIS_FILE)
        files.append(BASIS_FILE)
    done, early = _progress(folder / "last.pt", description["config"].get("early_stopping"))
    return TrainedModel(folder, description, tuple(files), done, early)


def check_fits(model: TrainedModel, config: Mapping[str, Any]) -> None:
    """The network of a configuration must take the weights.

    Raises:
        InputError: it does not, or cannot be built.
    """
    parser = ConfigParser(deepcopy(dict(config)))  # MONAI changes nested settings in place
    parser["bootstrap"] = None  # whoever is here has found the modules already
    try:
        network = parser.get_parsed_content("network_def")
    except Exception as error:  # MONAI wraps whatever building it led to
        reason = str(error.__cause__ or error).splitlines()[0]
        raise InputError(
            f"the network that model '{model.folder}' was trained as cannot be built from its "
            f"configuration ({reason}): share it with the version of the project that trained it"
        ) from error
    load_weights(model.folder, network)


def _check_same(folder: Path, weights: Mapping[str, Any]) -> None:
    """``model.safetensors`` must hold what ``model.pt`` holds."""
    path = folder / SAFE
    if not path.is_file():
        raise InputError(f"model_dir '{folder}' lacks {SAFE}: put back the one that training wrote")
    try:
        others = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"'{path}' is damaged: put back the one that training wrote") from error
    same = weights.keys() == others.keys() and all(
        value.dtype == others[name].dtype and torch.equal(value, others[name])
        for name, value in weights.items()
    )
    if not same:
        raise _not_of_one_model(folder, SAFE)


def _not_of_one_model(folder: Path, name: str) -> InputError:
    return InputError(
        f"model.pt and {name} in '{folder}' are not of one model: put back the files that one "
        f"training wrote"
    )


def _progress(path: Path, patience: object) -> tuple[int | None, bool]:
    """Epochs that the training's checkpoint has seen the end of; whether it was stopped early.

    Args:
        path: of the checkpoint.
        patience: validations without a better score that end the training.
    """
    if not path.is_file():
        return None, False
    found = load_checkpoint(path)
    done, vain = found.get("epoch"), found.get("early_stopping", {}).get("without_better", 0)
    early = isinstance(patience, int) and vain >= patience
    return int(done) if isinstance(done, int) else None, early
