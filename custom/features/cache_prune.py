"""What of a cache nobody needs: unfinished volumes, leftovers, entries of another datalist."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from custom.features.cache_files import (
    VolumeFiles,
    bytes_on_disk,
    entry_of,
    volumes_in,
    writing,
)


@dataclass(frozen=True)
class Removable:
    """A volume, or parts of files beside a finished one, that may go.

    Args:
        files: the volume.
        reason: why it may go.
        whole: the volume; else only parts of files that a killed run left beside it.
    """

    files: VolumeFiles
    reason: str
    whole: bool

    @property
    def size(self) -> int:
        """Bytes on disk."""
        marks = [self.files.metadata, self.files.progress, *self.files.parts]
        paths = marks if self.whole else self._beside()
        beside = sum(path.stat().st_size for path in paths if path.is_file())
        return beside + (bytes_on_disk(self.files.arrays) if self.whole else 0)

    def _beside(self) -> list[Path]:
        return [path for path in (self.files.progress, *self.files.parts) if path.is_file()]

    def remove(self) -> None:
        """Remove it; killed midway, it can be removed again.

        Raises:
            InputError: it cannot be removed.
        """
        with writing(self.files.cache_dir):
            if self.whole:
                self.files.remove()
            else:
                self.files.remove_progress()


def removable(cache_dir: Path, wanted: Collection[str] | None = None) -> list[Removable]:
    """All that may go, in the order of the volumes.

    Args:
        cache_dir: folder of the cache.
        wanted: ids of a datalist's entries; finished volumes of others may go, too. None keeps all.

    Raises:
        InputError: the folder holds something that preprocessing did not write.
    """
    found = []
    for files in volumes_in(cache_dir):
        if not files.finished:
            found.append(Removable(files, "unfinished", whole=True))
        elif wanted is not None and entry_of(files)["id"] not in wanted:
            found.append(Removable(files, "not in the datalist", whole=True))
        elif files.progress.is_file() or files.parts:
            found.append(Removable(files, "left by a run that was killed", whole=False))
    return found
