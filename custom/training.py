"""A training run that is taken up where it stood, and the volumes it reads."""

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer

from custom.checkpoints import TrainingCheckpoint
from custom.crop_check import refuse_crop_size
from custom.datasets import CropSampler
from custom.distributed import gathered, is_writer, rank, world_size
from custom.errors import InputError
from custom.features.backbone import BackboneSource
from custom.features.cache import CachedVolume, ids_in, open_cache, refuse_difference
from custom.features.pool import pooled
from custom.features.settings import complete_settings, load_backbone_and_spec
from custom.features.spec import FeatureSpec
from custom.folder_lock import sole_writer_of_all
from custom.interruption import STOPPED, Interruption
from custom.json_fields import picked
from custom.live import FeatureVolume, live_volumes
from custom.tensorboard import TensorBoard

logger = logging.getLogger(__name__)


class Attachable(Protocol):
    """A handler."""

    def attach(self, engine: Engine) -> None:
        """Add itself to the engine's events."""


class TrainingSession:
    """Take up training where it stood, and train to the end.

    Args:
        trainer: MONAI's, with its validation handler.
        history: attached here, so that it sees an epoch's validation.
        checkpoint: restores and saves; attached here, after everything that belongs to an epoch.
        iterations_per_epoch: batches of an epoch.
        crop_size: (D, H, W) that the network is to be trained on.
        batch_size: crops per batch.
        seed: of dropout, which is drawn anew from it, the process and the batch's number before
            every batch: a training that is taken up draws what it would have drawn.
        sampler: of the trainer's data, which leaves out what an epoch under way has had.
        evaluator: that validates; stopped after a volume when the training is to stop.
        folders: that no other run may write meanwhile, by the configuration's key.
        writer: forgets what a stopped run has drawn since it saved.
        reports: attached here, after the history that they tell of.
    """

    def __init__(
        self,
        trainer: SupervisedTrainer,
        history: Attachable,
        checkpoint: TrainingCheckpoint,
        iterations_per_epoch: int,
        crop_size: Sequence[int],
        batch_size: int,
        seed: int = 0,
        sampler: CropSampler | None = None,
        evaluator: Engine | None = None,
        folders: Mapping[str, str] | None = None,
        writer: TensorBoard | None = None,
        reports: Sequence[Attachable] = (),
    ) -> None:
        self.trainer = trainer
        self.seed = seed
        trainer.add_event_handler(Events.ITERATION_STARTED, self._seed_batch)
        for writes in (history, *reports, checkpoint):  # after a kill all of them is done again
            writes.attach(trainer)
        self.interruption, self._farewell = Interruption(), ""
        if evaluator is not None:
            evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._stop_validation)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._stop_after_batch)
        trainer.add_event_handler(Events.EPOCH_STARTED, self._stop_before_epoch)
        for engine in (trainer, evaluator):
            if engine is not None:
                engine.logger.addFilter(_says_more_than_stopped)
        self.checkpoint = checkpoint
        self.iterations_per_epoch = iterations_per_epoch
        self.crop_size, self.batch_size = crop_size, batch_size
        self.sampler = sampler
        self.folders = folders or {}
        self.writer = writer

    def _seed_batch(self, engine: Engine) -> None:
        sequence = np.random.SeedSequence((self.seed, rank(), engine.state.iteration))
        torch.manual_seed(int(sequence.generate_state(1)[0]))

    def run(self) -> None:
        """Train; a finished training is left as it is.

        Raises:
            InputError: the network cannot take the crops; another run writes the same folders; the
                checkpoint does not fit, has been trained for more epochs, or is another one in
                another process.
            SystemExit: with status ``STOPPED``: a signal has asked it to stop, and all is saved.
        """
        refuse_crop_size(self.trainer.network, self.crop_size, self.batch_size)
        with (
            sole_writer_of_all(self.folders if is_writer() else {}),
            self.interruption.listening(),
        ):
            try:
                self._take_up()
            except SystemExit:
                if is_writer():
                    sys.stderr.write(self._farewell)
                raise

    def _take_up(self) -> None:
        batches = self.checkpoint.resume(self.trainer, self.iterations_per_epoch)
        self._refuse_other_places()
        ending = batches == self.iterations_per_epoch
        self._refuse_fewer_epochs(batches)
        state = self.trainer.state
        if self.writer is not None:  # an epoch's end draws at its last batch
            self.writer.purge_from(state.iteration - ending)
        if state.epoch < state.max_epochs:
            if ending:
                self.trainer.add_event_handler(Events.STARTED, _end_epoch)
            elif self.sampler is not None:
                self.sampler.begin_at(state.epoch + 1, batches * self.batch_size)
            self.trainer.run()
        elif ending:  # ignite would begin anew
            for event in (Events.STARTED, Events.EPOCH_COMPLETED, Events.COMPLETED):
                self.trainer.fire_event(event)
        else:
            logger.info(
                "%s has been trained for %d epochs already; raise epochs (%d) to go on",
                self.checkpoint.path.parent,
                state.epoch,
                state.max_epochs,
            )

    def _stop_before_epoch(self, engine: Engine) -> None:
        if self._wished(engine):
            self._stop()

    def _stop_after_batch(self, engine: Engine) -> None:
        if self.checkpoint.between_steps(engine) and self._wished(engine):
            self.checkpoint.save(engine, engine.state.epoch - 1)
            self._stop()

    def _stop_validation(self, engine: Engine) -> None:
        state: Any = engine.state
        left = state.epoch_length - state.iteration
        if left and world_size() == 1 and self._wished(engine):  # processes have other volumes
            self._stop("; the validation that was under way will be done again")

    def _wished(self, engine: Engine) -> bool:
        return self.interruption.wished_by_any(getattr(engine.state, "device", None))

    def _stop(self, lost: str = "") -> NoReturn:
        self._farewell = (
            f"\nstopped, and saved after batch {self.trainer.state.iteration}{lost}; the same "
            f"command goes on from there\n"
        )
        raise SystemExit(STOPPED)

    def _refuse_other_places(self) -> None:
        """Processes whose ``model_dir`` is not the same folder would go on as other networks."""
        places = gathered([self.trainer.state.iteration])
        if len(set(places)) > 1:
            raise InputError(
                f"processes would go on after different batches ({', '.join(map(str, places))}): "
                f"give model_dir '{self.checkpoint.path.parent}' as a folder that all machines "
                f"share"
            )

    def _refuse_fewer_epochs(self, batches: int) -> None:
        state = self.trainer.state
        begun = batches % self.iterations_per_epoch
        if state.epoch + (begun > 0) <= state.max_epochs:
            return
        more = f" and {begun} batches of the next" if begun else ""
        raise InputError(
            f"epochs is {state.max_epochs}, but '{self.checkpoint.path}' has been trained for "
            f"{state.epoch}{more}: raise epochs, or choose another model_dir to train anew."
        )


