"""A training notices when its volumes are no longer what they were."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from custom.errors import InputError
from custom.features.cache import open_cache
from custom.volume_identity import VolumeIdentity
from tests.bundle import tiny

FIRST = "volume_000000"


def identity(project: Path, **settings: Any) -> VolumeIdentity:
    cache = project / "cache"
    return VolumeIdentity(
        open_cache(cache, "training"), open_cache(cache, "validation"), **settings
    )


def changed_metadata(project: Path, **changes: Any) -> None:
    path = project / "cache" / f"{FIRST}_metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def changed_chunk(array: str, project: Path) -> None:
    folder = project / "cache" / f"{FIRST}.zarr" / array / "c"
    path = max(path for path in folder.rglob("*") if path.is_file())
    path.write_bytes(path.read_bytes()[:-1] + b"?")  # the end of its checksum
    changed_metadata(project, created="later")


def removed(project: Path) -> None:
    (project / "cache" / f"{FIRST}_metadata.json").unlink()
    shutil.rmtree(project / "cache" / f"{FIRST}.zarr")


def test_volumes_that_are_the_same_are_taken_wherever_they_lie(
    project: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = identity(project).state_dict()
    changed_metadata(project, created="later", versions={}, timing={})
    assert (project / "cache").rename(tmp_path / "elsewhere").exists()
    (tmp_path / "elsewhere").rename(project / "cache")
    again = identity(project)
    again.load_state_dict(state)
    assert again.state_dict() == state
    assert caplog.text == ""


CHANGES: dict[str, Callable[[Path], None]] = {
    "raw": partial(changed_chunk, "raw"),
    "labels": partial(changed_chunk, "gt"),
    "features": partial(changed_chunk, "tokens_xz"),
    "window": lambda project: changed_metadata(project, intensity_window=[1.0, 99.0]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_volume_that_was_rewritten_is_noticed_by_a_training_that_runs_or_is_taken_up(
    project: Path, change: str
) -> None:
    running = identity(project)
    state = running.state_dict()
    CHANGES[change](project)
    with pytest.raises(InputError, match="training 'synthetic-training' volume has been rewritten"):
        running.state_dict()
    with pytest.raises(ValueError, match="volume is another now, 0 gone and 1 changed of 2"):
        identity(project).load_state_dict(state)


def test_features_do_not_count_for_a_training_on_raw_alone(project: Path) -> None:
    running = identity(project, use_tokens=False)
    state = running.state_dict()
    changed_chunk("tokens_xz", project)
    assert running.state_dict() == state
    identity(project, use_tokens=False).load_state_dict(state)


def test_targets_count_where_they_are_read(project: Path) -> None:
    states = {on: identity(project, cached_targets=on).state_dict() for on in (False, True)}
    changed_metadata(project, targets={"lsd_sigma_nm": 3})
    identity(project).load_state_dict(states[False])
    with pytest.raises(ValueError, match="another now"):
        identity(project, cached_targets=True).load_state_dict(states[True])


def test_a_volume_that_is_gone_is_noticed_and_new_ones_are_welcome(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    running = identity(project)
    state = running.state_dict()
    removed(project)
    with pytest.raises(InputError, match="training 'synthetic-training' volume is gone since"):
        running.state_dict()
    cache = project / "cache"
    without = VolumeIdentity([], open_cache(cache, "validation"))
    with pytest.raises(ValueError, match="training 'synthetic-training' volume is gone, 1 gone"):
        without.load_state_dict(state)
    identity_of_more = VolumeIdentity([], open_cache(cache, "validation"))
    identity_of_more.load_state_dict({})
    assert "1 new volumes: validation 'synthetic-validation'" in caplog.text


@pytest.mark.slow
def test_a_training_does_not_go_on_with_other_volumes(project: Path) -> None:
    changed_metadata(project, intensity_window=[1.0, 99.0])
    sentence = tiny.mistake(lambda: tiny.run("training", project, epochs=3))
    for part in ("last.pt", "volumes: training 'synthetic-training' volume is another now"):
        assert part in sentence
