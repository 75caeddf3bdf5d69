"""A training run that can be stopped at any moment and taken up again."""

import io
import json
import logging
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from safetensors.torch import save_file
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

import custom
from custom.channels import ChannelLayout
from custom.errors import InputError
from custom.features.backbone import BackboneSource
from custom.features.cache import CachedVolume, ids_in, open_cache, refuse_difference
from custom.features.pca import BASIS_FILE, PcaBasis
from custom.features.pool import pooled
from custom.features.settings import complete_settings, load_backbone_and_spec
from custom.files import name_file
from custom.json_fields import picked, read_object
from custom.live import FeatureVolume, live_volumes
from custom.preflight import running_config

logger = logging.getLogger(__name__)

MODEL_FILES = ("model.pt", "model.safetensors", "model.json")  # and pca.safetensors
PACKAGES = ("monai", "torch", "transformers", "numpy")


class Stateful(Protocol):
    """What a checkpoint can hold."""

    def state_dict(self) -> Any:
        """All that is needed to go on."""

    def load_state_dict(self, state: Any) -> Any:
        """Go on from there."""


class Attachable(Protocol):
    """A handler."""

    def attach(self, engine: Engine) -> None:
        """Add itself to the engine's events."""


class SchedulePosition:
    """How far a learning-rate schedule has come, for the checkpoint; its form is the config's.

    A scheduler's own state dict holds its form too, such as the length of a cosine: restored, it
    would overrule ``epochs`` and ``learning_rate`` of the run that goes on.

    Args:
        scheduler: stepped by a handler.
    """

    KEPT = ("last_epoch", "_step_count", "_last_lr")

    def __init__(self, scheduler: LRScheduler) -> None:
        self.scheduler = scheduler

    def state_dict(self) -> dict[str, Any]:
        """Steps so far and the last learning rates."""
        state = self.scheduler.state_dict()
        return {name: state[name] for name in self.KEPT}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the position of the run that is taken up."""
        position = {name: state[name] for name in self.KEPT}
        self.scheduler.load_state_dict({**self.scheduler.state_dict(), **position})


class TrainingCheckpoint:
    """Everything that training needs to go on, in one file, written at the end of every epoch.

    It is written at the start of a new training too: a ``model.pt`` without it beside it is the
    result of another training, and is not overwritten.

    Args:
        path: of the file.
        parts: by name, what is saved and restored: network, optimizer, schedule, history, best
            model.
    """

    def __init__(self, path: str, parts: Mapping[str, Stateful]) -> None:
        self.path = Path(path)
        self.parts = parts

    def attach(self, engine: Engine) -> None:
        """Save at the start and after every epoch."""
        engine.add_event_handler(Events.STARTED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        save_atomically({"epoch": engine.state.epoch, **state}, self.path)

    def resume(self, engine: Engine, iterations_per_epoch: int) -> None:
        """Restore all parts and the engine's epoch, if there is a checkpoint.

        Raises:
            InputError: the file is not such a checkpoint, or of another network; there is none, but
                the model of another training.
        """
        if not self.path.exists():
            self._refuse_other_model()
            return
        state = load_checkpoint(self.path)
        for name, part in self.parts.items():
            try:
                part.load_state_dict(state[name])
            except (KeyError, RuntimeError, ValueError, TypeError) as error:
                raise InputError(
                    f"checkpoint '{self.path}' does not fit this configuration "
                    f"({name}: {first_mismatch(error)}): go back to the one it was made with, or "
                    f"choose another model_dir to train anew."
                ) from error
        engine.state.epoch = state["epoch"]
        engine.state.iteration = state["epoch"] * iterations_per_epoch
        logger.info("going on after epoch %d from %s", state["epoch"], self.path)

    def _refuse_other_model(self) -> None:
        model = self.path.with_name("model.pt")
        if model.exists():
            raise InputError(
                f"model_dir '{self.path.parent}' holds model.pt, but no {self.path.name} to go on "
                f"from: choose another model_dir, or move the model away to train anew."
            )


class BestModel:
    """Keep the model with the lowest VOI: ``model.pt``, ``model.safetensors``, ``model.json``.

    Attach to the evaluator.

    Args:
        model_dir: folder for the files.
        network: its state dict is saved.
        description: what ``model.json`` says beside epoch, scores and segmentation settings.
        basis: of reduced features, saved as ``pca.safetensors``, for inference from raw.
    """

    def __init__(
        self,
        model_dir: str,
        network: nn.Module,
        description: Mapping[str, Any],
        basis: PcaBasis | None = None,
    ) -> None:
        self.model_dir = Path(model_dir)
        self.network = network
        self.description = description
        self.basis = basis
        self.voi = float("inf")

    def attach(self, engine: Engine) -> None:
        """Run after every validation."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save the model if it is the best so far."""
        if engine.state.metrics["voi"] >= self.voi:
            return
        self.voi = engine.state.metrics["voi"]
        state: Any = engine.state
        found = {"epoch": state.epoch, "segmentation": state.segmentation}
        self._save({**found, "validation": dict(state.metrics)})
        logger.info("epoch %d: best model so far, VOI %.3f", state.epoch, self.voi)

    def _save(self, found: Mapping[str, Any]) -> None:
        weights = {k: v.detach().cpu().contiguous() for k, v in self.network.state_dict().items()}
        described = json.dumps({**self.description, **found}, indent=2)
        names = MODEL_FILES if self.basis is None else (*MODEL_FILES, BASIS_FILE)
        with ExitStack() as files:  # all are written before the first takes its place
            parts = [files.enter_context(_replacing(self.model_dir / name)) for name in names]
            parts[0].write_bytes(_saved(weights))
            save_file(weights, parts[1])
            parts[2].write_text(described)
            if self.basis is not None:
                parts[3].write_bytes(self.basis.to_bytes())

    def state_dict(self) -> dict[str, float]:
        """Best score so far, for the checkpoint."""
        return {"voi": self.voi}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Best score of the run that is taken up."""
        self.voi = state["voi"]


class TrainingSession:
    """Take up training where it stood, and train to the end.

    Args:
        trainer: MONAI's, with its validation handler.
        history: attached here, so that it sees an epoch's validation.
        checkpoint: restores and saves; attached here, after everything that it saves.
        iterations_per_epoch: steps of an epoch.
    """

    def __init__(
        self,
        trainer: SupervisedTrainer,
        history: Attachable,
        checkpoint: TrainingCheckpoint,
        iterations_per_epoch: int,
    ) -> None:
        self.trainer = trainer
        history.attach(trainer)
        checkpoint.attach(trainer)
        self.checkpoint = checkpoint
        self.iterations_per_epoch = iterations_per_epoch

    def run(self) -> None:
        """Train; a finished training is left as it is.

        Raises:
            InputError: the checkpoint does not fit.
        """
        self.checkpoint.resume(self.trainer, self.iterations_per_epoch)
        state = self.trainer.state
        if state.epoch >= state.max_epochs:
            logger.info(
                "%s has been trained for %d epochs already; raise epochs (%d) to go on",
                self.checkpoint.path.parent,
                state.epoch,
                state.max_epochs,
            )
            return
        self.trainer.run()


def training_volumes(
    cache_dir: str,
    section: str,
    backbone: BackboneSource,
    features: Mapping[str, Any],
    token_channels: int,
    source: str = "cache",
    datalist: str = "",
    device: str | torch.device = "cpu",
    windows_at_once: int | None = None,
    compile: bool = False,
    volume_indices: Sequence[int | str] | None = None,
    pool_gib: float = 0,
) -> Sequence[FeatureVolume]:
    """Volumes of a section, with features as the config says.

    Args:
        cache_dir: folder of the cache; for "raw" of one that holds the basis of reduced features.
        section: "training" or "validation".
        backbone: as in ``load_backbone``.
        features: the config's ``features``.
        token_channels: that the network takes; 0 for a raw-only network.
        source: "cache": read features from the cache; "raw": extract them whenever they are asked
            for, which needs no preprocessing and takes a forward pass of every window of a crop.
        datalist: path, for "raw".
        device: where the backbone computes, for "raw".
        windows_at_once: batch size of the forward pass, for "raw"; ``None`` for as many as fit into
            memory.
        compile: run the backbone through torch.compile, for "raw".
        volume_indices: only these volumes of the section, by id or by position from 0 on; None for
            all.
        pool_gib: size of the memory in which volumes of a cache are kept (``pooled``), per process.

    Raises:
        InputError: no such volumes, or volumes of other features or another number of channels;
            unknown source; a pool for "raw".
    """
    if source not in ("cache", "raw"):
        raise InputError(f"source must be 'cache' or 'raw', got {source!r}.")
    if source == "raw" and pool_gib:
        raise InputError("pool_gib keeps volumes of a cache: with source 'raw', set it to 0.")
    volumes: Sequence[FeatureVolume] = (
        pooled(
            _cached_volumes(cache_dir, section, backbone, features, volume_indices),
            pool_gib,
            tokens=token_channels > 0,
        )
        if source == "cache"
        else live_volumes(
            *(datalist, section, backbone, features, device, cache_dir),
            windows_at_once=windows_at_once,
            compile=compile,
            volume_indices=volume_indices,
        )
    )
    channels = volumes[0].spec.channels
    if token_channels not in (0, channels):
        raise InputError(
            f"token_channels is {token_channels}, but the features of '{volumes[0].id}' have "
            f"{channels} channels: set token_channels to {channels}, or to 0 for a network without "
            f"features."
        )
    return volumes


def _cached_volumes(
    cache_dir: str,
    section: str,
    backbone: BackboneSource,
    features: Mapping[str, Any],
    volume_indices: Sequence[int | str] | None,
) -> list[CachedVolume]:
    """Cached volumes of a section, if they were made as the config says.

    Where the backbone's name and all settings are those that the cache was made with, the backbone
    is not loaded; otherwise it is, and the weights decide.
    """
    ids = None
    if volume_indices is not None and (known := ids_in(cache_dir, section)):
        ids = picked(known, volume_indices, "volume_indices")
    volumes = open_cache(cache_dir, section, ids, copies=True)
    settings = complete_settings(features)
    first = volumes[0]
    same_name = isinstance(backbone, str) and backbone == first.spec.backbone
    if not (same_name and complete_settings(first.metadata["settings"]) == settings):
        _, spec = load_backbone_and_spec(backbone, settings)
        refuse_difference(first.spec, spec, first.path)
    return volumes


def model_description(
    volumes: Sequence[FeatureVolume],
    validation: Sequence[FeatureVolume],
    affinity_offsets: Sequence[Sequence[int]],
    lsd_sigma_nm: float | None,
) -> dict[str, Any]:
    """What inference, and a reader, must know of a model.

    Args:
        volumes: training volumes.
        validation: validation volumes.
        affinity_offsets: voxels, zyx.
        lsd_sigma_nm: None without LSDs.

    Returns:
        FeatureSpec, offsets, sigma, channel order, ids of the labels' classes (None where labels
        have none), data split, configuration and versions, plain JSON values; with reduced features
        also the name of their basis' file.
    """
    layout = ChannelLayout(len(affinity_offsets), 10 if lsd_sigma_nm else 0)
    split = {
        name: list({v.id: {"id": v.id, **v.metadata["roi"]} for v in part}.values())
        for name, part in (("training", volumes), ("validation", validation))
    }  # copies of a volume are no more data than the volume
    return {
        "features": volumes[0].spec.to_json(),
        **({} if volumes[0].spec.pca is None else {"basis": BASIS_FILE}),
        "affinity_offsets": [list(offset) for offset in affinity_offsets],
        "lsd_sigma_nm": lsd_sigma_nm,
        "channels": {
            "affinities": [0, layout.num_affinities],
            "lsds": [layout.num_affinities, layout.num_outputs],
        },
        "voxel_size_nm": list(volumes[0].voxel_size_nm),
        "classes": volumes[0].metadata.get("entry", {}).get("class_ids"),
        "split": split,
        "config": json.loads(json.dumps(running_config(), default=str)),
        "versions": {
            "custom": custom.__version__,
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
        },
    }


def read_description(model_dir: str | Path) -> dict[str, Any]:
    """``model.json`` of a model.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = Path(model_dir) / "model.json"
    if not path.exists() or not (path.parent / "model.pt").exists():
        raise InputError(
            f"model_dir '{model_dir}' holds no trained model (model.pt and model.json): run "
            f"training first, or name the folder that has them."
        )
    found = read_object(path, f"model description '{path}'")
    missing = [key for key in ("features", "affinity_offsets") if key not in found]
    if missing:
        raise InputError(f"model description '{path}' lacks '{missing[0]}': train again.")
    return dict(found)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content; only tensors and plain values are ever loaded.

    Raises:
        InputError: the file cannot be read as such.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler met
        raise InputError(
            f"checkpoint '{path}' is damaged or not a checkpoint ({type(error).__name__}): restore "
            f"it, or choose another model_dir to train anew."
        ) from error
    if not isinstance(state, dict):
        raise InputError(
            f"checkpoint '{path}' is not a checkpoint: restore it, or choose another model_dir to "
            f"train anew."
        )
    return state


def first_mismatch(error: BaseException) -> str:
    """The first of a message's lines that says something in particular, for one sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    found = next((line for line in lines if not line.endswith(":")), type(error).__name__)
    return found.rstrip(".")


def save_atomically(state: Mapping[str, Any], path: Path) -> None:
    """``torch.save`` that leaves either the old or the whole new file."""
    with _replacing(path) as part:
        part.write_bytes(_saved(state))


def _saved(state: Mapping[str, Any]) -> bytes:
    """What ``torch.save`` writes; its own errors do not say that a disk is full."""
    content = io.BytesIO()
    torch.save(dict(state), content)
    return content.getvalue()


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to; renamed to ``path`` if all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        part.chmod(0o644)  # safetensors writes files that only their owner may read
        os.replace(part, path)
    except OSError as error:
        name_file(error, path)
        raise
    finally:
        part.unlink(missing_ok=True)
