import json
import os
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from scripts.blocks import described, status

from custom.blockwise.presence import present
from custom.blockwise.runs import run_tasks
from custom.blockwise.status import read_status, voxels_per_s
from custom.errors import InputError
from tests.blockwise.counting import Counting


def chain(folder: Path, failing: list[int]) -> list[Counting]:
    state = folder / "cube.blocks"
    return [
        Counting(state_dir=state, name="first", folder=folder / "first", failing=failing),
        Counting(state_dir=state, name="second", folder=folder / "second"),
    ]


def failed_run(folder: Path) -> None:
    with pytest.raises(InputError, match="1 of 8 blocks"):
        run_tasks(chain(folder, [3]), folder / "cube.blocks")


def begin_block(folder: Path, number: int, worker: str, since: float) -> None:
    record = {"offset": [0, 20, 0], "shape": [10, 10, 20], "worker": worker, "since": since}
    path = folder / "cube.blocks" / "first" / "running" / f"{number}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record))


def test_blocks_are_done_failed_or_left(tmp_path: Path) -> None:
    failed_run(tmp_path)
    (run,) = read_status(tmp_path)
    first, second = run.tasks
    assert (run.volume, run.alive) == ("cube", False)
    assert (first.total, first.done, first.failed, first.left) == (8, 7, 1, 1)
    assert (second.total, second.done, second.failed, second.left) == (8, 0, 0, 8)
    run_tasks(chain(tmp_path, []), tmp_path / "cube.blocks")
    (run,) = read_status(tmp_path)
    assert [(task.done, task.failed, task.left) for task in run.tasks] == [(8, 0, 0)] * 2
    assert described(run).startswith("cube: done")


def test_only_blocks_of_living_workers_run(tmp_path: Path) -> None:
    failed_run(tmp_path)
    now, host = time.time(), socket.gethostname()
    begin_block(tmp_path, 3, f"{host}-{os.getpid()}", now - 90)
    begin_block(tmp_path, 4, f"{host}-{2**22 + 1}", now)  # more than Linux has processes
    begin_block(tmp_path, 5, "elsewhere-17", now - 5)
    (dead,) = read_status(tmp_path)
    assert dead.tasks[0].running == []
    with present(tmp_path / "cube.blocks"):
        (run,) = read_status(tmp_path, now)
    assert run.alive
    assert [round(block.seconds) for block in run.tasks[0].running] == [90, 5]
    assert run.tasks[0].seconds_left is not None
    text = described(run)
    assert "cube: running" in text
    assert f"first: block at [0, 20, 0] by {host}-{os.getpid()} for 0:01:30" in text


def test_the_rate_is_that_of_all_workers_and_of_the_last_minutes() -> None:
    def block(begin: float, end: float) -> dict[str, object]:
        return {"begin": begin, "end": end, "shape": [2, 5, 10]}

    assert voxels_per_s([block(0, 10), block(0, 10), block(10, 20)]) == 15
    assert voxels_per_s([block(0, 1), block(5000, 5010), block(5010, 5020)]) == 10
    assert voxels_per_s([]) is None


def test_the_state_of_one_volume_can_be_named_and_a_line_may_be_cut_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed_run(tmp_path)
    (log,) = (tmp_path / "cube.blocks" / "first" / "times").iterdir()
    log.write_text(log.read_text() + '{"offset": [0, 0')
    status(str(tmp_path / "cube.blocks"))
    said = capsys.readouterr().out
    assert said.splitlines()[0] == "cube: not running"
    assert said.splitlines()[1].split() == (
        ["task", "done", "of", "failed", "running", "left", "voxels/s", "time", "left"]
    )


def test_watching_goes_on_while_something_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed_run(tmp_path)
    with ExitStack() as run:
        run.enter_context(present(tmp_path / "cube.blocks"))
        naps = iter([lambda: None, run.close])
        monkeypatch.setattr(time, "sleep", lambda seconds: next(naps)())
        status(str(tmp_path), watch=True)
    states = [line for line in capsys.readouterr().out.splitlines() if line.startswith("cube")]
    assert states == ["cube: running", "cube: running", "cube: not running"]


@pytest.mark.parametrize(("folder", "said"), [("", "has no state"), ("gone", "there is no folder")])
def test_there_is_a_sentence_where_there_is_no_run(folder: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=said):
        status(str(tmp_path / folder))
