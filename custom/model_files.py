"""The files of a trained model: its weights, and what inference and a reader must know of it."""

import json
import logging
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

import custom
from custom.checkpoints import first_mismatch, load_checkpoint
from custom.distributed import is_writer
from custom.errors import InputError
from custom.features.pca import BASIS_FILE, PcaBasis
from custom.features.spec import FeatureSpec
from custom.label_classes import class_names
from custom.live import FeatureVolume
from custom.model_folder import (
    DESCRIPTION,
    complete_model,
    find_model,
    read_model,
    write_model,
)
from custom.network_settings import network_difference, network_settings
from custom.network_weights import load_weights_into
from custom.running import running_config
from custom.scores import VOI, KeyMetric
from custom.segmentation_settings import METHOD, SETTINGS
from custom.targets.classes import ClassSettings
from custom.targets.settings import TargetSettings

logger = logging.getLogger(__name__)

PREDICTS = ("output_type", "dimensions", "num_classes")  # the configuration's keys
PACKAGES = ("monai", "torch", "transformers", "numpy")


class BestModel:
    """Keep the model with the best score: ``model.pt``, ``model.safetensors``, ``model.json``.

    Attach to the evaluator.

    Args:
        model_dir: folder for the files.
        network: its state dict is saved.
        description: what ``model.json`` says beside epoch, scores and segmentation settings.
        basis: of reduced features, saved as ``pca.safetensors``, for inference from raw.
        key: the score that decides.
    """

    def __init__(
        self,
        model_dir: str,
        network: nn.Module,
        description: Mapping[str, Any],
        basis: PcaBasis | None = None,
        key: KeyMetric = VOI,
    ) -> None:
        self.model_dir = Path(model_dir)
        self.network = network
        self.description = description
        self.basis = basis
        self.key = key
        self.best = key.worst

    def attach(self, engine: Engine) -> None:
        """Run after every validation."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save the model if it is the best so far."""
        state: Any = engine.state
        score = float(state.metrics[self.key.name])
        if not self.key.better(score, self.best):
            return
        self.best = score
        if not is_writer():
            return
        found = {
            "epoch": state.epoch,
            SETTINGS: getattr(state, "segmentation", {}),
            METHOD: getattr(state, "segmentation_method", None),
            "key_metric": self.key.name,
            "validation": dict(state.metrics),
            "volume_scores": getattr(state, "volume_scores", {}),
        }
        self._save(found)
        logger.info("epoch %d: best model so far, %s %.3f", state.epoch, self.key.title, score)

    def _save(self, found: Mapping[str, Any]) -> None:
        weights = {  # copies: safetensors takes no two names of the same memory
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, value in self.network.state_dict().items()
        }
        others = {} if self.basis is None else {BASIS_FILE: self.basis.to_bytes()}
        write_model(self.model_dir, weights, {**self.description, **found}, others)

    def state_dict(self) -> dict[str, Any]:
        """Best score so far and what it was reached on, for the checkpoint."""
        known = {name: self.description.get(name) for name in ("features", *PREDICTS)}
        network = network_settings(self.description.get("config", {}))
        return {self.key.name: self.best, **known, "network": network}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Best score of the run that is taken up.

        Raises:
            ValueError: that run was trained on other features, to predict something else, with
                another network, or chose its best model by another score.
        """
        for name in PREDICTS:
            before, now = state.get(name), self.description.get(name)
            if before is not None and before != now:
                raise ValueError(f"trained with {name} {before!r}, not {now!r}")
        if self.key.name not in state:
            raise ValueError(f"its best model was chosen by another score than {self.key.name}")
        network = network_settings(self.description.get("config", {}))
        if different := network_difference(state.get("network", {}), network):
            raise ValueError(f"trained with a network that differs in: {', '.join(different[:3])}")
        before, now = state.get("features"), self.description.get("features")
        if before and now and self._sees_features():
            difference = FeatureSpec.from_json(before).difference(FeatureSpec.from_json(now))
            if difference:
                raise ValueError(f"trained on features that differ in: {', '.join(difference)}")
        self.best = self._score_of_the_model(state)

    def _score_of_the_model(self, state: Mapping[str, Any]) -> float:
        """Score of the model that is there: only a better one may take its place.

        It may be better than the checkpoint knows, if the run was stopped between the two.
        """
        described = complete_model(self.model_dir) if is_writer() else find_model(self.model_dir)
        if described is None:
            if self.key.worst != state.get(self.key.name, self.key.worst):
                logger.warning(
                    "the best model so far is not in '%s' any more, or its files do not belong "
                    "together: the next validation's takes its place",
                    self.model_dir,
                )
            return self.key.worst
        score = described.get("validation", {}).get(self.key.name)
        return float(state.get(self.key.name, self.key.worst) if score is None else score)

    def _sees_features(self) -> bool:
        """Whether features matter to the network: one on raw alone may go on beside any."""
        return getattr(self.network, "fusion", self) is not None


def model_description(
    volumes: Sequence[FeatureVolume],
    validation: Sequence[FeatureVolume],
    targets: TargetSettings,
) -> dict[str, Any]:
    """What inference, and a reader, must know of a model.

    Args:
        volumes: training volumes.
        validation: validation volumes.
        targets: that the network learned.

    Returns:
        FeatureSpec, what is predicted (``PREDICTS``), offsets, sigma, channel order, ids of the
        labels' classes (None where labels have none), data split, configuration and versions, plain
        JSON values; of predicted classes (else None) their names and what labels meant; with
        reduced features also the name of their basis' file.
    """
    class_ids = volumes[0].metadata.get("entry", {}).get("class_ids")
    sizes = list(dict.fromkeys(volume.voxel_size_nm for volume in volumes))
    split = {
        name: list({v.id: {"id": v.id, **v.metadata["roi"]} for v in part}.values())
        for name, part in (("training", volumes), ("validation", validation))
    }  # copies of a volume are no more data than the volume
    return {
        "features": volumes[0].spec.to_json(),
        **({} if volumes[0].spec.pca is None else {"basis": BASIS_FILE}),
        **_predicted(targets),
        "affinity_offsets": [list(offset) for offset in targets.affinity_offsets],
        "lsd_sigma_nm": targets.lsd_sigma_nm,
        "predicted_classes": _classes(targets.classes, class_ids),
        "voxel_size_nm": list(sizes[0]),
        "other_voxel_sizes_nm": [list(size) for size in sizes[1:]],
        "classes": class_ids,
        "split": split,
        "config": json.loads(json.dumps(running_config(), default=str)),
        "versions": {
            "custom": custom.__version__,
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
        },
    }


def _predicted(targets: TargetSettings) -> dict[str, Any]:
    """The values of ``PREDICTS``, and where each kind lies along the channel axis."""
    layout = targets.layout
    kinds = {"classes": layout.classes} if layout.num_classes else {}
    kinds = kinds or {"affinities": layout.affinities, "lsds": layout.lsds}
    return {
        "output_type": layout.output_type,
        "dimensions": targets.dimensions,
        "num_classes": layout.num_classes or None,
        "channels": {kind: [place.start, place.stop] for kind, place in kinds.items()},
    }


def _classes(
    classes: ClassSettings | None, ids: Mapping[str, int | str] | None
) -> dict[str, Any] | None:
    """Names of the predicted classes, and what ids of labels mean, which evaluating asks for."""
    if classes is None:
        return None
    return {
        "names": class_names(ids, classes.num_classes),
        "ignore_label": classes.ignore_label,
        "class_of_labels": classes.of_labels,
    }


def read_description(model_dir: str | Path) -> dict[str, Any]:
    """``model.json`` of a model.

    Raises:
        InputError: there is none, it is damaged, or of another ``model.pt``.
    """
    found = read_model(Path(model_dir))
    missing = [key for key in ("features", "affinity_offsets") if key not in found]
    if missing:
        raise InputError(
            f"model description '{Path(model_dir) / DESCRIPTION}' lacks '{missing[0]}': train "
            f"again."
        )
    return found


def load_weights(model_dir: str | Path, network: nn.Module) -> None:
    """Load ``model.pt`` into the network that it was trained as.

    Raises:
        InputError: the file is damaged, or of another network.
    """
    path = Path(model_dir) / "model.pt"
    weights = load_checkpoint(path)
    try:
        load_weights_into(network, weights)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"model '{path}' is of another network than network_def: {first_mismatch(error)}."
        ) from error


def refuse_other_features(
    model_dir: str | Path, description: Mapping[str, Any], spec: FeatureSpec
) -> None:
    """A model must see the features that it was trained on.

    Args:
        model_dir: folder of the model, for messages.
        description: its ``model.json``.
        spec: features that it will be given.

    Raises:
        InputError: these are others.
    """
    difference = FeatureSpec.from_json(description["features"]).difference(spec)
    if len(difference) == 1 and difference[0].startswith("pca_digest"):
        raise InputError(
            f"model '{model_dir}' was trained on components of another basis than the "
            f"'{BASIS_FILE}' of these features: put back the one that it was trained with."
        )
    if difference:
        raise InputError(
            f"model '{model_dir}' was trained on features that differ from the request "
            f"in: {', '.join(difference)}; use its backbone and features, or train again."
        )
