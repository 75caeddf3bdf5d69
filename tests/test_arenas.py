import ctypes
import os
import subprocess
import sys

import pytest

from custom.arenas import ARENAS
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

COUNT = """
import ctypes, sys, threading
sys.modules["polars"] = None  # MLflow, which MONAI imports, imports it, and it starts threads
{first}
started = threading.Barrier(7)
threads = [threading.Thread(target=started.wait) for _ in range(6)]
for thread in threads:
    thread.start()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
libc.malloc_info(0, file)
libc.fflush(file)
started.wait()
"""


def arenas(first: str, **environment: str) -> int:
    """Pools of glibc in a process with six threads more."""
    left = {k: v for k, v in os.environ.items() if k != "MALLOC_ARENA_MAX"}
    found = subprocess.run(
        [sys.executable, "-c", COUNT.format(first=first)],
        env={**left, **environment},
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    return found.stdout.count("<heap nr=")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="not glibc")
def test_threads_share_two_pools_unless_the_user_says_otherwise() -> None:
    share = "from custom.arenas import share_arenas; share_arenas()"
    assert arenas("") > ARENAS
    assert arenas(share) == ARENAS
    assert arenas(share, MALLOC_ARENA_MAX="4") == 4


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="not glibc")
@pytest.mark.parametrize(
    "first",
    [
        "from custom.preflight import begin; begin()",
        "from custom.loaders import _begin_worker; import torch.utils.data._utils.worker as w;"
        " w._worker_info = type('Info', (), {'dataset': None, 'seed': 0}); _begin_worker(0)",
    ],
    ids=["run", "worker"],
)
def test_runs_and_their_workers_share_pools(first: str) -> None:
    assert arenas(first) <= ARENAS
