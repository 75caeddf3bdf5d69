import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import daisy
import psutil
import pytest

from custom.blockwise.runs import run_tasks
from custom.blockwise.tracked import ProcessBlock, describe, described
from custom.errors import InputError
from custom.folder_lock import sole_writer
from custom.interruption import STOPPED
from tests.blockwise.counting import Counting
from tests.blockwise.killed import (
    PROJECT,
    assert_counted,
    counted_tasks,
    killed_runs,
    processes_of,
)

BLOCKS = 8
FAILING = [3]


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


def assert_each_once(folder: Path) -> None:
    for name in ("first", "second"):
        blocks = processed(folder / name)
        assert len(blocks) == BLOCKS
        assert all(len(processes) == 1 for processes in blocks.values())


def test_every_block_is_processed_once_however_often_the_command_runs(tmp_path: Path) -> None:
    run_tasks(chain(tmp_path)[:1], tmp_path / "state")
    for _ in range(2):
        run_tasks(chain(tmp_path), tmp_path / "state")
        assert_each_once(tmp_path)


def test_blocks_may_read_much_more_than_they_write(tmp_path: Path) -> None:
    """As those of features do: a window of the backbone is larger than a thin volume."""
    for _ in range(2):
        run_tasks(chain(tmp_path, context=(300, 300, 300)), tmp_path / "state")
        assert_each_once(tmp_path)


@pytest.mark.parametrize(
    ("workers", "folder"), [(None, "run"), pytest.param(2, "run=1:2", marks=pytest.mark.slow)]
)
def test_blocks_that_fail_are_named_and_the_others_go_on(
    workers: int | None, folder: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / folder
    state = path / "state"
    expected = r"1 of 8 blocks of 'first' failed \('second' wait for them\), .*told to fail"
    with pytest.raises(InputError, match=expected):
        run_tasks(chain(path, failing=FAILING, threads=2), state, workers)
    assert len(processed(path / "first")) == BLOCKS - 1
    assert not (path / "second").exists()
    (record,) = (state / "first" / "failed").iterdir()
    assert json.loads(record.read_text())["tries"] == 3
    run_tasks(chain(path, threads=2), state, workers)
    assert_each_once(path)
    assert not list((state / "first" / "failed").iterdir())
    assert not list((state / "first" / "running").iterdir())
    if workers:
        pids = {pid for pids in processed(path / "first").values() for pid in pids}
        assert os.getpid() not in pids
        assert capfd.readouterr().out == ""
        assert (state / "first" / "logs" / "worker_0.log").exists()


def test_a_mistake_in_a_block_is_told_as_its_own_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"zyx\): block 3 has no mask; give one; what each said"):
        run_tasks(chain(tmp_path, failing=FAILING, failure="mistake"), tmp_path / "state")


def test_a_full_disk_ends_the_run_at_once_and_nothing_is_half_done(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"array' cannot be written \(No space left.*make room"):
        run_tasks(chain(tmp_path, failing=[0], failure="disk"), tmp_path / "state")
    assert processed(tmp_path / "first") == {}
    run_tasks(chain(tmp_path), tmp_path / "state")
    assert_each_once(tmp_path)


def test_ctrl_c_ends_a_run_in_this_process_and_the_same_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run_tasks(chain(tmp_path, failing=FAILING, failure="signal"), tmp_path / "state")
    assert end.value.code == STOPPED
    assert "the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert 0 < len(processed(tmp_path / "first")) < BLOCKS
    run_tasks(chain(tmp_path), tmp_path / "state")
    assert_each_once(tmp_path)


def test_threads_process_blocks_at_the_same_time_in_this_process(tmp_path: Path) -> None:
    meeting = threading.Barrier(2, timeout=20)

    class Meeting(Counting):
        @contextmanager
        def process_block_func(self) -> Iterator[ProcessBlock]:
            with super().process_block_func() as process:

                def meet(block: daisy.Block) -> None:
                    meeting.wait()
                    process(block)

                yield meet

    state = tmp_path / "state"
    run_tasks([Meeting(state_dir=state, name="a", folder=tmp_path / "first", threads=2)], state)
    assert len(processed(tmp_path / "first")) == BLOCKS


def test_two_runs_do_not_share_a_state(tmp_path: Path) -> None:
    def made() -> list[Counting]:
        (tmp_path / "made").touch()
        return chain(tmp_path)

    with (
        sole_writer(tmp_path / "state", "output_dir"),
        pytest.raises(InputError, match=r"output_dir .* is being written by process"),
    ):
        run_tasks(made, tmp_path / "state")
    assert not (tmp_path / "made").exists()
    run_tasks(made, tmp_path / "state")
    assert_each_once(tmp_path)


def test_a_run_is_alone_until_it_has_finished(tmp_path: Path) -> None:
    seen: list[int] = []

    def finish() -> None:
        assert_each_once(tmp_path)
        with pytest.raises(InputError, match="is being written by process"):
            run_tasks(chain(tmp_path), tmp_path / "state")
        seen.append(1)

    with pytest.raises(InputError, match="1 of 8 blocks"):
        run_tasks(chain(tmp_path, failing=FAILING), tmp_path / "state", finish=finish)
    assert not seen
    run_tasks(chain(tmp_path), tmp_path / "state", finish=finish)
    assert seen


def test_a_task_goes_through_json(tmp_path: Path) -> None:
    (task, _) = chain(tmp_path, failing=[1, 2])
    assert described(json.loads(json.dumps(describe(task)))) == task


@pytest.mark.slow
def test_workers_that_cannot_begin_end_the_run_with_what_they_said(tmp_path: Path) -> None:
    expected = r"workers of 'first' ended.*: there is no folder .* mount it; see '.*worker_\d\.log'"
    with pytest.raises(InputError, match=expected):
        run_tasks(chain(tmp_path, blind=True), tmp_path / "state", 1)
    assert not (tmp_path / "second").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ctrl_c_ends_workers_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """On a terminal it reaches all processes of the run's group."""
    command = [sys.executable, "-m", "tests.blockwise.killed", str(tmp_path), "0.2"]
    run = subprocess.Popen(command, cwd=PROJECT, start_new_session=True, stderr=subprocess.PIPE)
    while not list(tmp_path.glob("state/first/running/[0-9]*.json")):
        assert run.poll() is None
        time.sleep(0.05)
    everyone = [process for kind in processes_of(run.pid).values() for process in kind]
    os.killpg(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == STOPPED
    assert "the same command goes on" in said.decode() and "Traceback" not in said.decode()
    assert psutil.wait_procs(everyone, timeout=20)[1] == []
    assert not list(tmp_path.glob("state/first/running/[0-9]*.json"))
    run_tasks(counted_tasks(tmp_path, 0), tmp_path / "state")
    assert_counted(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_is_killed_ends_the_same(tmp_path: Path) -> None:
    """One kill of each kind; ``tests.soak`` has many more."""
    killed_runs(tmp_path, 4, seed=1, kinds=("worker", "waiting", "server", "run"))
