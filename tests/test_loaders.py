import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.transforms import Compose, RandScaleIntensityd, RandShiftIntensityd

from custom.augmentation import RandOrientationd
from custom.datasets import CropDataset, CropSampler
from custom.errors import InputError
from custom.features.cache import open_cache
from custom.features.cache_files import VolumeFiles
from custom.loaders import BATCHES_AHEAD, training_loader
from custom.targets.settings import target_settings
from custom.transforms import LabelsToTargetsd
from tests.conftest import ROOT
from tests.features.cached import request, write

OFFSETS = [(1, 0, 0), (0, -2, 0), (0, 0, 3)]
SIGMA_NM = 4.0
CROP = (6, 5, 7)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cached(tmp_path_factory.mktemp("cache"))


def cached(folder: Path) -> Path:
    """Two volumes."""
    for index in range(2):
        write(VolumeFiles(folder, index), request(index))
    return folder


def crops(cache_dir: Path, num_samples: int = 24) -> CropDataset:
    transform = Compose(
        [
            RandOrientationd(("image", "labels", "mask"), "box"),
            RandScaleIntensityd("image", factors=0.1, prob=0.5),
            RandShiftIntensityd("image", offsets=0.1, prob=0.5),
            LabelsToTargetsd(target_settings(OFFSETS, SIGMA_NM)),
        ]
    )
    volumes = open_cache(cache_dir, "training")
    return CropDataset(
        volumes, CROP, target_settings(OFFSETS, SIGMA_NM), num_samples, transform=transform
    )


def batches(dataset: CropDataset, epochs: int, **loading: Any) -> Iterator[dict[str, Any]]:
    sampler = CropSampler(dataset)
    loader = training_loader(dataset, 3, sampler, **loading)
    for epoch in range(1, epochs + 1):
        sampler.set_epoch(epoch)
        yield from loader


def assert_same_samples(dataset: CropDataset, epochs: int, **loading: Any) -> int:
    """Whether batches hold the samples of the dataset, in order; returns their number."""
    count = 0
    for batch in batches(dataset, epochs, **loading):
        for place in range(len(batch["image"])):
            sample = dataset[count]
            assert batch.keys() == sample.keys()
            assert batch["sample_volume"][place] == sample["sample_volume"]
            for name, value in batch.items():
                if name == "sample_volume":
                    continue
                # a worker computes by itself, so LSDs' sums of float32 end in other last digits
                atol = 1e-6 if name == "label" else 0
                torch.testing.assert_close(
                    value[place], torch.as_tensor(sample[name]), rtol=0, atol=atol, msg=name
                )
            count += 1
    return count


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:This DataLoader will create . worker")  # on fewer cores
@pytest.mark.parametrize(
    "loading",
    [
        {"num_workers": 0},
        {"num_workers": 8, "workers": "threads"},
        {"num_workers": 1, "workers": "threads"},
        pytest.param({"num_workers": 2, "workers": "spawn"}, marks=pytest.mark.slow),
    ],
    ids=["none", "8 threads", "1 thread", "2 processes"],
)
def test_whoever_makes_them_the_samples_are_the_same(
    cache_dir: Path, loading: dict[str, Any]
) -> None:
    assert assert_same_samples(crops(cache_dir), 2, **loading) == 48


class Slow(CropDataset):
    """Notes which samples are asked for, and from how many threads."""

    def __getitem__(self, number: int) -> dict[str, Any]:
        time.sleep(0.002)
        vars(self).setdefault("asked", []).append(number)
        if number == vars(self).get("broken"):
            raise RuntimeError(f"sample {number} is broken")
        return {"number": torch.tensor(number)}


def slow(cache_dir: Path, num_samples: int, **settings: Any) -> Slow:
    dataset = Slow(open_cache(cache_dir), CROP, target_settings(OFFSETS, None), num_samples)
    vars(dataset).update(asked=[], **settings)
    return dataset


def test_only_so_many_samples_are_made_ahead(cache_dir: Path) -> None:
    dataset = slow(cache_dir, 120)
    loader = training_loader(dataset, 3, CropSampler(dataset), 2, "threads")
    for taken, batch in enumerate(loader, 1):
        assert batch["number"].tolist() == [3 * taken - 3, 3 * taken - 2, 3 * taken - 1]
        if taken < 4:
            time.sleep(0.1)
        assert len(vars(dataset)["asked"]) <= 3 * (taken + 2 * BATCHES_AHEAD)
    assert sorted(vars(dataset)["asked"]) == list(range(120))


