"""What must hold however often it is tried, or for large volumes: kills, loading, memory.

make soak, or python -m tests.soak [--kills 20] [--epochs 10] [--training_kills 100]
[--block_kills 30] [--inference_kills 30] [--edges 256,512,1024] [--seed 0]
"""

import faulthandler
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import fire

from bench.prediction import memory_figures
from custom.features import extraction
from custom.features.cache import open_cache
from custom.features.cache_check import check_cache
from tests.blockwise.killed import killed_runs
from tests.killed_inference import killed_inferences
from tests.killed_training import FORMS, killed_training, prepare
from tests.test_loaders import assert_same_samples, cached, crops
from tests.test_preprocessing import (
    FEATURES,
    INT8,
    ROOT,
    assert_same_arrays,
    preprocessor,
    write_datalist,
)
from tests.zygote import zygote

VARIANTS: dict[str, dict[str, Any]] = {
    "float16": {"features": FEATURES},
    "int8": {"features": INT8, "compression": "lz4"},
    "dense": {"features": {**FEATURES, "layout": "dense"}},
}
LONGEST_S = 600  # a kill, or ten epochs, that take longer hang
MEMORY_MIB, MEMORY_GROWTH = 3 * 1024, 1.1  # of a worker; by a larger volume
A_KILL_S = 60  # of a training, and what it takes to end it after some
PROCESS = """
import json, sys
from custom.features import extraction
from tests.test_preprocessing import preprocessor
extraction.SLAB_BYTES = 1
datalist, cache_dir, changes = json.loads(sys.argv[1])
run = preprocessor(datalist, cache_dir, **changes)
print("ready", flush=True)
run.run()
"""


def soak(
    kills: int = 20,
    epochs: int = 10,
    training_kills: int = 100,
    block_kills: int = 30,
    inference_kills: int = 30,
    edges: tuple[int, int, int] = (256, 512, 1024),
    seed: int = 0,
) -> None:
    """All of it; ends with status 1 and an AssertionError where something does not hold.

    Args:
        kills: of preprocessing, for features as float16, as int8, and as dense ones.
        epochs: of loading, by 8 processes and again by 8 threads.
        training_kills: of one short training, in all its forms.
        block_kills: of workers, servers and runs of blockwise tasks.
        inference_kills: of workers, servers and runs of inferences of 256^3 voxels.
        edges: of volumes, voxels: a worker takes as much memory for the whole chain on the second,
            and for prediction of the third, as for the first.
        seed: of the moments.
    """
    flat_memory(edges[:2])
    flat_memory(edges[::2], until="predict")
    killed_blocks(block_kills, seed)
    killed_whole_inferences(inference_kills, seed)
    killed_trainings(training_kills, seed)
    with tempfile.TemporaryDirectory() as folder:
        for variant in VARIANTS:
            killed_preprocessing(Path(folder) / variant, variant, kills, seed)
        cached(Path(folder))
        for workers in ("threads", "spawn"):
            started, dataset = time.perf_counter(), crops(Path(folder))
            with _no_longer_than_ever():
                samples = assert_same_samples(dataset, epochs, num_workers=8, workers=workers)
            seconds = time.perf_counter() - started
            print(f"{workers}: {samples} samples of {epochs} epochs by 8 workers, {seconds:.0f} s")


def flat_memory(edges: Sequence[int], until: str | None = None) -> None:
    """Inferences of noise with two workers; the larger volume takes no more memory."""
    with tempfile.TemporaryDirectory() as folder:
        figures = memory_figures(edges, Path(folder), until)
    small, large = (f.value for f in figures if f.name.endswith("worker_peak"))
    print(f"memory of a worker, {until or 'all'}: {small:.0f} MiB for {edges[0]}^3 voxels, "
          f"{large:.0f} MiB for {edges[1]}^3", flush=True)  # fmt: skip
    assert large < MEMORY_MIB and large < MEMORY_GROWTH * small


