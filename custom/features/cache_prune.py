"""What of a cache nobody needs: unfinished volumes, leftovers, entries of another datalist."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from custom.features.cache_files import (
    VolumeFiles,
    bytes_on_disk,
    copy_of,
    entry_of,
    volumes_in,
    writing,
)
from custom.features.target_files import remove_target_leftovers


@dataclass(frozen=True)
class Removable:
    """A volume, or parts of files beside a finished one, that may go.

    Args:
        files: the volume.
        reason: why it may go.
        whole: the volume; else only what a killed run left: parts of files beside it, and targets
            that its metadata do not know.
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
        folders = [self.files.arrays] if self.whole else self.files.target_leftovers
        return beside + sum(bytes_on_disk(folder) for folder in folders)

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
                remove_target_leftovers(self.files)


def removable(
    cache_dir: Path, wanted: Collection[str] | None = None, copies: int | None = None
) -> list[Removable]:
    """All that may go, in the order of the volumes.

    Args:
        cache_dir: folder of the cache.
        wanted: ids of a datalist's entries; finished volumes of others may go, too. None keeps all.
        copies: of copies with changed raw those with a higher number may go. None keeps all.

    Raises:
        InputError: the folder holds something that preprocessing did not write.
    """
    found = []
    for files in volumes_in(cache_dir):
        if not files.finished:
            found.append(Removable(files, "unfinished", whole=True))
        elif wanted is not None and entry_of(files)["id"] not in wanted:
            found.append(Removable(files, "not in the datalist", whole=True))
        elif copies is not None and copy_of(entry_of(files)) > copies:
            found.append(Removable(files, "extra copy", whole=True))
        elif files.progress.is_file() or files.parts or files.target_leftovers:
            found.append(Removable(files, "left by a run that was killed", whole=False))
    return found