def test_threads_end_with_the_epoch_however_it_ends(cache_dir: Path) -> None:
    before = threading.active_count()
    dataset = slow(cache_dir, 60)
    loader = training_loader(dataset, 3, CropSampler(dataset), 4, "threads")
    for _ in range(5):
        epoch = iter(loader)
        next(epoch)
        assert before < threading.active_count() <= before + 4
        del epoch  # stopped early
        assert threading.active_count() == before
    assert len(vars(dataset)["asked"]) < 5 * 60
    list(loader)
    assert threading.active_count() == before


def test_the_process_keeps_its_number_of_threads_for_computing(cache_dir: Path) -> None:
    before = torch.get_num_threads()
    assert_same_samples(crops(cache_dir, 6), 1, num_workers=2, workers="threads")
    assert torch.get_num_threads() == before


@pytest.mark.slow
@pytest.mark.skipif(os.cpu_count() == 1, reason="a single core always computes alone")
def test_a_process_that_has_not_computed_yet_keeps_its_number_of_threads() -> None:
    program = (
        "import torch; from custom.loaders import ThreadLoader;"
        "list(ThreadLoader(torch.ones(4), 1, range(4), 2)); print(torch.get_num_threads())"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-W", "ignore", "-c", program]
    found = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, check=True)
    assert found.stdout.decode().split() == ["2"]


def test_an_error_in_a_thread_ends_the_epoch_where_its_batch_would_have_come(
    cache_dir: Path,
) -> None:
    before = threading.active_count()
    dataset = slow(cache_dir, 60, broken=13)
    found = []
    with pytest.raises(RuntimeError, match="sample 13 is broken"):
        for batch in training_loader(dataset, 3, CropSampler(dataset), 4, "threads"):
            found += batch["number"].tolist()
    assert found == list(range(12))
    assert threading.active_count() == before
    assert len(vars(dataset)["asked"]) < 60


@pytest.mark.timeout(120)
# torch's complaint when the other process is stopped while it still starts
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("workers", ["threads", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_damaged_chunk_ends_the_epoch_in_one_sentence(tmp_path: Path, workers: str) -> None:
    write(VolumeFiles(tmp_path, 0), request(0))
    dataset = crops(tmp_path)
    for chunk in (tmp_path / "volume_000000.zarr" / "tokens_xz" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(InputError) as caught:
        list(batches(dataset, 1, num_workers=2, workers=workers))
    sentence = str(caught.value)
    assert "of array 'tokens_xz' is missing or damaged" in sentence
    assert sentence.startswith("cached volume '") and "\n" not in sentence
    del caught  # and with it the loader, here and not in the middle of another test
    gc.collect()


@pytest.mark.parametrize(
    ("loading", "message"),
    [
        ({"workers": "fork"}, "workers must be 'spawn' or 'threads', got 'fork'"),
        ({"num_workers": -1}, "num_workers must be a whole number from 0 on, got -1"),
        ({"num_workers": True}, "num_workers must be a whole number from 0 on, got True"),
    ],
)
def test_rejects(cache_dir: Path, loading: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(batches(crops(cache_dir), 1, **loading))


FIRST_WORKER = """
import multiprocessing, signal
from custom.interruption import signals_held_back
with signals_held_back():
    multiprocessing.get_context("spawn").Queue()  # starts Python's tracker, as a loader's does
    print(*sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
print(*signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""


def test_signals_are_kept_from_the_first_workers_of_a_process_too() -> None:
    """Python's tracker, which starts with them, lets both signals through when it has begun."""
    command = [sys.executable, "-c", FIRST_WORKER]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == [f"{signal.SIGINT:d} {signal.SIGTERM:d}", ""]


STOPPED = """
import os, signal
from custom.loaders import SpawnLoader
signal.signal(signal.SIGTERM, lambda *_: print("told", flush=True))
loader = SpawnLoader(
    range(50), batch_size=1, num_workers=1, multiprocessing_context="spawn", persistent_workers=True
)
batches = iter(loader)
next(batches)
os.killpg(0, signal.SIGTERM)
print(sum(1 for _ in zip(range(20), batches)))
raise SystemExit(75)
"""


@pytest.mark.slow
def test_sigterm_to_a_whole_group_leaves_workers_to_their_parent_which_ends_them() -> None:
    """In a process that has had no worker before: Python lets signals through when it makes one."""
    done = subprocess.run(
        [sys.executable, "-c", STOPPED],
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout) == (75, "told\n20\n"), done.stderr
