"""Preprocessing by workers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from custom import volume_making
from custom.blockwise import caching
from custom.blockwise.runs import run_tasks
from custom.errors import InputError
from custom.features.cache_files import VolumeFiles
from custom.features.cache_lock import exclusive
from custom.features.copies import plan_copies
from custom.workforce import WORKERS_STATE, Workforce
from tests.blockwise.schedulers.commands import install
from tests.test_preprocessing import FEATURES, assert_same_arrays, preprocessor, write_datalist

COPIES = plan_copies(1, {"gamma": [0.5, 0.7], "noise": [0.1, 0.1]}, seed=3)
SETTINGS: dict[str, Any] = {
    "features": {**FEATURES, "pca": 8, "dtype": "int8"},
    "copies": COPIES,
}


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_datalist(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(datalist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that one process has written."""
    cache_dir = tmp_path_factory.mktemp("finished") / "cache"
    preprocessor(datalist, cache_dir, **SETTINGS).run()
    return cache_dir


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What workers would do is done in this process, while the cache is held."""

    def run(tasks: Sequence[caching.CacheVolumes], state: Path, workers: int, key: str) -> None:
        with pytest.raises(InputError, match="is being written"), exclusive(state.parent):
            pass
        run_tasks(tasks, state, None, key)

    monkeypatch.setattr(caching, "run_tasks", run)


def metadata(cache_dir: Path) -> dict[str, Any]:
    """Of all volumes, but for when they were made."""
    found = {path.name: json.loads(path.read_text()) for path in cache_dir.glob("*_metadata.json")}
    for volume in found.values():
        del volume["created"], volume["timing"]
    return found


def assert_same_caches(one: Path, other: Path) -> None:
    assert_same_arrays(one, other)
    assert metadata(one) == metadata(other)
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}


def run(datalist: Path, cache_dir: Path, **changes: Any) -> None:
    workforce = Workforce(workers=2, retries=0)
    preprocessor(datalist, cache_dir, **{**SETTINGS, "workforce": workforce, **changes}).run()


def test_workers_write_what_one_process_writes(
    here: None, datalist: Path, finished: Path, tmp_path: Path
) -> None:
    run(datalist, tmp_path / "cache")
    assert_same_caches(finished, tmp_path / "cache")


def test_workers_take_up_what_another_run_has_begun(
    here: None,
    datalist: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache_dir, left = tmp_path / "cache", 2
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        tokens = volume_making.VolumeWriter.write_tokens

        def interrupted(writer: Any, *slab: Any) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise KeyboardInterrupt
            tokens(writer, *slab)

        patch.setattr(volume_making.VolumeWriter, "write_tokens", interrupted)
        preprocessor(datalist, cache_dir, **SETTINGS).run()
    (cache_dir / WORKERS_STATE / "volumes").mkdir(parents=True)  # of a run that was killed
    run(datalist, cache_dir)
    assert_same_caches(finished, cache_dir)
    first = json.loads((cache_dir / "volume_000000_metadata.json").read_text())
    assert first["timing"]["resumed"]


def test_finished_volumes_need_no_workers(
    datalist: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "run_tasks", None)
    run(datalist, finished)


def test_a_volume_that_fails_is_named_and_the_others_are_written(
    here: None,
    datalist: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache_dir, make = tmp_path / "cache", volume_making.VolumeMaker.make

    def failing(maker: Any, job: Any, window: Any) -> None:
        if job.id == "b":
            raise InputError("raw cannot be read; look after it")
        make(maker, job, window)

    with monkeypatch.context() as patch:
        patch.setattr(volume_making.VolumeMaker, "make", failing)
        with pytest.raises(InputError, match=r"1 of 4 blocks.*volume_000001 .*look after it"):
            run(datalist, cache_dir)
    assert len(metadata(cache_dir)) == 3
    for index in (0, 2, 3):  # what was done once is not taken for done
        VolumeFiles(cache_dir, index).remove()
    run(datalist, cache_dir)
    assert_same_caches(finished, cache_dir)


@pytest.mark.slow
def test_jobs_of_a_cluster_write_what_one_process_writes(
    datalist: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = install("lsf", tmp_path, monkeypatch)
    workforce = Workforce(2, cluster="lsf", cluster_settings={"queue": "normal"})
    run(datalist, tmp_path / "cache", workforce=workforce)
    assert_same_caches(finished, tmp_path / "cache")
    assert len(spool.jobs()) == 2
    spool.wait_for(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0}, "workers must be a whole number from 1"),
        ({"workers": "threads"}, "workers must be a whole number from 1"),
        ({"retries": -1}, "retries must be a whole number from 0"),
        ({"cluster": "slurm", "cluster_settings": {"queue": "gpu"}}, "but workers is null"),
        ({"workers": 2, "cluster": "slurm"}, "cluster_settings lacks 'queue'"),
        ({"workers": 2, "cluster": "pbs"}, "'lsf' or 'slurm', got 'pbs'"),
    ],
)
def test_a_workforce_that_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Workforce(**arguments)


def test_on_a_cluster_the_job_decides_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("slurm", tmp_path, monkeypatch)
    assert Workforce(2).device("cuda") == "cuda"
    for gpus, device in ((0, "cpu"), (1, "cuda")):
        workforce = Workforce(2, 2, "slurm", {"queue": "gpu", "gpus": gpus})
        assert workforce.device("mps") == device


@pytest.mark.parametrize(("settings", "said"), [({"queue": "gpu"}, True), ({"gpus": 1}, False)])
def test_a_queue_without_a_cluster_is_spoken_of(
    settings: dict[str, Any], said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    Workforce(2, cluster_settings=settings)
    assert ("cluster is null" in caplog.text) == said
