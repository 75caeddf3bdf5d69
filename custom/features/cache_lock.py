"""One process at a time may write a cache."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from custom.features.cache_files import writing
from custom.folder_lock import sole_writer


@contextmanager
def exclusive(cache_dir: Path) -> Iterator[None]:
    """Hold a cache for writing; the lock goes with the process, however it ends.

    Raises:
        InputError: another process holds it, or the folder may not be written.
    """
    with ExitStack() as held:
        with writing(cache_dir):
            held.enter_context(sole_writer(cache_dir, "cache_dir"))
        yield
