"""Processes that end when the one that started them has ended, however it did."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

STARTER = "EMSEG_STARTER"  # environment variable: the process that started a worker
POLL_S = 0.5
PR_SET_PDEATHSIG = 1  # in Linux's prctl.h


def end_with_server(server: int) -> None:
    """As the process that waits for a worker: take its server's end for its order to stop.

    SIGTERM is that order, for what waits to handle; Ctrl-C is the server's to hear.

    Args:
        server: process that forked this one.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main = threading.main_thread().ident
    assert main is not None
    when_parent_ends(server, lambda: signal.pthread_kill(main, signal.SIGTERM))


def end_with_starter() -> None:
    """As a worker on the same machine: end with the process that waits for it.

    Linux sees to it even while C code holds Python's lock.
    """
    starter = os.environ.get(STARTER)
    if starter is None:  # the batch system ends it
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    when_parent_ends(int(starter), lambda: os._exit(1))


def when_parent_ends(parent: int, act: Callable[[], None]) -> None:
    """Do something when this process has another parent than it had.

    Args:
        parent: process that started this one; it may have ended already.
        act: called once, in another thread.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_S)
        act()

    threading.Thread(target=watch, daemon=True).start()
