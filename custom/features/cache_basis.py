"""The basis that the features of a cache are coordinates in: one per cache, beside its volumes."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from custom.errors import InputError
from custom.features.cache_files import writing
from custom.features.pca import BASIS_FILE, PcaBasis, read_basis
from custom.features.spec import FeatureSpec
from custom.files import write_atomically

logger = logging.getLogger(__name__)


def basis_of(spec: FeatureSpec, folder: Path) -> PcaBasis:
    """The basis of a spec's features, from the folder of their cache.

    Raises:
        InputError: it is missing or damaged, or another one.
    """
    advice = "put back the one that preprocessing wrote there, or extract again into another folder"
    basis = read_basis(folder, advice)
    if basis.digest != spec.pca_digest:
        raise InputError(
            f"'{folder / BASIS_FILE}' is not the basis that the features beside it were made with: "
            f"{advice}."
        )
    return basis


def stored_or_fitted(
    folder: Path, finished: Sequence[FeatureSpec], fit: Callable[[], PcaBasis]
) -> PcaBasis:
    """The basis of a cache that is being written; stored first, where there is none yet.

    A basis is never replaced: a volume that comes later is reduced like the first ones, and one
    that was put there from another cache is taken.

    Args:
        folder: of the cache.
        finished: specs of the volumes that are there.
        fit: makes the basis of a cache without volumes.

    Raises:
        InputError: there are volumes, but their basis is missing; it is damaged or cannot be
            written.
    """
    path = folder / BASIS_FILE
    with writing(path):
        for part in folder.glob(f".{BASIS_FILE}.*"):  # left by a run that was killed
            part.unlink()
    if finished:
        bases = [basis_of(spec, folder) for spec in finished]
        return bases[0]
    if path.is_file():
        return read_basis(folder, "remove it, and run preprocessing again")
    basis = fit()
    with writing(path):
        write_atomically(path, basis.to_bytes())
    logger.info(
        "%s: %d components keep %.1f %% of the variance", path, basis.size, 100 * basis.explained
    )
    return basis