def _says_more_than_stopped(record: logging.LogRecord) -> bool:
    """Whether a line of ignite's log is not about the end that a signal has asked for."""
    return not record.getMessage().endswith(f"terminating due to exception: {STOPPED}")


def _end_epoch(engine: Engine) -> None:
    """What comes after an epoch's last batch, for a run that was stopped before it."""
    engine.fire_event(Events.EPOCH_COMPLETED)


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
    refuse_token_channels(token_channels, volumes[0].id, volumes[0].spec)
    return volumes


def refuse_token_channels(token_channels: int, volume: str, spec: FeatureSpec) -> None:
    """Refuse features with another number of channels than the network takes.

    Args:
        token_channels: that the network takes; 0 for a raw-only network.
        volume: id of one of the volumes.
        spec: of its features.

    Raises:
        InputError: names both numbers.
    """
    if token_channels not in (0, spec.channels):
        raise InputError(
            f"token_channels is {token_channels}, but the features of '{volume}' have "
            f"{spec.channels} channels: set token_channels to {spec.channels}, or to 0 for a "
            f"network without features."
        )


def cached_section(
    cache_dir: str, section: str, volume_indices: Sequence[int | str] | None = None
) -> list[CachedVolume]:
    """Cached volumes of a section, copies too; arguments as of ``training_volumes``.

    Raises:
        InputError: as ``open_cache``, or no such volume.
    """
    ids = None
    if volume_indices is not None and (known := ids_in(cache_dir, section)):
        ids = picked(known, volume_indices, "volume_indices")
    return open_cache(cache_dir, section, ids, copies=True)


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
    volumes = cached_section(cache_dir, section, volume_indices)
    settings = complete_settings(features)
    first = volumes[0]
    same_name = isinstance(backbone, str) and backbone == first.spec.backbone
    if not (same_name and complete_settings(first.metadata["settings"]) == settings):
        _, spec = load_backbone_and_spec(backbone, settings)
        refuse_difference(first.spec, spec, first.path)
    return volumes