def killed_blocks(kills: int, seed: int) -> None:
    """Kill processes of blockwise runs; every run ends whole, and no done block is done again."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        with _no_longer_than_ever(kills):
            runs = killed_runs(Path(folder), kills, seed)
        seconds = time.perf_counter() - started
        print(f"blocks: {kills} kills of {runs} runs, {seconds:.0f} s", flush=True)


def killed_whole_inferences(kills: int, seed: int) -> None:
    """Kill processes of inferences; every one ends with the segments of one that was left alone."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        with _no_longer_than_ever(kills):
            runs = killed_inferences(Path(folder), kills, seed)
        seconds = time.perf_counter() - started
        print(f"inference: {kills} kills of {runs} runs, {seconds:.0f} s", flush=True)


def killed_trainings(kills: int, seed: int) -> None:
    """Kill trainings of every form, share by share, and compare each with one left alone."""
    with tempfile.TemporaryDirectory() as folder, zygote() as runs:
        prepared = prepare(Path(folder) / "prepared")
        for number, (form, settings) in enumerate(FORMS.items()):
            share = (kills * (number + 1)) // len(FORMS) - (kills * number) // len(FORMS)
            started = time.perf_counter()
            with _no_longer_than_ever(share):
                trainings = killed_training(
                    prepared, Path(folder) / form, share, seed, runs, **settings
                )
            seconds = time.perf_counter() - started
            print(
                f"training, {form}: {share} kills of {trainings} trainings, {seconds:.0f} s",
                flush=True,
            )


@contextmanager
def _no_longer_than_ever(kills: int = 0) -> Iterator[None]:
    """What takes ``LONGEST_S`` hangs: it ends with a traceback of all threads and status 1."""
    longest_s = LONGEST_S + kills * A_KILL_S
    faulthandler.dump_traceback_later(longest_s, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def killed_preprocessing(folder: Path, variant: str, kills: int, seed: int) -> None:
    """Kill runs on three volumes, up to three on one cache, and let the next one end."""
    datalist = write_datalist(folder)
    whole, moments = folder / "whole", random.Random(seed)
    seconds = _until_it_ends(datalist, whole, variant)
    left = kills
    while left:
        cache_dir, row = folder / f"killed_{left}", min(left, moments.randint(1, 3))
        with _no_longer_than_ever():
            for kill in range(kills - left, kills - left + row):
                moment, seconds = _killed(datalist, cache_dir, variant, seconds, moments)
                print(f"{variant}: kill {kill + 1} of {kills}, seed {seed}: after {moment:.3f} s")
            with mock.patch.object(extraction, "SLAB_BYTES", 1):
                preprocessor(datalist, cache_dir, **VARIANTS[variant]).run()
        assert_as_uninterrupted(whole, cache_dir)
        left -= row
    print(f"{variant}: {kills} kills, every cache as of a run that was left alone")


def assert_as_uninterrupted(whole: Path, cache_dir: Path) -> None:
    """Equal arrays and files, every volume once, no defect."""
    assert_same_arrays(whole, cache_dir)
    assert _files(whole) == _files(cache_dir)
    assert [volume.id for volume in open_cache(cache_dir)] == ["a", "b", "c"]
    assert check_cache(cache_dir, show_progress=False).defects == ()


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def _started(datalist: Path, cache_dir: Path, variant: str) -> subprocess.Popen[str]:
    """A run that is about to begin: the imports are done."""
    arguments = json.dumps([str(datalist), str(cache_dir), VARIANTS[variant]])
    command = [sys.executable, "-c", PROCESS, arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as said:
        assert said.readline() == "ready\n"
    return process


def _until_it_ends(datalist: Path, cache_dir: Path, variant: str) -> float:
    """Seconds that an uninterrupted run takes."""
    process, start = _started(datalist, cache_dir, variant), time.perf_counter()
    assert process.wait() == 0
    return time.perf_counter() - start


def _killed(
    datalist: Path, cache_dir: Path, variant: str, seconds: float, moments: random.Random
) -> tuple[float, float]:
    """Kill a run at a random moment; the moment, and what a run takes at most.

    A run that was faster is no kill.
    """
    while True:
        process, moment = _started(datalist, cache_dir, variant), moments.uniform(0, seconds)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            return moment, seconds
        seconds = moment


if __name__ == "__main__":
    fire.Fire(soak)
