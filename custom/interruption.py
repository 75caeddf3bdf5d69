"""SIGTERM and Ctrl-C as a wish to stop that a training meets when all can be saved."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.resource_tracker import ensure_running
from types import FrameType
from typing import Any

import torch

from custom.distributed import total, world_size

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOPPED = 75
"""Exit status of a run that stopped and saved (EX_TEMPFAIL): the same command goes on."""

ECHO_S = 1.0  # torchrun passes Ctrl-C on to processes that the terminal has told already


class Interruption:
    """Whether someone wishes the training to stop.

    The first SIGTERM or SIGINT is a wish. A second SIGINT (Ctrl-C) ends the process at once, as
    without all this; further SIGTERMs do not, because batch systems send several signals in a row.
    """

    def __init__(self) -> None:
        self.wished = False
        self._first_s = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to both signals; outside the main thread, where Python cannot, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._notice) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def wished_by_any(self, device: torch.device | str | None) -> bool:
        """Whether any process of the run was asked to stop; all of them call it together.

        Args:
            device: where their tensors meet.
        """
        if world_size() == 1:
            return self.wished
        return bool(total(torch.tensor(int(self.wished), device=device)) > 0)

    def _notice(self, number: int, frame: FrameType | None) -> Any:
        now = time.monotonic()
        again = self.wished and number == signal.SIGINT
        if again and (world_size() == 1 or now - self._first_s > ECHO_S):
            return signal.default_int_handler(number, frame)
        if not self.wished:
            self.wished, self._first_s = True, now
            text = (
                f"\n{signal.Signals(number).name}: training stops when the step, or the validation "
                f"volume, that it is at is done, and saves; Ctrl-C (again) stops it at once\n"
            )
            os.write(2, text.encode())  # a print might be what the signal has interrupted
        return None


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Processes that are started meanwhile never get SIGINT or SIGTERM; this one gets them later.

    Workers are told by their parent, or its death, when to end: a signal for the whole group, from
    a terminal or a batch system, must not take them from a training that is about to save.
    """
    ensure_running()  # Python's tracker, which a loader needs: its start ends by unblocking both
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
