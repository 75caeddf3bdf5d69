import signal
from pathlib import Path

import pytest

from tests.killed_training import FORMS, killed_training, prepare
from tests.soak import assert_as_uninterrupted, killed_preprocessing
from tests.test_preprocessing import preprocessor, write_datalist
from tests.zygote import zygote


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_run_ends_with_the_same_cache(tmp_path: Path) -> None:
    killed_preprocessing(tmp_path, "float16", kills=2, seed=1)


def test_the_soak_notices_what_a_kill_could_leave(tmp_path: Path) -> None:
    datalist = write_datalist(tmp_path)
    whole, other = tmp_path / "whole", tmp_path / "other"
    for cache_dir in (whole, other):
        preprocessor(datalist, cache_dir).run()
    assert_as_uninterrupted(whole, other)
    orphan = other / "volume_000001.zarr" / "raw" / "part"
    orphan.write_bytes(b"")
    with pytest.raises(AssertionError):
        assert_as_uninterrupted(whole, other)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_training_ends_with_the_same_model(tmp_path: Path) -> None:
    """Three kills of every form; and of the last one, stopped by a signal that it may answer."""
    prepared = prepare(tmp_path / "prepared")
    with zygote() as runs:
        for form, settings in FORMS.items():
            killed_training(prepared, tmp_path / form, 3, 1, runs, **settings)
        killed_training(prepared, tmp_path / "asked", 2, 2, runs, signal.SIGTERM, **settings)
