import json
import os
from pathlib import Path
from typing import Any

import pytest

from custom.blockwise.runs import run_tasks
from custom.blockwise.tracked import describe, described
from custom.errors import InputError
from tests.blockwise.counting import Counting

BLOCKS = 8


def chain(folder: Path, **changes: Any) -> list[Counting]:
    """Two tasks, the second after the first; ``changes`` are of the first."""
    state = folder / "state"
    return [
        Counting(state_dir=state, name="first", folder=folder / "first", **changes),
        Counting(state_dir=state, name="second", folder=folder / "second"),
    ]


def processed(folder: Path) -> dict[str, list[int]]:
    """Processes that did a block, by its number."""
    return {path.name: [int(pid) for pid in path.read_text().split()] for path in folder.iterdir()}


@pytest.mark.parametrize("workers", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_every_block_is_processed_once_however_often_the_command_runs(
    workers: int | None, tmp_path: Path
) -> None:
    for _ in range(2):
        run_tasks(chain(tmp_path), tmp_path / "state", workers)
    for name in ("first", "second"):
        blocks = processed(tmp_path / name)
        assert len(blocks) == BLOCKS
        assert all(len(processes) == 1 for processes in blocks.values())
        own = {processes[0] == os.getpid() for processes in blocks.values()}
        assert own == {workers is None}


@pytest.mark.parametrize("workers", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_blocks_that_fail_are_named_and_the_others_go_on(
    workers: int | None, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"1 of 8 blocks of 'first' failed.*told to fail"):
        run_tasks(chain(tmp_path, failing=[3]), tmp_path / "state", workers)
    assert len(processed(tmp_path / "first")) == BLOCKS - 1
    (record,) = (tmp_path / "state" / "first" / "failed").iterdir()
    assert json.loads(record.read_text())["tries"] == 3
    run_tasks(chain(tmp_path), tmp_path / "state", workers)
    assert {len(p) for p in processed(tmp_path / "first").values()} == {1}
    assert not list((tmp_path / "state" / "first" / "failed").iterdir())


def test_another_identity_begins_anew_with_all_that_follows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_tasks(chain(tmp_path, identity={"bias": 1}), tmp_path / "state")
    (tmp_path / "second" / "old").write_text("")
    run_tasks(chain(tmp_path, identity={"bias": 2}), tmp_path / "state")
    assert "first begins anew" in caplog.text
    assert "bias" in caplog.text
    assert not (tmp_path / "second" / "old").exists()


def test_a_task_goes_through_json(tmp_path: Path) -> None:
    (task, _) = chain(tmp_path, failing=[1, 2])
    assert described(json.loads(json.dumps(describe(task)))) == task
