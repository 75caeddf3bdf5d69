import multiprocessing
import sys

import numpy as np
import pytest

from custom.memory_use import memory_mib


def test_the_memory_of_this_process_grows_with_what_it_holds() -> None:
    before = memory_mib()["process"]
    held = np.ones(60 * 2**20, np.uint8)
    grown = memory_mib()["process"] - before
    assert 40 < grown < 90
    assert held[-1] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_workers_have_memory_of_their_own_until_they_end() -> None:
    before = memory_mib().get("workers", 0)  # of loaders that other tests have left
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        assert pool.map(abs, [-1]) == [1]
        assert memory_mib()["workers"] > before + 2
    pool.join()
    assert memory_mib().get("workers", 0) < before + 2


def test_there_is_no_gpu_on_a_cpu() -> None:
    assert "gpu_peak" not in memory_mib("cpu")
