"""How much rarer one answer is than another in the training volumes: weights for the loss."""

import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from funlib.geometry import Roi
from numpy.typing import NDArray
from torch import Tensor

from custom.distributed import gathered, is_writer
from custom.errors import InputError
from custom.files import write_atomically
from custom.json_fields import hint, read_object
from custom.live import FeatureVolume
from custom.targets.boundary_settings import UNWEIGHTED
from custom.targets.halo import target_halo
from custom.targets.settings import TargetSettings
from custom.transforms import LabelsToTargetsd
from custom.truth import Truth

logger = logging.getLogger(__name__)

MEASURED = "measured"
LIMITS = (0.01, 100.0)
"""No weight is outside, however rare an answer is."""

BLOCK = 96  # voxels along every axis; what is read at once, beside the halo


def class_balance(
    wanted: str | float | Sequence[float] | None,
    volumes: Sequence[FeatureVolume],
    targets: TargetSettings,
    path: str,
) -> float | Sequence[float] | None:
    """Weights of positives, one per affinity offset, or of classes, for a loss.

    "measured" counts every voxel of the training volumes that a target counts at, once: the result
    is kept in a file and taken from there as long as volumes and targets are the same, so a run
    that is taken up has the weights that it began with. One process counts for all.

    - Affinities: negatives / positives of each offset, between 0.01 and 100.
    - Classes: n / (N n_c) of n voxels, N classes and n_c voxels of the class, between 0.01 and 100,
      then divided by the mean over the classes that occur. One that does not has 1.

    Args:
        wanted: the config's ``class_balance``: None, "measured", or the weights themselves, which
            the loss checks.
        volumes: of the training; copies of a volume count once.
        targets: settings of the targets.
        path: of the JSON file with what was measured.

    Returns:
        What a loss takes as ``positive_weight`` or ``class_weights``; None: no weights.

    Raises:
        InputError: another word than "measured"; the file is damaged.
    """
    if not isinstance(wanted, str):
        return wanted
    if wanted != MEASURED:
        raise InputError(
            f"class_balance must be null, '{MEASURED}' or a list of weights, got "
            f"{wanted!r}{hint(wanted, [MEASURED])}"
        )
    mine = [_measured(volumes, targets, Path(path))] if is_writer() else []
    return gathered(mine)[0]


def _measured(
    volumes: Sequence[FeatureVolume], targets: TargetSettings, path: Path
) -> Sequence[float]:
    """Weights from the file, or from the volumes and then in the file."""
    basis = _basis(volumes, targets)
    found = _stored(path, basis)
    if found is None:
        found = measured_weights(count_answers(volumes, targets))
        content = {"measured_on": basis, "weights": found}
        write_atomically(path, json.dumps(content, indent=1).encode())
        logger.info("class balance measured: %s", ", ".join(f"{w:.3g}" for w in found))
    return found


def count_answers(volumes: Sequence[FeatureVolume], targets: TargetSettings) -> NDArray[np.int64]:
    """How often each answer is the true one, over all voxels that count, block by block.

    Args:
        volumes: with labels; those without are left out, of copies all but one.
        targets: settings of the targets.

    Returns:
        (K, 2), negatives and positives of every affinity offset; or (N,), voxels of every class.

    Raises:
        InputError: labels are not of these classes.
    """
    plain = _counted(targets)
    layout = plain.layout
    counts = np.zeros(layout.num_classes or (layout.num_affinities, 2), np.int64)
    for volume in {v.id: v for v in volumes if v.has_labels}.values():
        for target in _targets(volume, plain):
            valid = target[layout.valid] > 0
            if plain.classes:
                ids = target[layout.class_id][valid].long()
                counts += torch.bincount(ids, minlength=layout.num_classes).numpy()
                continue
            truth = target[layout.affinities] > 0.5
            for answer in (0, 1):
                found = (truth == bool(answer)) & valid
                counts[:, answer] += found.flatten(1).sum(dim=1).numpy()
    return counts


def measured_weights(counts: NDArray[np.int64]) -> list[float]:
    """Weights from what was counted, as ``class_balance`` defines them; 1 where nothing was."""
    if counts.ndim == 1:
        return _class_weights(counts)
    negatives, positives = counts[:, 0], counts[:, 1]
    ratio = np.clip(negatives / np.maximum(positives, 1), *LIMITS)
    weights: list[float] = np.where(counts.sum(axis=1) > 0, ratio, 1.0).tolist()
    return weights


def _class_weights(counts: NDArray[np.int64]) -> list[float]:
    """Weights of classes; their mean is 1 over those that occur."""
    occurs = counts > 0
    share = len(counts) * np.maximum(counts, 1) / max(1, counts.sum())
    weights = np.where(occurs, np.clip(1 / share, *LIMITS), 1.0)
    if occurs.any():
        weights[occurs] /= weights[occurs].mean()
    found: list[float] = weights.tolist()
    return found


def _counted(targets: TargetSettings) -> TargetSettings:
    """The settings that matter to what is counted."""
    return replace(targets, lsd_sigma_nm=None, lsd_downsample=(1, 1, 1), boundary=UNWEIGHTED)


def _targets(volume: FeatureVolume, targets: TargetSettings) -> Iterator[Tensor]:
    """Target tensors (T, D, H, W) of a volume's blocks, as training sees them."""
    transform = LabelsToTargetsd(targets)
    truth = Truth(volume, targets.classes)
    halo = target_halo(targets, volume.voxel_size_nm)
    for block in _blocks(volume.shape):
        labels, mask = truth.read(block.grow(halo, halo))
        yield transform(
            {
                "image": torch.empty(1, *block.shape),  # its size alone is looked at
                "labels": torch.from_numpy(labels)[None],
                "mask": torch.from_numpy(mask)[None],
                "voxel_size_nm": torch.tensor(volume.voxel_size_nm, dtype=torch.float64),
            }
        )["label"]


def _blocks(shape: Sequence[int]) -> Iterator[Roi]:
    """Blocks that tile a volume."""
    for corner in itertools.product(*(range(0, size, BLOCK) for size in shape)):
        yield Roi(corner, [min(BLOCK, n - c) for c, n in zip(corner, shape, strict=True)])


def _basis(volumes: Sequence[FeatureVolume], targets: TargetSettings) -> dict[str, Any]:
    """What counts depend on, as plain JSON values."""
    found = {
        v.id: {
            "roi": v.metadata["roi"],
            "voxel_size_nm": list(v.voxel_size_nm),
            "entry": {k: e for k, e in v.metadata["entry"].items() if k != "copy"},
        }
        for v in volumes
    }
    basis: dict[str, Any] = json.loads(
        json.dumps({"volumes": found, "targets": asdict(_counted(targets))}, default=str)
    )
    return basis


def _stored(path: Path, basis: dict[str, Any]) -> list[float] | None:
    """Weights that were measured on the same, if there are any."""
    if not path.is_file():
        return None
    content = read_object(path, f"class balance '{path}'")
    if content.get("measured_on") != basis:
        logger.info("class balance is measured again: volumes or targets are others")
        return None
    weights: list[float] = content["weights"]
    return weights
