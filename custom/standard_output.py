"""What libraries print, kept from the user's terminal."""

import contextlib
import io
import os
import sys
import threading
from collections.abc import Iterator

_LOCK = threading.Lock()  # the file descriptor is the process's, not a thread's


@contextlib.contextmanager
def standard_output_dropped() -> Iterator[None]:
    """Drop what is written to standard output, by compiled code too.

    Other threads' output is dropped as well, so keep it short; standard error, where logging and
    progress bars go, stays.
    """
    with _LOCK:
        sys.stdout.flush()
        kept = os.dup(1)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 1)
            with contextlib.redirect_stdout(io.StringIO()):
                yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)
            os.close(nowhere)
